"""The line of the user's own code that an error or a captured node comes from."""

from __future__ import annotations

import inspect
import linecache
import os
import traceback
from pathlib import Path

import torch
from torch import fx

# With a separator at the end, or torchvision's lines would be torch's.
_OTHERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<")


def line_of_error(error: BaseException) -> str:
    """The innermost line of an error's traceback that is neither torch's nor ScissionLite's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            return f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
    return "an unknown line"


def line_being_run() -> str | None:
    """The innermost line of a user's code that is being run, in the form of a stack trace."""
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if _is_users(code.co_filename):
            line = linecache.getline(code.co_filename, frame.f_lineno).strip()
            return f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n{line}'
        frame = frame.f_back
    return None


def _is_users(file: str) -> bool:
    return not file.startswith(_OTHERS)


def line_of_node(node: fx.Node) -> str:
    """The innermost line of the model's code that a captured node was recorded at."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines()]
    places = [
        i
        for i, line in enumerate(lines)
        if line.startswith("File ") and _is_users(line.split('"')[1])
    ]
    return " ".join(lines[places[-1] : places[-1] + 2]) if places else "an unknown line"
