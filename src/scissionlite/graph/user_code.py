"""The line of the user's own code that an error or a captured node comes from."""

from __future__ import annotations

import inspect
import linecache
import os
import re
import traceback
from pathlib import Path

import torch
from torch import fx

# With a separator at the end, or torchvision's lines would be torch's.
_OTHERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<")


def first_line(error: BaseException) -> str:
    """The first line of an error's message without what is for torch's makers; or its class."""
    line = (str(error).strip().splitlines() or [""])[0]
    return without_reports(line) or type(error).__name__


_REPORT = re.compile(
    r"\bplease (file|open|report|submit|consider (filing|opening))\b|"
    r"\b(file|open) an issue\b|\breport (a|this) bug\b|\bsee:? https?://github\.com/pytorch/",
    re.IGNORECASE,
)
"""What asks to report something to torch's makers; a user's model is no fault of torch's."""


def without_reports(text: str) -> str:
    """Leave out of a text what asks the reader to report something to torch's makers."""
    kept = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        report = _REPORT.search(sentence)
        if report:
            sentence = sentence[: report.start()].rstrip(" ,;:(")
            if re.match(r"(otherwise|if)\b", sentence, re.IGNORECASE):
                continue
        kept.append(sentence)
    return " ".join(filter(None, kept))


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
