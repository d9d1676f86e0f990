"""Why no connection can be made: ZeroMQ says only that an attempt failed, the system says why."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable

_PATIENCE = 1.0  # seconds for an attempt; whoever refuses does it at once
_PAUSE = 1.0  # seconds between two attempts


def connection_trouble(endpoint: str) -> str | None:
    """Try to connect to an endpoint; return what the system says against it, None if nothing.

    It may take as long as a name server takes, so no thread with deadlines calls it.
    """
    scheme, _, address = endpoint.partition("://")
    try:
        if scheme == "ipc":
            with socket.socket(socket.AF_UNIX) as attempt:
                attempt.settimeout(_PATIENCE)
                attempt.connect(address)
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            return f"the name {host} cannot be looked up: no name server answers"
        return f"the name {host} is not known"
    except (TimeoutError, BlockingIOError):
        return f"nothing answers at {endpoint}: the machine is off, or a firewall is in between"
    except OSError as error:
        said = {
            errno.ECONNREFUSED: "connection refused",
            errno.EHOSTUNREACH: "no route to the host",
        }
        return f"{said.get(error.errno or 0, error.strerror)} at {endpoint}"
    return None


class Diagnosis:
    """Finds out in a thread of its own why attempts to connect fail.

    Parameters
    ----------
    explain
        Called in that thread with the reason.

    Attributes
    ----------
    reason : str or None
        The last one found.
    """

    def __init__(self, explain: Callable[[str], None]) -> None:
        self._explain = explain
        self._next_at = 0.0
        self._thread: threading.Thread | None = None
        self.reason: str | None = None

    def ask(self, endpoint: str) -> None:
        """Begin to find out about an endpoint, if that was not begun just now."""
        now = time.monotonic()
        if now < self._next_at or (self._thread is not None and self._thread.is_alive()):
            return
        self._next_at = now + _PAUSE
        # Nobody waits for it: a name server may take longer than a device may take to close.
        self._thread = threading.Thread(
            target=self._find_out, args=(endpoint,), name="diagnosis", daemon=True
        )
        self._thread.start()

    def _find_out(self, endpoint: str) -> None:
        reason = connection_trouble(endpoint)
        self.reason = reason
        if reason is not None:
            self._explain(reason)
