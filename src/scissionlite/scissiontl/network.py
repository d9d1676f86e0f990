"""The network between device and edge, as ScissionTL sees it: a round trip and a rate."""

from __future__ import annotations

import re

import msgspec

from scissionlite.errors import PlanError

_UNITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_FORM = re.compile(
    r"(?P<rate>\d+(?:\.\d+)?)\s*(?P<unit>[kMG]?bit)(?:/s)?\s*[,/]\s*(?P<rtt>\d+(?:\.\d+)?)\s*ms",
    re.IGNORECASE,
)


class Link(msgspec.Struct, frozen=True):
    """A network link.

    Parameters
    ----------
    rtt
        Round-trip time in seconds.
    bandwidth
        Upload rate in bit/s.

    Raises
    ------
    PlanError
        If the round trip is negative or the bandwidth not positive.
    """

    rtt: float
    bandwidth: float
    download: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.rtt < float("inf")) or not (0 < self.bandwidth < float("inf")):
            raise PlanError(
                "a link needs rtt >= 0 in seconds and bandwidth > 0 in bit/s, "
                f"got rtt={self.rtt}, bandwidth={self.bandwidth}"
            )

    @classmethod
    def parse(cls, text: str) -> Link:
        """Read a link as the command line writes it: ``"58.8Mbit/27.4ms"``."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise PlanError(f"{text!r} is no link: write RATE/RTT, such as 58.8Mbit/27.4ms")
        return cls(
            rtt=float(found["rtt"]) / 1e3,
            bandwidth=float(found["rate"]) * _UNITS[found["unit"].lower()],
        )

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e6:g} Mbit/s, {self.rtt * 1e3:g} ms"

    def transfer_time(self, nbytes: int, answer_bytes: int = 0) -> float:
        """Seconds from sending ``nbytes`` to having the (small) answer back.

        ScissionTL's cost model: one round trip, plus the bytes at the link's rate.
        """
        back = answer_bytes * 8 / (self.download or self.bandwidth)
        return self.rtt + nbytes * 8 / self.bandwidth + back
