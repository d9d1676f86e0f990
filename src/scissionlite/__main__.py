"""The process of a command: ``python -m scissionlite`` and the script ``scissionlite``."""

from __future__ import annotations

import signal
import sys

from scissionlite.signals import end_in_order, leave_at_once


def main() -> None:
    """Run the command line and exit, at a signal too."""
    leave_at_once()
    from scissionlite.cli import main as run_command_line  # takes long

    end_in_order()
    try:
        run_command_line()
    except KeyboardInterrupt:  # before a command, which has its own way to end
        sys.exit(128 + signal.SIGINT)
    finally:
        leave_at_once()  # nothing is left to do


if __name__ == "__main__":
    main()
