"""Peers that mean harm, each in a process of its own: ``python -m attackers NAME TENSORS CONTROL``.

They attack again and again until they are killed, and print a line when the first attack has
begun. They speak ZMTP by hand, so that nothing holds them to what libzmq would send.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import zmq

from scissionlite.bundle import Bundle
from scissionlite.offloader import wire
from scissionlite.offloader.bundle_tensors import request_tensors
from scissionlite.offloader.wire import control

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16) + b"\0" + bytes(31)
_PAUSE = 0.1  # seconds before a new connection, as libzmq waits
_CHUNK = 1 << 16


def dial(endpoint: str) -> socket.socket:
    """Open a TCP connection to ``tcp://host:port``."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), 2)


def shake_hands(endpoint: str, kind: bytes, identity: bytes = b"") -> socket.socket:
    """Open a connection and say what a ZeroMQ socket of a kind says first."""
    link = dial(endpoint)
    link.sendall(GREETING)
    received = b""
    while len(received) < 64:
        part = link.recv(64 - len(received))
        if not part:
            raise ConnectionError("refused")
        received += part
    ready = b"\x05READY" + prop(b"Socket-Type", kind) + prop(b"Identity", identity)
    link.sendall(bytes([4, len(ready)]) + ready)
    return link


def prop(name: bytes, value: bytes) -> bytes:
    """Write a property of ZMTP's READY."""
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value


def frame(body: bytes, *, more: bool) -> bytes:
    """Write a frame of ZMTP."""
    if len(body) < 256:
        return bytes([int(more), len(body)]) + body
    return bytes([2 | int(more)]) + len(body).to_bytes(8, "big") + body


def send(link: socket.socket, chunks: Iterable[bytes]) -> None:
    """Send chunks until the other side ends the connection, or there are no more."""
    for chunk in chunks:
        link.sendall(chunk)


def many(body: bytes, count: int) -> Iterable[bytes]:
    """Write a message of many equal frames, in large chunks."""
    one = frame(body, more=True)
    each = max(1, _CHUNK // len(one))
    for _ in range(count // each):
        yield one * each
    yield one * (count % each) + frame(body, more=False)


def endless(body: bytes) -> Iterable[bytes]:
    """Write a message that never ends."""
    one = frame(body, more=True)
    while True:
        yield one * max(1, _CHUNK // len(one))


def repeat(attack: Callable[[], socket.socket | None], *, pause: float = _PAUSE) -> None:
    """Attack again and again; the connection of an attack lives until the next one."""
    first = True
    while True:
        link = None
        with contextlib.suppress(OSError):
            link = attack()
        if first:
            print("attacking", flush=True)
            first = False
        time.sleep(pause)
        if link is not None:
            link.close()


def flood(endpoint: str, kind: bytes, chunks: Callable[[], Iterable[bytes]]) -> None:
    """Send messages that are made of such chunks, over one connection after the other."""

    def attack() -> socket.socket:
        link = shake_hands(endpoint, kind)
        print("attacking", flush=True)
        send(link, chunks())
        return link

    repeat(attack)


def say(endpoints: Iterable[str], text: bytes) -> None:
    """Send bytes that are not ZMTP, to one endpoint after the other."""
    turns = itertools.cycle(endpoints)

    def attack() -> socket.socket:
        link = dial(next(turns))
        link.sendall(text)
        return link

    repeat(attack, pause=0.002)


def hold(endpoint: str, count: int, text: bytes) -> None:
    """Open connections, say the beginning of something on each, and hold them."""
    held = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            held.append(dial(endpoint))
            held[-1].sendall(text)
    print("attacking", flush=True)
    while held:
        time.sleep(1)


def fuzz(bundle: Bundle, tensors: str, controls: str) -> None:
    """Send requests and control messages with wrong bytes as fast as the daemon takes them."""
    context = zmq.Context()
    push, dealer = context.socket(zmq.PUSH), context.socket(zmq.DEALER)
    push.connect(tensors)
    dealer.connect(controls)
    valid = valid_request(bundle, b"\x03" * 16)
    hello = valid_hello(bundle, "fuzz")
    chance = random.Random(1)
    print("attacking", flush=True)
    while True:
        push.send_multipart([corrupt(valid[0], chance), *valid[1:]])
        dealer.send(corrupt(hello, chance))


def beat(bundle: Bundle, controls: str) -> None:
    """Be a device that sends heartbeats as fast as the daemon takes them."""
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.identity = b"\x05" * 16
    dealer.connect(controls)
    dealer.send(valid_hello(bundle, "beat"))
    ping = control.encode(control.Ping(1))
    print("attacking", flush=True)
    while True:
        dealer.send(ping)
        while dealer.poll(0):
            dealer.recv()


def overdraw(bundle: Bundle, tensors: str, controls: str) -> None:
    """Be a device that sends requests as fast as the daemon takes them, whatever its credit."""
    context = zmq.Context()
    push, dealer = context.socket(zmq.PUSH), context.socket(zmq.DEALER)
    dealer.identity = device_id = b"\x06" * 16
    push.connect(tensors)
    dealer.connect(controls)
    dealer.send(valid_hello(bundle, "greedy"))
    dealer.recv()
    print("attacking", flush=True)
    for number in itertools.count():
        push.send_multipart(valid_request(bundle, device_id, number))
        while dealer.poll(0):
            dealer.recv_multipart()


def deaf(bundle: Bundle, tensors: str, controls: str, device_id: bytes = b"\x04" * 16) -> None:
    """Be a device that asks and never reads its answers."""
    hello = valid_hello(bundle, "deaf")
    ping = control.encode(control.Ping(1))

    def attack() -> socket.socket:
        answers = shake_hands(controls, b"DEALER", device_id)
        requests = shake_hands(tensors, b"PUSH")
        answers.sendall(frame(hello, more=False))
        print("attacking", flush=True)
        for number in range(10_000):
            first, *rest = valid_request(bundle, device_id, number)
            frames = [frame(first, more=bool(rest))]
            frames += [frame(each, more=each is not rest[-1]) for each in rest]
            requests.sendall(b"".join(frames))
            answers.sendall(frame(ping, more=False))
            time.sleep(0.002)
        return answers

    repeat(attack)


def valid_hello(bundle: Bundle, name: str) -> bytes:
    """Make a Hello that breaks no rule."""
    return control.encode(control.Hello(control.PROTOCOL_VERSION, bundle.id, name, {}))


def valid_request(bundle: Bundle, device_id: bytes, number: int = 1) -> list[bytes]:
    """Make a request that breaks no rule, of zeros."""
    nothing = request_tensors(bundle.manifest)
    payloads = [bytes(wire.payload_bytes(each.encoding, each.shape, each.pool)) for each in nothing]
    tensors = request_tensors(bundle.manifest, [len(payload) for payload in payloads])
    prefix = wire.bundle_prefix(bundle.id)
    header = wire.Header(wire.MessageKind.REQUEST, device_id, number, 5000, prefix, tensors)
    return [bytes(each) for each in wire.pack(header, payloads)]


def corrupt(valid: bytes, chance: random.Random) -> bytes:
    """Change some bytes, cut some off, or add some."""
    changed = bytearray(valid)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= chance.randrange(1, 256)
    if chance.random() < 0.2 or changed == valid:
        return bytes(changed[: chance.randrange(len(changed))])
    return bytes(changed) + (os.urandom(3) if chance.random() < 0.1 else b"")


HTTP = b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n"


def main(name: str, folder: str, tensors: str, controls: str) -> None:
    """Attack in one of the ways; see :data:`ATTACKS`."""
    ATTACKS[name](Bundle.load(Path(folder)), tensors, controls)


ATTACKS: dict[str, Callable[[Bundle, str, str], None]] = {
    "a million frames of a byte": lambda _, t, c: flood(t, b"PUSH", lambda: many(b"x", 10**6)),
    "the same at the control port": lambda _, t, c: flood(c, b"DEALER", lambda: many(b"x", 10**6)),
    "500,000 empty frames": lambda _, t, c: flood(t, b"PUSH", lambda: many(b"", 500_000)),
    "300,000 empty frames": lambda _, t, c: flood(t, b"PUSH", lambda: many(b"", 300_000)),
    "a message without end": lambda _, t, c: flood(t, b"PUSH", lambda: endless(b"x" * 1000)),
    "the same of empty frames": lambda _, t, c: flood(t, b"PUSH", lambda: endless(b"")),
    "without end at the control port": lambda _, t, c: flood(
        c, b"DEALER", lambda: endless(b"x" * 1000)
    ),
    "a frame of 1 TB": lambda _, t, c: flood(
        t, b"PUSH", lambda: [b"\x02" + (1 << 40).to_bytes(8, "big") + bytes(1 << 20)]
    ),
    "random bytes": lambda _, t, c: say([t], os.urandom(1 << 16)),
    "HTTP": lambda _, t, c: say([t, c], HTTP),
    "half of a handshake, 200 times": lambda _, t, c: hold(t, 200, GREETING[:20]),
    "500 idle connections": lambda _, t, c: hold(c, 500, b""),
    "fuzzed messages": fuzz,
    "requests over its credit": overdraw,
    "heartbeats without a pause": lambda bundle, _, c: beat(bundle, c),
    "a device that reads nothing": deaf,
}
"""What attackers do, by name; each takes the bundle and the endpoints of the two ports."""


if __name__ == "__main__":
    main(*sys.argv[1:])
