"""Adaptation: which variant of the bundle answers the next input, or the device alone.

The latency of each choice is predicted from what was measured last:

    device slices + encode + round trip + 8 * bytes / bandwidth + queue + decode + edge slice

of which the device measures its own stages, the answers tell the edge's, and :mod:`.link_meter`
the link. A local answer takes as long as the last ones did. The choice with the least latency is
taken, with hysteresis: another must be clearly better for a while, unless the present one would
miss the deadline or take more than twice as long.

A figure that is not used grows old. The edge's queue is forgotten by halves, so that an edge that
was busy is tried again; so are seconds above the least that a choice took. The link is measured on
purpose while the requests say too little about it (:attr:`Adaptation.link_wanted`). This file knows
no sockets and no threads, and is told the time.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from scissionlite.offloader.device.link_meter import LinkEstimate

LOCAL = "local"
"""Name of the choice to answer on the device alone."""

GAIN = 0.1
"""Share of the present choice's latency that another must save ..."""

PATIENCE = 0.5
"""... for so many seconds, until it is taken."""

MUCH_WORSE = 2.0
"""A choice that takes this many times as long as the best is left at once."""

MOST_SWITCHES = 100
"""Switches that the report keeps."""

_WEIGHT = 0.25  # of a new measurement in an average
_SPIKE = 2.0  # times the average, above which a measurement is taken for a disturbance
_HALF_LIFE = 30.0  # seconds after which half of what an average is above its least is forgotten
_QUEUE_HALF_LIFE = 5.0  # seconds
_TELLING_SECONDS = 0.02  # on the link: a shorter transfer says little about the rate


class Switch(msgspec.Struct, frozen=True):
    """A change from one choice to another, and the figures that it was made on.

    Attributes
    ----------
    time : float
        Seconds since the epoch.
    source, target : str
        Names of variants, or "local".
    link : LinkEstimate or None
        The link as it was measured.
    queue : float
        Seconds that requests wait at the edge.
    predicted : dict of str to float
        Predicted latency of every choice in seconds.
    reason : str
        A sentence.
    """

    time: float
    source: str
    target: str
    link: LinkEstimate | None
    queue: float
    predicted: dict[str, float]
    reason: str

    def __str__(self) -> str:
        """A line for logs."""
        clock = time.strftime("%H:%M:%S", time.localtime(self.time))
        rate = "" if self.link is None else f" at {self.link.bandwidth / 1e6:.2f} Mbit/s"
        return f"{clock} {self.source} -> {self.target}{rate}: {self.reason}"


class AdaptationReport(msgspec.Struct, frozen=True):
    """The present choice, its predictions in seconds, and the last switches, oldest first."""

    choice: str
    predicted: dict[str, float]
    switches: tuple[Switch, ...]


class Costs(msgspec.Struct, frozen=True):
    """A choice, and what one input costs with it, as far as that is known beforehand.

    Attributes
    ----------
    name : str
        Of the variant, or "local".
    device : float
        Seconds on the device: slices and encoding, or the whole network.
    nbytes : float
        Payload bytes of a request.
    edge : float or None
        Seconds at the edge without the queue; None before the first answer.
    """

    name: str
    device: float
    nbytes: float = 0.0
    edge: float | None = None


class _Average:
    """An average of seconds. One spike hardly moves it, and the older it is, the less it holds.

    A choice that was slow once would otherwise be avoided for ever, since nothing measures it.
    """

    def __init__(self, seconds: float) -> None:
        self._value = self._least = seconds
        self._at = -math.inf

    def add(self, seconds: float, now: float) -> None:
        """Take a measurement; it counts as twice the average at most."""
        value = self.at(now)
        if value > 0:
            seconds = min(seconds, _SPIKE * value)
        self._value, self._at = value + _WEIGHT * (seconds - value), now
        self._least = min(self._least, self._value)

    def at(self, now: float) -> float:
        """The average at a monotonic time: it nears the least one that there was."""
        share = math.pow(0.5, (now - self._at) / _HALF_LIFE)
        return self._least + share * (self._value - self._least)


class _Figures:
    """The averages of a choice: device, edge (None before the first answer), and bytes."""

    def __init__(self, costs: Costs) -> None:
        self.device = _Average(costs.device)
        self.edge = None if costs.edge is None else _Average(costs.edge)
        self.nbytes = costs.nbytes


class Adaptation:
    """Chooses for each input; of one thread at a time.

    Parameters
    ----------
    choices
        The choices, the preferred one first, with costs measured or estimated beforehand. One may
        be named "local".

    Attributes
    ----------
    choice : str
        Name of the present choice.
    link_wanted : bool
        Whether the link is to be measured on purpose, as requests say too little about it.
    """

    def __init__(self, choices: Sequence[Costs]) -> None:
        self._figures = {each.name: _Figures(each) for each in choices}
        self.choice = choices[0].name
        self.link_wanted = False
        self._queue, self._queue_at = 0.0, -math.inf
        self._better_since = math.inf
        self._predicted: dict[str, float] = {}
        self._switches: deque[Switch] = deque(maxlen=MOST_SWITCHES)

    @property
    def several(self) -> bool:
        """Whether there is a choice."""
        return len(self._figures) > 1

    def choose(self, now: float, link: LinkEstimate | None, deadline: float, clock: float) -> str:
        """Choose for an input.

        Parameters
        ----------
        now
            Monotonic time.
        link
            The link as it was measured; before that the preferred choice is taken.
        deadline
            Seconds until the answer is due.
        clock
            Seconds since the epoch, for the report.

        Returns
        -------
        str
            Name of the choice.
        """
        if not self.several:
            return self.choice
        if link is None:
            # The preferred one shows the link, or that there is none.
            self._switch(clock, next(iter(self._figures)), None, now, "the link is not measured")
            return self.choice
        self._predicted = predicted = self.predict(now, link)
        best = min(predicted, key=lambda name: predicted[name])
        reason = self._reason(now, predicted, best, deadline)
        if reason:
            self._switch(clock, best, link, now, reason)
        self.link_wanted = self._says_little(link)
        return self.choice

    def predict(self, now: float, link: LinkEstimate) -> dict[str, float]:
        """Predict the latency of each choice, in seconds."""
        queue = self._queue_now(now)
        every = self._figures
        known = [each.edge.at(now) for each in every.values() if each.edge is not None]
        predicted = {}
        for name, figures in every.items():
            device = figures.device.at(now)
            if name == LOCAL:
                predicted[name] = device
                continue
            # One that was never tried gets the benefit of the doubt.
            edge = min(known, default=0.0) if figures.edge is None else figures.edge.at(now)
            transfer = link.rtt + 8 * figures.nbytes / link.bandwidth
            predicted[name] = device + transfer + queue + edge
        return predicted

    def answered(self, name: str, nbytes: int, seconds: Mapping[str, float], now: float) -> None:
        """Take the timings of an answer: those of :attr:`.Answer.timings`."""
        figures = self._figures.get(name)
        if figures is None or not self.several:
            return
        if name == LOCAL:
            figures.device.add(seconds.get("local_run", 0.0), now)
            return
        figures.device.add(seconds.get("device_slice", 0.0) + seconds.get("encode", 0.0), now)
        figures.nbytes += _WEIGHT * (nbytes - figures.nbytes)
        edge = seconds.get("edge_decode", 0.0) + seconds.get("edge_run", 0.0)
        if figures.edge is None:
            figures.edge = _Average(edge)
        figures.edge.add(edge, now)
        queue = self._queue_now(now)
        self._queue = queue + _WEIGHT * (seconds.get("edge_queue", 0.0) - queue)
        self._queue_at = now

    def report(self) -> AdaptationReport:
        """Return the present choice, the last predictions and the last switches."""
        return AdaptationReport(self.choice, dict(self._predicted), tuple(self._switches))

    def _switch(
        self, clock: float, target: str, link: LinkEstimate | None, now: float, reason: str
    ) -> None:
        """Take another choice, and note it for the report."""
        self._better_since = math.inf
        if target == self.choice:
            return
        predicted, queue = dict(self._predicted), self._queue_now(now)
        self._switches.append(Switch(clock, self.choice, target, link, queue, predicted, reason))
        self.choice = target

    def _reason(
        self, now: float, predicted: Mapping[str, float], best: str, deadline: float
    ) -> str:
        """Say why to switch to the best choice now; empty to stay."""
        present, least = predicted[self.choice], predicted[best]
        if best == self.choice or least >= (1 - GAIN) * present:
            self._better_since = math.inf
            return ""
        self._better_since = min(self._better_since, now)
        figures = f"{1000 * least:.1f} ms instead of {1000 * present:.1f} ms"
        if present > deadline >= least:
            return f"{self.choice} would miss the deadline of {deadline:g} s: {figures}"
        if present > MUCH_WORSE * least:
            return f"more than {MUCH_WORSE:g} times as fast: {figures}"
        if now - self._better_since >= PATIENCE:
            return f"faster for {now - self._better_since:.1f} s: {figures}"
        return ""

    def _says_little(self, link: LinkEstimate) -> bool:
        """Whether the choice sends so little that a faster link might go unnoticed."""
        nbytes = self._figures[self.choice].nbytes
        if all(each.nbytes <= nbytes for each in self._figures.values()):
            return False
        return 8 * nbytes / link.bandwidth < _TELLING_SECONDS + link.rtt / 4

    def _queue_now(self, now: float) -> float:
        """Seconds that a request waits at the edge: the older the figure, the less."""
        return self._queue * math.pow(0.5, (now - self._queue_at) / _QUEUE_HALF_LIFE)
