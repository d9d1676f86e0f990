"""The number of torch's threads, which is one for the whole process.

A forked child has none of its parent's threads. OpenMP does not know that: the child's first
computation in several threads would wait for them for ever. So a forked child computes in one
thread, as torch's own DataLoader does.
"""

from __future__ import annotations

import logging
import os

import torch

logger = logging.getLogger(__name__)

_forked = False


def set_threads(threads: int | None) -> None:
    """Set the threads of an inference; None leaves torch's own default, a forked child one."""
    if threads is None:
        return
    if _forked and threads > 1:
        logger.warning("one thread instead of %d: this process was forked after torch ran", threads)
        return
    torch.set_num_threads(threads)


def take_threads() -> None:
    """Let the calling thread compute in as many threads as were set.

    OpenMP has a number of threads per calling thread. torch sets it when one of its own operations,
    or this function, is called in that thread; compiled code and oneDNN's operations do not.
    """
    torch.get_num_threads()


def _after_fork() -> None:
    global _forked
    if torch.get_num_threads() > 1:
        _forked = True
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)
