"""Python imports this at its start, where PYTHONPATH names this folder: it swaps the C++ core.

``scissionlite._core`` is then the file SCISSIONLITE_CORE, in subprocesses as well. A search path
would not do: the finder of an editable install comes before it.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class OtherCore:
    """Finds that one module, and leaves all others to the finders after it."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer Python's import system."""
        if name != "scissionlite._core":
            return None
        return importlib.util.spec_from_file_location(name, os.environ["SCISSIONLITE_CORE"])


sys.meta_path.insert(0, OtherCore)
