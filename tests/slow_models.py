"""A model that never finishes, for tests of who ends a profiler: it writes its id and waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torch import nn

PID_FILE = "SCISSIONLITE_TEST_PID_FILE"


def forever() -> nn.Module:
    """Write this process's id to the file named by the environment, then wait."""
    file = Path(os.environ[PID_FILE])
    file.with_suffix(".part").write_text(str(os.getpid()))
    file.with_suffix(".part").rename(file)
    time.sleep(600)
    raise AssertionError("nobody ended this process")
