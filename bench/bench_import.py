"""Time of a device's start: ``import scissionlite; scissionlite.Device`` in a fresh interpreter.

The reference imports NumPy and ZeroMQ. Both interpreters run in turns. A device imports its
connection (ZeroMQ, the messages) when it is made for an edge; the second case includes that.
"""

from __future__ import annotations

import os
import subprocess
import sys

from bench.conftest import Measure

DEVICE = "import scissionlite; scissionlite.Device"
CONNECTED = f"{DEVICE}; import scissionlite.offloader.device.connection"
REFERENCE = "import numpy, zmq"

# The modules of an installed package are compiled. Those of an editable install are compiled at the
# first import, unless this variable forbids that Python keeps the result.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}


def python(program: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    return process.stdout


def test_import(measure: Measure) -> None:
    assert python(f"{DEVICE}; print(scissionlite.Device)").startswith("<class 'scissionlite.")
    assert python(f"{REFERENCE}; print(zmq.__name__)") == "zmq\n"
    measure(
        "start of a device",
        DEVICE,
        lambda: python(DEVICE),
        lambda: python(REFERENCE),
        REFERENCE,
        bar=("start of a device", "at most", 1.25),
    )


def test_import_with_the_connection(measure: Measure) -> None:
    assert python(f"{CONNECTED}; import sys; print('zmq' in sys.modules)") == "True\n"
    measure(
        "start of a device for an edge",
        CONNECTED,
        lambda: python(CONNECTED),
        lambda: python(REFERENCE),
        REFERENCE,
    )
