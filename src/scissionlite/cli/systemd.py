"""The edge daemon as a service of systemd: its unit file, and what it tells systemd.

The protocol (sd_notify(3)) is a datagram to a socket that systemd names in the environment, so it
needs no library.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_CONFIG = Path("/etc/scissionlite/edge.toml")


def notify(*assignments: str) -> None:
    """Tell systemd about this process, as ``READY=1``; does nothing where it did not start it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with (
        contextlib.suppress(OSError),  # systemd has its own time-outs
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as each,
    ):
        address = "\0" + address[1:] if address.startswith("@") else address
        each.sendto("\n".join(assignments).encode(), address)


@contextlib.contextmanager
def watchdog(alive: Callable[[], bool]) -> Iterator[None]:
    """Tell systemd's watchdog, if the unit has one, that the process lives, as long as it does."""
    period = _watchdog_seconds()
    if period is None:
        yield
        return
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(period / 3):
            if alive():
                notify("WATCHDOG=1")

    thread = threading.Thread(target=tell, name="scissionlite-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def unit_file(config: Path | None, key: Path | None) -> str:
    """Make the unit file for this installation.

    Parameters
    ----------
    config
        The daemon's TOML file; by default ``/etc/scissionlite/edge.toml``.
    key
        Its secret key, which systemd then passes on as a credential: the daemon's user, which
        exists only while it runs, cannot read a file of root's.
    """
    template = Path(__file__).with_name("scissionlite-edge.service").read_text()
    command = [sys.executable, "-m", "scissionlite", "serve", "--config"]
    command.append(str(_CONFIG if config is None else config.absolute()))
    words = [_escaped(word) for word in command]
    credential = ""
    if key is not None:
        credential = f"LoadCredential=edge.key:{_escaped(str(key.absolute()))}\n"
        words += ["--key", "%d/edge.key"]
    return template.replace("@COMMAND@", " ".join(words)).replace("@CREDENTIAL@\n", credential)


def _escaped(word: str) -> str:
    """A word of a unit file's command line; ``%`` and ``$`` have a meaning there."""
    return shlex.quote(word).replace("%", "%%").replace("$", "$$")


def _watchdog_seconds() -> float | None:
    """The time within which systemd expects a sign of life; None if it expects none."""
    text, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or process not in ("", str(os.getpid())):
        return None
    return int(text) / 1e6 or None
