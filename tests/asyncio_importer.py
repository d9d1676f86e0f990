"""A program for test_asynchronous.py: uses a device without asyncio, and says what is imported."""

import json
import sys

import numpy as np

import scissionlite as sl

bundle, endpoint, control = sys.argv[1:]
frame = np.zeros((32, 32, 3), np.uint8)
answers = 0
with sl.Device(bundle, [endpoint], control=[control], fallback="last", deadline=60.0) as device:
    device.submit(frame).result()
    answers += 1
    answers += len(list(device.stream([frame])))
    assert device.link is not None
print(json.dumps({"imported": "asyncio" in sys.modules, "answers": answers}))
