"""Tally: what becomes of the requests of each group, counted. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scissionlite.fleet.inventory import Inventory
from scissionlite.fleet.station import Floats

EDGE, LOCAL, LOST, LATE = range(4)
"""The counts of a group: answers of edges and of devices, requests that nobody answered, and
requests whose deadline passed."""


class Tally:
    """Counts what becomes of the requests of each group.

    Attributes
    ----------
    counts
        Of each group: :data:`EDGE`, :data:`LOCAL`, :data:`LOST` and :data:`LATE`.
    """

    def __init__(self, inventory: Inventory) -> None:
        groups = range(len(inventory.devices))
        self.counts = [[0, 0, 0, 0] for _ in groups]
        self._latencies: list[list[npt.NDArray[np.float32]]] = [[] for _ in groups]
        self._deadlines = [each.deadline for each in inventory.devices]

    def latencies(self, group: int) -> npt.NDArray[np.float32]:
        """Seconds from frame to answer, of all that were answered."""
        return np.concatenate([np.empty(0, np.float32), *self._latencies[group]])

    def edge_answers(self, group: int, latencies: Floats) -> None:
        """Count answers of an edge, which came in time."""
        self._add(group, EDGE, latencies)

    def local_answers(self, group: int, latencies: Floats) -> None:
        """Count answers of the devices themselves."""
        self._add(group, LOCAL, latencies)
        self.counts[group][LATE] += int((latencies > self._deadlines[group] * (1 + 1e-9)).sum())

    def lose(self, group: int, number: int) -> None:
        """Count requests that nobody answers."""
        self.counts[group][LOST] += number
        self.counts[group][LATE] += number

    def _add(self, group: int, what: int, latencies: Floats) -> None:
        if len(latencies):
            self.counts[group][what] += len(latencies)
            self._latencies[group].append(latencies.astype(np.float32))
