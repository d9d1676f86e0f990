"""The picture of the daemon's page in docs/daemon.md: ``python -m bench.page_picture``.

A daemon with a small network, and in another process four devices that send it inputs at rates
which rise and fall, two of them over slow links (the relay). In the end headless Chromium takes the
picture. ``--out`` is the file, ``--seconds`` how long the devices send.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser  # noqa: E402  # tests/ is on the path of pytest alone
from bundles import Toy, write_bundle  # noqa: E402

import scissionlite as sl  # noqa: E402
from scissionlite.demo.link_emulator import LinkEmulator  # noqa: E402

SHAPE, CROSSING = (1, 3, 128, 128), (1, 16, 64, 64)
DEVICES = {  # requests a second, about; round trip in seconds and bit/s of a link that is relayed
    "camera 1, press": (16.0, None),
    "camera 2, press": (12.0, None),
    "camera 3, gate": (6.0, (0.010, 50e6)),
    "camera 4, yard": (3.0, (0.040, 10e6)),
}
PERIOD = 120.0  # seconds in which the rates rise and fall
SIZE = 1200, 1500  # pixels


def main() -> None:
    """Serve, have the devices send, and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "daemon-page.png")
    parser.add_argument("--seconds", type=float, default=180.0)
    options = parser.parse_args()
    begin = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
    end = nn.Sequential(nn.Conv2d(16, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    toy = Toy("camera-network", begin, nn.Sequential(end, nn.Flatten()), SHAPE, CROSSING, (1, 64))
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        quantization = sl.Quantization(0.02, 0)
        bundle = write_bundle(toy, folder, transfer=sl.TransferSpec(), quantization=quantization)
        edge = opened.enter_context(
            sl.EdgeServer(bundle, "tcp://127.0.0.1:*", page=":*", name="Line 4 edge", threads=1)
        )
        ports = [int(each.rpartition(":")[2]) for each in (edge.endpoint, edge.control_endpoint)]
        spawn = multiprocessing.get_context("spawn")
        seconds = options.seconds
        cameras = spawn.Process(target=send_all, args=(bundle.path, ports, seconds), daemon=True)
        cameras.start()
        browser = opened.enter_context(Browser(folder / "browser"))
        browser.open(edge.page, width=SIZE[0], height=SIZE[1])
        time.sleep(seconds)
        assert not browser.console, browser.console
        browser.picture().convert("RGB").quantize(128).save(options.out, optimize=True)
        cameras.join()


def send_all(bundle: Path, ports: list[int], seconds: float) -> None:
    """Be all the devices, each in a thread; in a process of its own. They outlive the picture."""
    until = time.monotonic() + seconds + 10
    with ExitStack() as opened:
        threads = []
        for name, (rate, link) in DEVICES.items():
            reached = ports
            if link is not None:
                forwards = [(0, "127.0.0.1", port) for port in ports]
                reached = opened.enter_context(LinkEmulator(forwards, *link)).ports
            tensors, control = (f"tcp://127.0.0.1:{port}" for port in reached)
            device = sl.Device(bundle, tensors, control=control, name=name, threads=1)
            opened.enter_context(device)
            threads.append(threading.Thread(target=send, args=(device, rate, until)))
        for each in threads:
            each.start()
        for each in threads:
            each.join()


def send(device: sl.Device, rate: float, until: float) -> None:
    """Send inputs until a monotonic time."""
    x = np.random.default_rng(1).standard_normal(SHAPE, dtype=np.float32)
    while (now := time.monotonic()) < until:
        device.infer(x)
        time.sleep(1 / (rate * (1.2 + math.sin(2 * math.pi * now / PERIOD))))


if __name__ == "__main__":
    main()
