"""Who may use the edge daemon: the keys that are authorised, asked at two moments.

A connection is encrypted and authenticated by libzmq, which asks the handler here (ZAP,
https://rfc.zeromq.org/spec/27) whether its key is authorised. Every message then names the key that
its connection was authenticated with. So a key that is revoked is refused although its connection
lives, which libzmq gives no way to end.

Without keys the handler is asked too: libzmq reads no message of a connection before the answer,
so an address that is banned cannot send one in the moment until its connection is shut down.

pyzmq's own ZAP handlers need a thread with an asyncio loop, or a folder of certificates that is
read again when told; this one is a socket of the I/O loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import zmq

from scissionlite._core import MessageSocket
from scissionlite.errors import UnauthorizedKeyError
from scissionlite.keys.authorized import AuthorizedKeys
from scissionlite.keys.files import encode_key
from scissionlite.offloader.edge.log_limit import LogLimit
from scissionlite.offloader.edge.metrics import Metrics
from scissionlite.offloader.link_keys import EdgeKeys
from scissionlite.offloader.message_sockets import message_socket
from scissionlite.offloader.socket_inputs import SocketInputs
from scissionlite.offloader.wire.control import Hello, Refused

_REFRESH_INTERVAL = 0.5  # seconds between two looks at the file of authorised keys
_BATCH = 64  # handshakes answered before the other sockets have their turn
_VERSION = b"1.0"
_WELCOME = [b"200", b"OK", b""]
_LATER = [b"300", b"not now", b""]  # its peer tries again


class Access:
    """The daemon's door: who may connect, and who sent a message. Of the I/O thread.

    Parameters
    ----------
    keys
        The daemon's keys; None lets everybody in.
    metrics
        Counts the handshakes that are refused.

    Attributes
    ----------
    log : LogLimit
        For the lines on who comes and goes.
    """

    def __init__(self, keys: EdgeKeys | None, metrics: Metrics) -> None:
        self._keys = keys
        self._metrics = metrics
        self.log = LogLimit(logging.getLogger(__name__))
        self._authorized: AuthorizedKeys | None = None if keys is None else keys.authorized_keys()
        self._handler: zmq.Socket[bytes] | None = None
        self._handshakes: MessageSocket | None = None
        self._refresh_at = 0.0

    def open(self, context: zmq.Context[zmq.Socket[bytes]]) -> MessageSocket:
        """Answer the context's handshakes, before its first socket listens.

        Returns
        -------
        MessageSocket
            The socket at which handshakes arrive.
        """
        self._handler = context.socket(zmq.REP)
        self._handler.linger = 0
        self._handler.bind("inproc://zeromq.zap.01")
        self._handshakes = message_socket(self._handler)
        return self._handshakes

    def close(self) -> None:
        """Answer no more handshakes."""
        if self._handler is not None and self._handshakes is not None:
            self._handshakes.close()
            self._handler.close()

    def secure(self, each: zmq.Socket[bytes]) -> None:
        """Prepare a socket that will listen."""
        # With a domain, every connection needs the consent of the handler here, also without keys.
        each.zap_domain = b"scissionlite"
        if self._keys is not None:
            self._keys.secure(each)

    @property
    def sender(self) -> str:
        """The property of a connection that names its peer: by its key, or else by its address."""
        return "Peer-Address" if self._keys is None else "User-Id"

    def check(self, peer: str) -> None:
        """Raise an error unless a message's sender is still authorised.

        Raises
        ------
        UnauthorizedKeyError
            If its key is not.
        """
        if self._authorized is not None and peer not in self._authorized:
            raise UnauthorizedKeyError(f"the key {peer} is not authorised")

    def reload(self) -> None:
        """Look at the file of authorised keys in the next step; of any thread."""
        self._refresh_at = 0.0

    def describe(self, peer: str) -> str:
        """Describe a peer for the log, by the name of its key or by its address."""
        if self._authorized is None:
            return f"at {peer}"
        return f"key {self._authorized.name(peer)}" if peer in self._authorized else f"key {peer}"

    def log_connected(self, hello: Hello, peer: str) -> None:
        """Write that a device has connected."""
        name, who = hello.name, self.describe(peer)
        text = "device %r connected, %s: %s"
        fields = {"device": name, "peer": who, "bundle": hello.bundle}
        self.log.info("connected", peer + name, text, name, who, hello.runtime, **fields)

    def log_refused(self, name: str, peer: str, refused: Refused) -> None:
        """Write that a device was refused."""
        text = "device %r refused: %s"
        fields = {"device": name, "code": refused.code}
        self.log.warning("refused", peer + name, text, name, refused.reason, **fields)

    def step(self, inputs: SocketInputs, is_banned: Callable[[str], bool]) -> bool:
        """Answer handshakes; return whether the authorised keys have changed.

        Parameters
        ----------
        inputs
            Where the handler's socket is read.
        is_banned
            Whether an address gets no connection for now.
        """
        if self._handshakes is None:
            return False
        now, changed = time.monotonic(), False
        if self._authorized is not None and now >= self._refresh_at:
            self._refresh_at = now + _REFRESH_INTERVAL
            changed = self._authorized.refresh()
        for _ in range(_BATCH):
            if not (frames := inputs.receive(self._handshakes)):
                break
            _, number, _, address, _, _, *credentials = map(bytes, frames)
            where = address.decode("ascii", "replace")
            if is_banned(where):
                reply = _LATER
            elif self._authorized is None:
                reply = _WELCOME
            else:
                # A key that was added or taken out just now counts at once.
                changed |= self._authorized.refresh()
                reply = self._authenticate(encode_key(credentials[0]), where)
            self._handshakes.send([_VERSION, number, *reply, b""])
            inputs.used(self._handshakes)
        return changed

    def _authenticate(self, key: str, where: str) -> list[bytes]:
        assert self._authorized is not None
        if key in self._authorized:
            return [b"200", b"OK", key.encode()]
        reason = f"{where} has the key {key}, which is not authorised"
        self._metrics.reject(UnauthorizedKeyError(reason))
        return [b"400", b"not authorised", b""]
