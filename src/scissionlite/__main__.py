"""``python -m scissionlite``: the same command line as ``scissionlite``."""

from scissionlite.cli import main

if __name__ == "__main__":
    main()
