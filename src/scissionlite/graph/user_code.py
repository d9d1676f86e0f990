"""The line of the user's own code that an error or a captured node comes from."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from torch import fx

_TORCH_FOLDER = str(Path(torch.__file__).parent)
_OWN_FOLDER = str(Path(__file__).parents[1])


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def line_of_error(error: BaseException) -> str:
    """The innermost line of an error's traceback that is neither torch's nor ScissionLite's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_TORCH_FOLDER, _OWN_FOLDER, "<")):
            return f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
    return "an unknown line"


def line_of_node(node: fx.Node) -> str:
    """The innermost line of the model's code that a captured node was recorded at."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines()]
    places = [
        i
        for i, line in enumerate(lines)
        if line.startswith("File ") and _TORCH_FOLDER not in line and _OWN_FOLDER not in line
    ]
    return " ".join(lines[places[-1] : places[-1] + 2]) if places else "an unknown line"
