"""Link: the connection between device and edge, as a round trip and two rates. No torch.

A :class:`Link` comes from figures, from a CSV file in Scission's form (:func:`read_links`), from a
measurement (:mod:`scissionlite.scissiontl.probe`), or from :data:`PRESETS`:

========  ==========  =============  =============  ===============================================
preset    round trip  upload         download       source
========  ==========  =============  =============  ===============================================
2G        800 ms      256 kbit/s     280 kbit/s     WebPageTest, connectivity.ini.sample, "2G"
3G        300 ms      768 kbit/s     1.6 Mbit/s     the same, "3G"
4G        170 ms      9 Mbit/s       9 Mbit/s       the same, "4G"
5G        8 ms        50 Mbit/s      100 Mbit/s     Report ITU-R M.2410-0 (2017): what 5G is to
                                                    give a user in a dense city, 4.3, and twice the
                                                    4 ms one way over the radio alone, 4.7.1
Wi-Fi     2 ms        15 Mbit/s      30 Mbit/s      Firefox, network throttling, "Wi-Fi"
Ethernet  0.5 ms      1 Gbit/s       1 Gbit/s       IEEE 802.3, 1000BASE-T; the round trip within a
                                                    data centre of J. Dean, "Designs, Lessons and
                                                    Advice from Building Large Distributed
                                                    Systems", LADIS 2009
========  ==========  =============  =============  ===============================================

A preset describes a typical link. Where the real link exists already, measure it instead.
"""

from __future__ import annotations

import csv
import re
from decimal import Decimal, DecimalException
from pathlib import Path
from typing import TypeAlias

import msgspec

from scissionlite.atomic_folder import atomic_file
from scissionlite.errors import PlanError

LinkTable: TypeAlias = "dict[tuple[str, str], Link]"
"""Links by the names of source and destination."""

_UNITS = {"bit": 0, "kbit": 3, "mbit": 6, "gbit": 9}  # powers of ten
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_RATE = rf"(?P<{{0}}>{_NUMBER})\s*(?P<{{0}}_unit>[kMG]?bit)(?:/s)?"
_SEPARATOR = r"\s*[,/]\s*"
_FORM = re.compile(
    _RATE.format("up")
    + _SEPARATOR
    + rf"(?P<rtt>{_NUMBER})\s*ms"
    + f"(?:{_SEPARATOR}{_RATE.format('down')}(?:\\s*down)?)?",
    re.IGNORECASE,
)
_COLUMNS = ("source", "destination", "ping(ms)", "bandwidth(Mbps)")
_DOWNLOAD = "download(Mbps)"


class Link(msgspec.Struct, frozen=True):
    """A link between two machines.

    Parameters
    ----------
    rtt
        Round-trip time in seconds.
    bandwidth
        Upload rate in bit/s.
    download
        Rate of the answers in bit/s; None means the upload's rate.

    Raises
    ------
    PlanError
        If the round trip is negative or a rate not positive.
    """

    rtt: float
    bandwidth: float
    download: float | None = None

    def __post_init__(self) -> None:
        rates = (self.bandwidth, self.bandwidth if self.download is None else self.download)
        if not (0 <= self.rtt < float("inf")) or not all(0 < r < float("inf") for r in rates):
            raise PlanError(
                "a link needs a round trip of 0 s or more and rates above 0 bit/s, got a round "
                f"trip of {self.rtt} s, and {' and '.join(map(str, dict.fromkeys(rates)))} bit/s"
            )

    @classmethod
    def parse(cls, text: str) -> Link:
        """Read a link from text, as the command line takes it.

        Parameters
        ----------
        text
            ``"58.8Mbit/27.4ms"``, upload and round trip; ``"15Mbit/2ms/30Mbit"``, with the
            download; or a preset's name, such as ``"4G"``, in upper or lower case.

        Raises
        ------
        PlanError
            If it is none of these.
        """
        if (preset := _BY_NAME.get(_plain(text))) is not None:
            return preset.link
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise PlanError(
                f"{text!r} is no link: write RATE/RTT, such as 58.8Mbit/27.4ms, or one of "
                f"{', '.join(PRESETS)}"
            )
        return cls(
            rtt=_scaled(found["rtt"], -3),
            bandwidth=_scaled(found["up"], _UNITS[found["up_unit"].lower()]),
            download=_scaled(found["down"], _UNITS[found["down_unit"].lower()])
            if found["down"]
            else None,
        )

    def __str__(self) -> str:
        down = "" if self.download is None else f", {self.download / 1e6:g} Mbit/s down"
        return f"{self.bandwidth / 1e6:g} Mbit/s, {self.rtt * 1e3:g} ms{down}"

    def transfer_time(self, nbytes: int, answer_bytes: int = 0) -> float:
        """Seconds from sending ``nbytes`` until an answer of ``answer_bytes`` is back.

        ScissionTL's cost model: one round trip, plus the bytes of each direction at its rate.
        """
        answer = answer_bytes * 8 / (self.download or self.bandwidth)
        return self.rtt + nbytes * 8 / self.bandwidth + answer


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """A typical link: round trip in seconds, rates in bit/s, and the source of the figures."""

    rtt: float
    bandwidth: float
    download: float
    source: str

    @property
    def link(self) -> Link:
        """The preset as a link."""
        return Link(self.rtt, self.bandwidth, self.download)


_WEBPAGETEST = "github.com/WPO-Foundation/webpagetest, www/settings/connectivity.ini.sample"

PRESETS: dict[str, Preset] = {
    "2G": Preset(rtt=0.8, bandwidth=256e3, download=280e3, source=f"{_WEBPAGETEST}, 2G"),
    "3G": Preset(rtt=0.3, bandwidth=768e3, download=1.6e6, source=f"{_WEBPAGETEST}, 3G"),
    "4G": Preset(rtt=0.17, bandwidth=9e6, download=9e6, source=f"{_WEBPAGETEST}, 4G"),
    "5G": Preset(
        rtt=0.008,
        bandwidth=50e6,
        download=100e6,
        source="Report ITU-R M.2410-0 (2017), 4.3 (user experienced data rate) and twice 4.7.1 "
        "(user plane latency, radio alone)",
    ),
    "Wi-Fi": Preset(
        rtt=0.002,
        bandwidth=15e6,
        download=30e6,
        source="Firefox Developer Tools, network throttling, Wi-Fi",
    ),
    "Ethernet": Preset(
        rtt=0.0005,
        bandwidth=1e9,
        download=1e9,
        source="IEEE 802.3, 1000BASE-T; round trip: J. Dean, LADIS 2009, within a data centre",
    ),
}
"""Typical links by name; this module's docstring has them as a table."""


def read_links(path: str | Path) -> LinkTable:
    """Read links from a CSV file in Scission's form.

    The header is ``source,destination,ping(ms),bandwidth(Mbps)``. The ping is the round trip, the
    bandwidth is the upload's from source to destination. A fifth column ``download(Mbps)``, which
    Scission does not have, may be missing, as may its values. Spaces around names and values do
    not matter.

    Returns
    -------
    dict of (str, str) to Link
        By source and destination, in the file's order.

    Raises
    ------
    PlanError
        If the file cannot be read or a line is wrong; the message names the line.
    """
    links: LinkTable = {}
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if tuple(header) not in (_COLUMNS, (*_COLUMNS, _DOWNLOAD)):
                raise PlanError(
                    f"{path}, line 1: expected the header {','.join(_COLUMNS)} (and perhaps "
                    f"{_DOWNLOAD}), got {','.join(header) or 'nothing'}"
                )
            for row in rows:
                if not any(value.strip() for value in row):
                    continue
                try:
                    key, link = _read_row([value.strip() for value in row], len(header))
                except PlanError as error:
                    raise PlanError(f"{path}, line {rows.line_num}: {error}") from None
                if key in links:
                    raise PlanError(
                        f"{path}, line {rows.line_num}: a second link from {key[0]} to {key[1]}"
                    )
                links[key] = link
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is not CSV: {error}") from error
    return links


def write_links(path: str | Path, links: LinkTable) -> None:
    """Write links so that :func:`read_links` reads exactly the same links.

    The column of the download is written if a link has one.

    Raises
    ------
    PlanError
        If a name cannot stand in a line, or the file cannot be written.
    """
    with_download = any(link.download is not None for link in links.values())
    rows = [[*_COLUMNS, *([_DOWNLOAD] if with_download else [])]]
    for (source, destination), link in links.items():
        for name in (source, destination):
            if not name or name != name.strip() or not name.isprintable():
                raise PlanError(
                    f"{name!r} cannot name a machine: it is empty, has spaces around it, or "
                    "characters that are not printed"
                )
        row = [source, destination, _written(link.rtt, 3), _written(link.bandwidth, -6)]
        if with_download:
            row.append("" if link.download is None else _written(link.download, -6))
        rows.append(row)
    try:
        with atomic_file(path) as written, written.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    except OSError as error:
        raise PlanError(f"{path} cannot be written: {error.strerror}") from error


def _read_row(row: list[str], columns: int) -> tuple[tuple[str, str], Link]:
    if len(row) != columns:
        raise PlanError(f"{len(row)} values, the header has {columns}")
    source, destination, ping, bandwidth, *rest = row
    if not source or not destination:
        raise PlanError("the source or the destination is empty")
    download = _scaled(rest[0], 6) if rest and rest[0] else None
    return (source, destination), Link(_scaled(ping, -3), _scaled(bandwidth, 6), download)


def _scaled(text: str, power: int) -> float:
    # In decimals: 27.4 ms are 0.0274 s to the last bit, and what is written is what is read.
    try:
        return float(Decimal(text).scaleb(power))
    except DecimalException:
        raise PlanError(f"{text!r} is not a number") from None


def _written(value: float, power: int) -> str:
    return f"{Decimal(repr(value)).scaleb(power).normalize():f}"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


_BY_NAME = {_plain(name): preset for name, preset in PRESETS.items()}
