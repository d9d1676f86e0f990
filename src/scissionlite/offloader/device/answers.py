"""Answers, and the inferences that they come from."""

from __future__ import annotations

from typing import Literal

import msgspec

from scissionlite.offloader.device.futures import AnswerFuture
from scissionlite.offloader.device.inputs import CheckedInputs, Output
from scissionlite.offloader.device.threads import DeviceThreads
from scissionlite.offloader.stopwatch import Stopwatch

Fallback = Literal["local", "last", "raise"]
"""What becomes of an input that no edge answers."""


class Answer(msgspec.Struct, frozen=True):
    """The answer to one input, and how it was made.

    Attributes
    ----------
    output : numpy.ndarray, tuple or dict of them
        float32, as the network itself answers: one array, a tuple, or a dict by name (dotted
        where it is nested).
    where : str
        ``"edge"`` or ``"local"``: the machine that ran the end of the network. ``"last"``: no
        machine; it is the last answer of an edge again, to an earlier input.
    latency : float
        Seconds from :meth:`.Device.submit` to the answer.
    bytes_sent : int
        Payload bytes sent, counted once even if they were sent again; 0 if none were.
    timings : dict of str to float
        Seconds, adding up to ``latency``: on the device ``preprocess``, ``device_slice``,
        ``encode``, ``local_run`` and ``wait`` (for a connection, for credit, for another
        inference of this device); at the edge ``edge_queue``, ``edge_decode``, ``edge_run``; with
        three tiers ``edge_encode``, ``relay`` (the second link), and at the next edge
        ``cloud_queue``, ``cloud_decode``, ``cloud_run``; and ``transfer``, which is the rest.
        Stages that did not happen have no entry.
    edge : str or None
        Tensor endpoint of the edge that answered, or whose last answer it is; None if it is local.
    variant : str or None
        Name of the bundle's variant that was sent; None where nothing or an image was.
    age : float
        Seconds since the edge gave the answer where it is the last one again; otherwise 0.
    """

    output: Output
    where: Literal["edge", "local", "last"]
    latency: float
    bytes_sent: int
    timings: dict[str, float]
    edge: str | None = None
    variant: str | None = None
    age: float = 0.0


class Inference(msgspec.Struct, eq=False):
    """An inference under way.

    Attributes
    ----------
    device : Device
        Held until it has its answer, so that one that is dropped still answers.
    choice : str
        Name of the variant to send, or "local".
    started, connect_by, edge_expires : float
        Monotonic times: its begin; until when to wait for a connection; until when for the edge.
    """

    device: object
    started: float
    connect_by: float
    edge_expires: float
    watch: Stopwatch
    inputs: CheckedInputs
    threads: DeviceThreads
    future: AnswerFuture[Answer]
    choice: str
    bytes_sent: int = 0
