"""Daemon and device as services of systemd: their unit files, and what they tell systemd.

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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import typer

from scissionlite.cli.output import print_warning

CREDENTIALS = "%d"
"""The folder of a service's credentials, in the words of its unit file."""

_CONFIG = Path("/etc/scissionlite/edge.toml")
_HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # ProtectHome, PrivateTmp


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


def edge_unit(config: Path | None, key: Path | None) -> str:
    """Make the edge daemon's unit file for this installation.

    Parameters
    ----------
    config
        The daemon's TOML file; by default ``/etc/scissionlite/edge.toml``.
    key
        Its secret key, which systemd then passes on as a credential: the daemon's user, which
        exists only while it runs, cannot read a file of root's.
    """
    words = ["serve", "--config", str(_CONFIG if config is None else config.absolute())]
    if key is not None:
        words += ["--key", f"{CREDENTIALS}/edge.key"]
    credentials = {} if key is None else {"edge.key": key}
    return _filled("scissionlite-edge.service", words, credentials)


def device_unit(words: list[str], credentials: Mapping[str, Path], extra: str) -> str:
    """Make a device's unit file for this installation.

    Parameters
    ----------
    words
        The command line of ``scissionlite``, from ``run`` on. Paths are absolute.
    credentials
        Secret files, by the names that they have in the folder :data:`CREDENTIALS`.
    extra
        More lines of the service, as for its devices.
    """
    unit = _filled("scissionlite-device.service", words, credentials)
    return unit.replace("@EXTRA@\n", extra)


def print_unit_file(unit: str) -> None:
    """Print a unit file; and a warning, if its service would not see what its command names."""
    typer.echo(unit, nl=False)
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    words = shlex.split(command.partition("=")[2])
    if hidden := [word for word in words if word.startswith(_HIDDEN)]:
        print_warning(
            "the service sees neither home folders nor /tmp, so move these, for instance into "
            f"/opt: {', '.join(hidden)}"
        )


def _filled(template: str, words: list[str], credentials: Mapping[str, Path]) -> str:
    """A unit file of a template, for this installation."""
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "scissionlite", *words]
    loads = [
        f"LoadCredential={name}:{_escaped(str(path.absolute()))}\n"
        for name, path in credentials.items()
    ]
    return (
        (folder / template)
        .read_text()
        .replace("@SANDBOX@\n", (folder / "systemd-sandbox.inc").read_text())
        .replace("@COMMAND@", " ".join(map(_escaped, command)))
        .replace("@CREDENTIAL@\n", "".join(loads))
    )


def _escaped(word: str) -> str:
    """A word of a unit file's command line; ``%`` and ``$`` have a meaning there."""
    if word.startswith(f"{CREDENTIALS}/"):  # which systemd itself replaces
        return word
    return shlex.quote(word).replace("%", "%%").replace("$", "$$")


def _watchdog_seconds() -> float | None:
    """The time within which systemd expects a sign of life; None if it expects none."""
    text, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or process not in ("", str(os.getpid())):
        return None
    return int(text) / 1e6 or None
