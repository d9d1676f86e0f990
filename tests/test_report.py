"""The report and its figures."""

from __future__ import annotations

import itertools
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from profiles import JPEG, written

import scissionlite as sl
from scissionlite.demo.comparison import Row
from scissionlite.demo.figure import draw
from scissionlite.scissiontl.figures import LINES, pareto_figure, split_figure
from scissionlite.scissiontl.planner import pareto
from scissionlite.scissiontl.report import write_report

LINK = sl.Link(rtt=0.010, bandwidth=8e6)


class Page(HTMLParser):
    """The page as a browser sees it: open tags, text, and every address that it would fetch."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "dd"):
            self.cells.append(data)


@pytest.fixture
def profiles() -> tuple[sl.Profile, sl.Profile]:
    device = written("<pi> & co", images=(JPEG,), latencies=(0.01, 0.02, 0.03))
    return device, written("edge", (0.001, 0.002, 0.003), images=(JPEG,))


def test_the_report_stands_alone_and_lists_the_plans(
    profiles: tuple[sl.Profile, sl.Profile], tmp_path: Path
) -> None:
    constraints = sl.Constraints(max_leakage=0.95)
    every = sl.plan(*profiles, LINK)
    plans = sl.plan(*profiles, LINK, constraints=constraints)
    path = tmp_path / "report.html"
    write_report(
        path,
        plans,
        profiles,
        str(LINK),
        constraints=constraints,
        every=every,
        best_private=plans[0],
        top=1,
    )
    page = Page(path.read_text())
    assert len(page.fetched) == 2
    assert all(each.startswith("data:image/png;base64,") for each in page.fetched)
    assert "http" not in path.read_text()
    shown = set(page.cells)
    assert "<pi> & co to edge" in shown  # escaped, and read back
    assert "max_leakage 0.95" in shown
    for each in pareto(plans):
        assert f"{each.predicted.latency * 1e3:.1f}" in shown


def test_the_figure_shows_every_slicing_point_and_marks_the_best(
    profiles: tuple[sl.Profile, sl.Profile],
) -> None:
    every = sl.plan(*profiles, LINK)
    private = sl.plan(*profiles, LINK, constraints=sl.Constraints(max_leakage=0.95))[0]
    axes = split_figure(every, private).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["b0", "b1"]
    ours = {p.slicing_point: p for p in every if p.spec == sl.TransferSpec()}
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    tops = [max(bar.get_y() + bar.get_height() for bar in bars[i::2]) for i in range(2)]
    assert tops == pytest.approx([ours[b].predicted.latency * 1e3 for b in ("b0", "b1")])
    labels = axes.get_legend_handles_labels()[1]
    assert f"best:\n{every[0].label}" in labels
    assert any(label.startswith("best under the privacy constraint:") for label in labels)
    assert {"local", "JPEG-75 image", "float32 split"} <= set(labels)


def test_the_best_plans_codec_has_a_line_and_no_two_lines_look_alike(
    profiles: tuple[sl.Profile, sl.Profile],
) -> None:
    rare = msgspec.structs.replace(sl.TransferSpec(pool=4, dtype="int4"), levels=9, entropy="zstd")
    measured = [
        msgspec.structs.replace(
            profile,
            transfers=tuple(
                msgspec.structs.replace(each, spec=spec, nbytes=nbytes)
                for each in profile.transfers
                if each.spec == sl.TransferSpec()
                for spec, nbytes in ((rare, 10), *((line, 2000) for line in LINES))
            ),
        )
        for profile in profiles
    ]
    every = [each for each in sl.plan(measured[0], measured[1], LINK) if each.kind != "image"]
    assert every[0].spec == rare
    axes = split_figure(every).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert {rare.label, *(spec.label for spec in LINES)} <= set(lines)
    line = lines[rare.label]
    by_block = sorted(
        (p.predicted.device_blocks, p.predicted.latency * 1e3) for p in every if p.spec == rare
    )
    assert np.asarray(line.get_ydata()) == pytest.approx([latency for _, latency in by_block])
    looks = {(to_hex(each.get_color()), each.get_linestyle()) for each in lines.values()}
    assert len(looks) == len(lines)
    for one, other in itertools.combinations({colour for colour, _ in looks}, 2):
        assert np.abs(np.subtract(to_rgb(one), to_rgb(other))).sum() > 0.5, (one, other)


def test_leakage_has_a_panel_where_it_was_measured(
    profiles: tuple[sl.Profile, sl.Profile],
) -> None:
    assert len(pareto_figure(sl.plan(*profiles, LINK)).axes) == 2
    unmeasured = written(leakages=())
    assert len(pareto_figure(sl.plan(unmeasured, written("edge"), LINK)).axes) == 1


def test_the_accuracy_axis_of_the_demo_ends_at_100_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    rows = [
        Row(
            link=sl.Link(0.01, 1e6),
            configuration=name,
            slicing_point=None,
            predicted=0.03,
            median=0.03,
            p95=0.04,
            sent_bytes=1000,
            float32_bytes=None,
            accuracy=accuracy,
            images=3,
        )
        for name, accuracy in (("local", 1.0), ("int8 TL (ours)", 0.98))
    ]
    draw(rows, "a network", tmp_path / "comparison.png")
    assert drawn[0].axes[2].get_xlim() == (95, 100)
