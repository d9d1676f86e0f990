"""Links: from figures, from presets, and from CSV files in Scission's form."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

import scissionlite as sl
from scissionlite.cli.link_options import parse_link, parse_links
from scissionlite.errors import PlanError
from scissionlite.scissiontl.link import PRESETS, LinkTable, read_links, write_links

HEADER = "source,destination,ping(ms),bandwidth(Mbps)\n"

RATES = st.floats(1e-3, 1e13)
LINKS = st.builds(sl.Link, st.floats(0, 1e5), RATES, st.none() | RATES)
# Printable, as str.isprintable defines it: no "Other", no "Separator" but the space.
PRINTABLE = st.characters(exclude_categories=["C", "Z"]) | st.just(" ")
NAMES = st.text(PRINTABLE, min_size=1).map(str.strip).filter(bool)


@pytest.mark.parametrize(
    ("text", "rtt", "bandwidth", "download"),
    [
        ("58.8Mbit/27.4ms", 0.0274, 58.8e6, None),
        ("4 Mbit/s / 60 ms", 0.060, 4e6, None),
        ("1Gbit, 0.5ms", 0.0005, 1e9, None),
        ("250kbit/300ms", 0.3, 250e3, None),
        ("15Mbit/2ms/30Mbit", 0.002, 15e6, 30e6),
        ("9 Mbit/s, 170 ms, 900 kbit/s down", 0.17, 9e6, 9e5),
        ("2e-05Mbit/1e3ms", 1.0, 20.0, None),
    ],
)
def test_links_are_read_as_written(
    text: str, rtt: float, bandwidth: float, download: float | None
) -> None:
    link = sl.Link.parse(text)
    assert link == sl.Link(rtt, bandwidth, download)
    assert sl.Link.parse(str(link)) == link
    assert sl.Link.parse(str(link).replace("Mbit/s,", "Mbit/")) == link


def test_links_that_cannot_be() -> None:
    for text in ("fast", "4Mbyte/60ms", "4Mbit", "-4Mbit/60ms", "6G", "", "1Mbit/2ms/3ms"):
        with pytest.raises(PlanError, match="is no link"):
            sl.Link.parse(text)
    with pytest.raises(PlanError, match="is not a number"):
        sl.Link.parse("1e9999999999Mbit/1ms")
    for rtt, bandwidth in ((-1, 1e6), (0.01, 0), (float("nan"), 1e6), (0.1, float("inf"))):
        with pytest.raises(PlanError, match="a link needs"):
            sl.Link(rtt, bandwidth)
    for download in (0.0, -1.0, float("nan")):
        with pytest.raises(PlanError, match="a link needs"):
            sl.Link(0.01, 1e6, download)


def test_a_transfer_takes_the_round_trip_and_each_way_its_bytes() -> None:
    assert sl.Link(0.01, 8e6).transfer_time(1000) == pytest.approx(0.011)
    assert sl.Link(0.01, 8e6).transfer_time(1000, 500) == pytest.approx(0.0115)
    assert sl.Link(0.01, 8e6, 8e5).transfer_time(1000, 500) == pytest.approx(0.016)


def test_presets_are_read_by_name_and_say_their_source() -> None:
    assert list(PRESETS) == ["2G", "3G", "4G", "5G", "Wi-Fi", "Ethernet"]
    for name, preset in PRESETS.items():
        assert preset.source
        for text in (name, name.lower(), f" {name.upper()} "):
            assert sl.Link.parse(text) == preset.link
    assert sl.Link.parse("wifi") == sl.Link.parse("WI_FI") == sl.Link(0.002, 15e6, 30e6)
    latencies = [preset.rtt for preset in PRESETS.values()]
    assert latencies == sorted(latencies, reverse=True)


def written(folder: Path, text: str) -> Path:
    file = folder / "links.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_scissions_file_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, "\ufeff" + HEADER + "pi,edge,27.4,58.8\n\n edge , cloud,  5 , 1000 \n")
    assert read_links(file) == {
        ("pi", "edge"): sl.Link(0.0274, 58.8e6),
        ("edge", "cloud"): sl.Link(0.005, 1e9),
    }
    spaced = "source, destination, ping(ms), bandwidth(Mbps), download(Mbps)\n"
    assert read_links(written(tmp_path, spaced + "a,b,1,2,3\nb,a,1,2,\n")) == {
        ("a", "b"): sl.Link(0.001, 2e6, 3e6),
        ("b", "a"): sl.Link(0.001, 2e6),
    }


@given(links=st.dictionaries(st.tuples(NAMES, NAMES), LINKS, max_size=5))
def test_links_are_read_from_a_file_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, links: LinkTable
) -> None:
    file = tmp_path_factory.mktemp("links") / "links.csv"
    write_links(file, links)
    assert read_links(file) == links
    assert list(read_links(file)) == list(links)


@given(text=st.text() | st.text().map(lambda rows: HEADER + rows))
def test_whatever_a_file_holds_is_links_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.mktemp("links") / "links.csv"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(PlanError):
        assert all(isinstance(link, sl.Link) for link in read_links(file).values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: expected the header source,destination,.*got nothing"),
        ("a,b\n", r"line 1: expected the header .*got a,b"),
        (HEADER + "a,b,1\n", "line 2: 3 values, the header has 4"),
        (HEADER + "a,b,1,2\na,b,fast,2\n", "line 3: 'fast' is not a number"),
        (HEADER + "a,b,1,1e999999999\n", "line 2: '1e999999999' is not a number"),
        (HEADER + "a,b,-1,2\n", "line 2: a link needs a round trip of 0 s or more"),
        (HEADER + "a,b,1,0\n", "line 2: a link needs"),
        (HEADER + "a,,1,2\n", "line 2: the source or the destination is empty"),
        (HEADER + "a,b,1,2\n\n a , b ,1,2\n", "line 4: a second link from a to b"),
        (HEADER + '"a,b,1,2\n', "is not CSV"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_by_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PlanError, match=rf"links\.csv.*{said}"):
        read_links(written(tmp_path, text))


def test_files_and_names_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.csv cannot be read: No such file"):
        read_links(tmp_path / "none.csv")
    with pytest.raises(PlanError, match="cannot be written"):
        write_links(tmp_path / "none" / "links.csv", {})
    link = sl.Link(0.1, 1e6)
    for name in ("", " a", "a\rb"):
        with pytest.raises(PlanError, match="cannot name a machine"):
            write_links(tmp_path / "links.csv", {(name, "b"): link})
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\0")
    with pytest.raises(PlanError, match="is not CSV"):
        read_links(binary)


def test_the_link_option_takes_figures_presets_and_files(tmp_path: Path) -> None:
    one = written(tmp_path, HEADER + "a,b,1,2\n")
    assert parse_links("4Mbit/60ms") == parse_link("4Mbit/60ms") == sl.Link(0.06, 4e6)
    assert parse_links("4g") == PRESETS["4G"].link
    assert parse_links(str(one)) == {("a", "b"): sl.Link(0.001, 2e6)}
    assert parse_link(str(one)) == sl.Link(0.001, 2e6)
    two = tmp_path / "two.txt"
    two.write_text(HEADER + "a,b,1,2\nb,a,1,2\n")
    assert parse_links(str(two)) == read_links(two)
    for text, said in (
        (str(two), "holds 2 links"),
        (str(tmp_path / "none.csv"), "cannot be read"),
        ("quick", "is no link"),
    ):
        with pytest.raises(typer.BadParameter, match=said):
            parse_link(text)
