"""The harness against everything else: its processes, its records, its report and its claims."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench.end_to_end import claims, networks, records, report
from bench.end_to_end.contenders import GRPC, LOCAL, OURS, SCISSION
from bench.end_to_end.links import LINKS as ALL_LINKS
from bench.end_to_end.prepared import bundle_name
from bench.end_to_end.records import Cell, Measured
from bench.end_to_end.tasks import CLAIM_SLOWDOWNS, FIRST_LINKS, IMAGE_NETWORKS, whole_run
from bench.predicted import DOCUMENT, draw_networks, family
from bench.predicted_tables import BEGIN, END, write_part

import scissionlite as sl

ROOT = Path(__file__).parents[1]
LINKS = {"5 Mbit/s, 60 ms": 5e6, "58.8 Mbit/s, 27.4 ms": 58.8e6}


def measured(name: str, seconds: float, **more: object) -> Measured:
    noise = np.random.default_rng(len(name)).normal(1, 0.01, 12)
    own = Measured(
        name=name,
        what=name,
        place="-",
        raw_image=False,
        split=name != LOCAL,
        predicted=seconds,
        latencies=tuple((seconds * noise).tolist()),
        timings={"device_slice": seconds / 2, "transfer": seconds / 2},
    )
    return msgspec.structs.replace(own, **more)


def cell(link: str, ours: float, *others: Measured, kind: str = "contenders") -> Cell:
    return Cell(
        kind=kind,
        network="densenet169",
        link=link,
        rtt=0.05,
        bandwidth=LINKS[link],
        slowdown=5.3,
        bound=0.1,
        measured=(measured(OURS, ours), *others),
        link_kind="relay",
        machine="a machine",
        versions={"torch": "2"},
        load=0.5,
        date="2026-01-01 00:00",
        command="python -m bench.end_to_end",
    )


@pytest.mark.long
def test_a_quick_run_measures_and_reports(tmp_path: Path, shared_data: Path) -> None:
    """Real processes: an edge daemon, a gRPC server, the relay and a device."""
    command = [sys.executable, "-m", "bench.end_to_end", "--quick", "--link", "relay"]
    command += ["--out", str(tmp_path), "--data", str(shared_data)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=500)
    (path,) = (tmp_path / "cells").glob("*.json")
    (read,) = records.read(tmp_path)
    names = [m.name for m in read.measured]
    assert names[:2] == [LOCAL, "JPEG-75 to the edge"]
    assert names[2].startswith(OURS)
    assert len(names) == 5
    for each in read.measured:
        assert len(each.latencies) >= 3
        if each.split:  # no answer comes before a round trip is over
            assert min(each.latencies) >= 0.005
            assert each.sent_bytes > 0
            assert each.edge_cpu > 0
    page = (tmp_path / "benchmarks.md").read_text()
    assert "JPEG-75 to the edge" in page
    assert (tmp_path / "benchmarks" / "bandwidth.png").is_file()
    assert json.loads(path.read_text())["network"] == "tiny"


def test_claims_are_computed_from_the_records() -> None:
    local, split = measured(LOCAL, 1.9), measured(SCISSION, 0.35)
    won = [cell(link, 0.105, local, split) for link in LINKS]
    found = {claim.asked.partition(":")[0]: claim for claim in claims.claims(won)}
    first = found["densenet169, device 5.3 times slower"]
    assert first.reached
    assert first.found.startswith("18.")
    assert found["no raw image leaves"].reached
    assert found["no rule"].reached
    jpeg = measured("JPEG-75 to the edge", 0.08, raw_image=True)
    lost = [cell(link, 0.105, local, split, jpeg) for link in LINKS]
    found = {claim.asked.partition(":")[0]: claim for claim in claims.claims(lost)}
    assert found["no raw image leaves"].reached  # JPEG is not allowed there
    assert found["no rule"].reached is False
    assert "to JPEG-75 to the edge by 31% at 5" in found["no rule"].found
    # A contender that is known to be half a point less accurate does not count.
    poor = msgspec.structs.replace(jpeg, accuracy=0.95)
    ours = measured(OURS, 0.105, accuracy=0.99)
    kept = [
        msgspec.structs.replace(cell(link, 0.1), measured=(ours, local, poor)) for link in LINKS
    ]
    assert claims.slow_links(kept).reached


def test_ours_is_compared_with_the_fastest_image_of_equal_accuracy() -> None:
    jpeg = measured("JPEG-75 to the edge", 0.12, raw_image=True)
    poor = measured("JPEG-40 to the edge", 0.09, raw_image=True, accuracy=0.95)
    local = measured(LOCAL, 0.08, accuracy=0.99)
    slow = cell("5 Mbit/s, 60 ms", 0.1, jpeg, poor, local, kind="images")
    won = claims.over_images([slow])
    assert won.reached
    assert won.found.startswith("densenet169 1.2")
    assert " ms of JPEG-75 to the edge" in won.found
    near = measured("WebP-75 to the edge", 0.1001, raw_image=True)  # within the spread
    assert (
        claims.over_images([msgspec.structs.replace(slow, measured=(*slow.measured, near))]).reached
        is False
    )
    everything = {claim.asked: claim for claim in claims.claims([slow])}
    assert everything[won.asked] == won
    assert (
        everything["no rule: ours is the fastest in every cell at 5 Mbit/s and below"].reached
        is None
    )


def test_without_a_bound_of_16_times_nothing_is_claimed() -> None:
    """A device that is hardly slower than the edge leaves nothing to gain."""
    (claim,) = claims.over_local([cell("5 Mbit/s, 60 ms", 0.105, measured(LOCAL, 0.5))])
    assert claim.reached is None
    assert "the zero-byte bound is 5.0" in claim.found


def test_the_report_is_written_from_the_records_alone(tmp_path: Path) -> None:
    jpeg = measured("JPEG-75 to the edge", 0.2, raw_image=True, accuracy=0.97)
    slow = msgspec.structs.replace(measured(SCISSION, 9.0), latencies=(), skipped="predicted 30 s")
    for link in LINKS:
        one = cell(link, 0.105, measured(LOCAL, 0.3, accuracy=0.98), jpeg, slow)
        records.write(records.cell_path(tmp_path, "contenders", "densenet169", link, 5.3), one)
    points = cell("58.8 Mbit/s, 27.4 ms", 0.105, kind="points")
    records.write(records.cell_path(tmp_path, "points", "densenet169", "x", 5.3), points)
    report.write(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "predicted 30 s" in page
    assert "| densenet169 | 5 Mbit/s, 60 ms | ours, 10" in page
    assert (tmp_path / "page" / "points.png").is_file()


def test_the_most_important_cells_come_first() -> None:
    """A run that is cut has the first links of every network, and then the paper's claims."""
    every = list(whole_run())
    assert len(set(every)) == len(every)
    contested = [(task.network, task.link) for task in every if task.kind == "contenders"]
    assert {*contested} == {(n, link) for n in networks.NETWORKS for link in ALL_LINKS}
    first = len(networks.NETWORKS) * len(FIRST_LINKS)
    assert {link for _, link in contested[:first]} == {*FIRST_LINKS}
    claimed = [task.slowdown for task in every[first:] if task.kind == "claims"]
    assert {*claimed} == {*CLAIM_SLOWDOWNS}
    assert all(task.kind == "claims" for task in every[first : first + len(claimed)])
    images = every[first + len(claimed) :][: len(IMAGE_NETWORKS)]
    assert [(task.kind, task.network) for task in images] == [("images", n) for n in IMAGE_NETWORKS]


def test_the_report_of_a_cut_run_names_the_cells_that_are_missing() -> None:
    one = cell("5 Mbit/s, 60 ms", 0.105)
    text = report.missing_cells([one])
    assert f"1 of {len(list(whole_run()))} cells have been measured" in text
    assert "densenet169 at 5 Mbit/s, 60 ms;" not in text
    assert "densenet169 at 1 Mbit/s, 100 ms" in text
    assert "densenet169 at 200 Mbit/s, 5 ms, device 40 times slower" in text
    every = [
        msgspec.structs.replace(one, **dict(zip(task._fields, task, strict=True)))
        for task in whole_run()
    ]
    assert "Not measured" not in report.missing_cells(every)


def test_a_peer_transport_is_compared_and_is_no_rival() -> None:
    cells = [cell(link, 0.105, measured(GRPC, 0.1)) for link in LINKS]
    assert all(claims.ours_wins(each, claims.fair) for each in cells)
    claim = claims.transport(cells)
    assert claim.reached is False
    assert claim.found.startswith("gRPC takes 0.96 times as long in the median of 2 cells")


def test_a_loss_within_the_spread_is_said_to_be_one() -> None:
    """A claim that a shared machine's drift can turn over is not printed as one."""
    (link,) = [link for link, rate in LINKS.items() if rate <= claims.SLOW_LINKS]
    one = cell(link, 0.105)
    (ours,) = one.measured
    for factors, within in (((0.98, 0.99, 1.01), True), ((0.98, 0.99, 0.985), False)):
        seconds = tuple(each * factors[i % 3] for i, each in enumerate(sorted(ours.latencies)))
        jpeg = msgspec.structs.replace(
            ours, name="JPEG-75 to the edge", raw_image=True, latencies=seconds
        )
        calm = msgspec.structs.replace(ours, latencies=tuple(sorted(ours.latencies)))
        claim = claims.slow_links([msgspec.structs.replace(one, measured=(calm, jpeg))])
        assert claim.reached is False
        assert ("within the spread" in claim.found) is within


def test_plans_of_different_bundles_have_different_folders() -> None:
    spec = sl.TransferSpec()
    plans = [
        sl.Plan(kind="local"),
        sl.Plan(kind="local", device_precision="int8"),
        sl.Plan(kind="image", image_format="png"),
        sl.Plan(kind="image", image_format="jpeg", jpeg_quality=75),
        sl.Plan(kind="image", image_format="jpeg", jpeg_quality=90),
        sl.Plan(kind="split", slicing_point="a", spec=spec),
        sl.Plan(kind="split", slicing_point="a", spec=spec, device_precision="int8"),
        sl.Plan(kind="split", slicing_point="b", spec=spec),
        sl.Plan(kind="split", slicing_point="a", spec=sl.TransferSpec(pool=1)),
    ]
    assert len({bundle_name(plan) for plan in plans}) == len(plans)
    again = msgspec.structs.replace(plans[5], accuracy=0.9, device="pi")
    assert bundle_name(again) == bundle_name(plans[5])


@pytest.mark.parametrize("seed", [22, 1])
def test_ten_networks_of_ten_families_are_drawn(seed: int) -> None:
    document = DOCUMENT.read_text()
    drawn = draw_networks(document, seed, 10)
    assert len({family(each.name) for each in drawn}) == 10
    assert drawn == draw_networks(document, seed, 10)


def test_the_script_writes_its_part_of_the_page_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\n\nold\n\n{END}\n\nafter\n")
    write_part(page, "new")
    write_part(page, "newer")
    assert page.read_text() == f"before\n\n{BEGIN}\n\nnewer\n\n{END}\n\nafter\n"
    planning = (ROOT / "docs" / "planning.md").read_text()
    assert planning.index(BEGIN) < planning.index(END)
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="has no lines"):
        write_part(page, "new")
