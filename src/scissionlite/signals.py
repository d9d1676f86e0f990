"""SIGINT (Ctrl-C) and SIGTERM for the commands; it imports next to nothing, as the first module.

While a command imports and loads, nothing is lost if it ends at once, and an exception at any place
of an import would be a traceback. While it works, an exception lets it end in order.
"""

from __future__ import annotations

import os
import signal
import sys

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def leave_at_once() -> None:
    """From now on, end the process at a signal: exit code 130 or 143, and nothing printed."""
    for number in _SIGNALS:
        signal.signal(number, _leave)


def end_in_order() -> None:
    """From now on, raise KeyboardInterrupt, or SystemExit with exit code 143, at a signal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _exit)


def _leave(number: int, _frame: object) -> None:
    os._exit(128 + number)


def _exit(number: int, _frame: object) -> None:
    sys.exit(128 + number)
