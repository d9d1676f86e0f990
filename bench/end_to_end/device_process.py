"""The device process of the harness: the demo's ways, and those over gRPC.

Run by ``run`` as ``python -m bench.end_to_end.device_process``; the loop is that of
:mod:`scissionlite.demo.device_process`.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
import msgspec
import numpy as np
from PIL import Image

from bench.end_to_end.grpc_edge import LARGEST, METHOD, Request
from scissionlite.bundle import Bundle
from scissionlite.demo.device_process import Answered, Answering, Frame, Way, open_way, serve_turns
from scissionlite.offloader.device.inputs import check_inputs
from scissionlite.offloader.device.side import DeviceSide
from scissionlite.offloader.stopwatch import Stopwatch


class GrpcWay(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's split over gRPC, or with a quality, its network on WebP over gRPC."""

    name: str
    bundle: str
    number: int
    address: str
    slowdown: float
    webp_quality: int | None = None


class Setup(msgspec.Struct, frozen=True):
    """The start of the process: the ways, and image files."""

    ways: tuple[Way, ...]
    grpc: tuple[GrpcWay, ...]
    images: tuple[str, ...]


class GrpcAnswering:
    """Answers over a gRPC channel; one request at a time."""

    def __init__(self, way: GrpcWay, images: Sequence[str], stack: ExitStack) -> None:
        self._way = way
        bundle = Bundle.load(Path(way.bundle))
        self._manifest = bundle.manifest
        preprocessing = bundle.manifest.preprocessing
        assert preprocessing is not None
        self._frames = [preprocessing.frame(Path(image)) for image in images]
        self._side = None if way.webp_quality else DeviceSide(bundle, threads=1)
        options = [
            ("grpc.max_receive_message_length", LARGEST),
            ("grpc.max_send_message_length", LARGEST),
        ]
        channel = stack.enter_context(grpc.insecure_channel(way.address, options=options))
        self._call = channel.unary_unary(METHOD)

    def answer(self, images: Sequence[int], in_flight: int) -> list[Answered]:
        """Answer some of the images, one after the other."""
        return [self._answer_one(self._frames[image]) for image in images]

    def _answer_one(self, frame: Frame) -> Answered:
        started = time.monotonic()
        watch = Stopwatch(self._way.slowdown)
        if self._side is None:
            with watch.stage("encode"):
                buffer = io.BytesIO()
                # Method 2: the others take longer than the bytes that they save at most rates.
                quality = self._way.webp_quality
                Image.fromarray(frame).save(buffer, "WEBP", quality=quality, method=2)
            payloads: tuple[bytes, ...] = (buffer.getvalue(),)
            coded: tuple[bool, ...] = (False,)
        else:
            headers, buffers = self._side.make_request(check_inputs(self._manifest, frame), watch)
            payloads = tuple(bytes(each) for each in buffers)
            coded = tuple(header.entropy_coded for header in headers)
        request = Request(self._way.number, coded, payloads, self._side is None)
        answer = self._call(msgspec.msgpack.encode(request), timeout=120)
        np.frombuffer(answer, np.float32)
        latency = time.monotonic() - started
        timings = watch.seconds
        timings["transfer"] = latency - sum(timings.values())
        return Answered(latency, timings, sum(map(len, payloads)), "edge")


def main() -> None:
    """Run the process."""
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setup)
    with ExitStack() as stack:
        ways: dict[str, Answering] = {
            way.name: open_way(way, setup.images, stack) for way in setup.ways
        }
        for way in setup.grpc:
            ways[way.name] = GrpcAnswering(way, setup.images, stack)
        serve_turns(ways)


if __name__ == "__main__":
    main()
