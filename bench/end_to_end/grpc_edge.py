"""The edge of the transport peer: gRPC with raw bytes, and WebP, which the Offloader does not send.

    python -m bench.end_to_end.grpc_edge BUNDLE...

Each bundle's edge side answers as in the daemon, one request at a time. A request is MessagePack:
the bundle's number, whether each payload is entropy-coded, and the payloads.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import msgspec
import numpy as np
import torch
from PIL import Image

from scissionlite.bundle import Bundle
from scissionlite.offloader.bundle_tensors import request_tensors
from scissionlite.offloader.edge.side import EdgeSide
from scissionlite.offloader.stopwatch import Stopwatch

METHOD = "/scissionlite.EndToEnd/Answer"
LARGEST = 256 << 20


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A request; ``webp``: the payload is a picture of a format that the manifest has not."""

    bundle: int
    coded: tuple[bool, ...]
    payloads: tuple[bytes, ...]
    webp: bool = False


class Edge:
    """The edge sides of some bundles."""

    def __init__(self, bundles: list[Bundle]) -> None:
        self._bundles = bundles
        self._sides = [EdgeSide(bundle, threads=1) for bundle in bundles]
        self._lock = threading.Lock()

    def answer(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        """Answer one request with the bytes of the network's first output."""
        decoded = msgspec.msgpack.decode(request, type=Request)
        side, manifest = self._sides[decoded.bundle], self._bundles[decoded.bundle].manifest
        with self._lock:
            if decoded.webp:
                assert manifest.preprocessing is not None
                picture = Image.open(io.BytesIO(decoded.payloads[0]), formats=("WEBP",))
                frame = np.asarray(picture.convert("RGB"))
                outputs = side.run(manifest.preprocessing.tensor(frame))
            else:
                sizes = [len(payload) for payload in decoded.payloads]
                headers = request_tensors(manifest, sizes, entropy_coded=decoded.coded)
                payloads = [memoryview(payload) for payload in decoded.payloads]
                outputs = side.answer(headers, payloads, Stopwatch())
        return outputs[0].tobytes()


def main(folders: list[str]) -> None:
    """Serve until the process is ended; the first line says on which port."""
    torch.set_num_threads(1)
    edge = Edge([Bundle.load(Path(folder)) for folder in folders])
    options = [
        ("grpc.max_receive_message_length", LARGEST),
        ("grpc.max_send_message_length", LARGEST),
    ]
    server = grpc.server(ThreadPoolExecutor(2), options=options)
    service, method = METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(edge.answer)
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {method: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"port": port}), flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1:])
