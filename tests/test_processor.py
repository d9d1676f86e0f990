"""The processor as /sys describes it, in made trees of its files, and the cores that `run` uses."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
import typer
from peers import LONG, Frames
from PIL import Image

from scissionlite.bundle import Bundle
from scissionlite.cli.doctor import machine
from scissionlite.cli.run.answering import Writer
from scissionlite.cli.run.cores import use_cores
from scissionlite.cli.run.live_line import LiveLine
from scissionlite.cli.run.results import ImageAnswer, Row
from scissionlite.cli.run.slowness import ANSWERS, Slowness
from scissionlite.processor import (
    core_list,
    cores,
    earlier_slowdowns,
    fast_cores,
    slowdowns,
    temperatures,
)

PI = "devices/platform/soc/soc:firmware/get_throttled"


def lay(folder: Path, files: Mapping[str, object]) -> Path:
    """Write files as the kernel shows them."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


def core_files(numbers: range, frequency: int, **others: object) -> dict[str, object]:
    """The files of some cores: cpufreq's, and those of the core itself."""
    files: dict[str, object] = {}
    for number in numbers:
        folder = f"devices/system/cpu/cpu{number}"
        files[f"{folder}/cpufreq/cpuinfo_max_freq"] = frequency
        files[f"{folder}/cpufreq/scaling_max_freq"] = others.get("limit", frequency)
        files[f"{folder}/cpufreq/scaling_governor"] = others.get("governor", "schedutil")
        files[f"{folder}/cpufreq/scaling_driver"] = others.get("driver", "cpufreq-dt")
        if "capacity" in others:
            files[f"{folder}/cpu_capacity"] = others["capacity"]
    return files


def rock5(folder: Path) -> Path:
    """An RK3588: four Cortex-A55, and two pairs of Cortex-A76 that differ a little."""
    return lay(
        folder,
        core_files(range(4), 1_800_000, capacity=530)
        | core_files(range(4, 6), 2_400_000, capacity=1024)
        | core_files(range(6, 8), 2_352_000, capacity=1004),
    )


def test_the_fast_cores_are_those_of_the_highest_capacity(tmp_path: Path) -> None:
    found = cores(rock5(tmp_path / "rock5"))
    assert [each.number for each in found] == list(range(8))
    assert fast_cores(found) == {4, 5, 6, 7}
    without = lay(tmp_path / "old", core_files(range(10, 12), 2_208_000))
    assert fast_cores(cores(lay(without, core_files(range(2), 1_896_000)))) == {10, 11}
    lay(without, {"devices/system/cpu/cpu11/online": 0})
    assert fast_cores(cores(without)) == {10}
    alike = lay(tmp_path / "pi4", core_files(range(4), 1_800_000))
    assert fast_cores(cores(alike)) == {0, 1, 2, 3}
    assert fast_cores(cores(tmp_path / "nothing")) == set()


def test_lists_of_cores_are_those_of_taskset() -> None:
    assert core_list({0, 1, 2, 3, 6, 8, 9}) == "0-3,6,8-9"
    assert core_list([]) == ""


def test_a_processor_at_full_speed_has_no_slowdowns(tmp_path: Path) -> None:
    pi = lay(
        rock5(tmp_path),
        {
            PI: "0",
            "class/thermal/cooling_device0/type": "cpufreq-cpu0",
            "class/thermal/cooling_device0/cur_state": 0,
            "class/thermal/cooling_device0/max_state": 4,
            "class/thermal/cooling_device1/type": "pwm-fan",  # a fan that runs is no slowdown
            "class/thermal/cooling_device1/cur_state": 3,
            "class/thermal/thermal_zone0/type": "cpu-thermal",
            "class/thermal/thermal_zone0/temp": 61_342,
            "class/hwmon/hwmon0/name": "rpi_volt",
            "class/hwmon/hwmon0/in0_lcrit_alarm": 0,
        },
    )
    assert slowdowns(pi) == earlier_slowdowns(pi) == []
    assert temperatures(pi) == {"cpu-thermal": 61.342}
    assert slowdowns(tmp_path / "nothing") == earlier_slowdowns(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("files", "reasons"),
    [
        (
            {
                "class/thermal/cooling_device2/type": "thermal-cpufreq-0",
                "class/thermal/cooling_device2/cur_state": 2,
                "class/thermal/cooling_device2/max_state": 4,
            },
            ["slows it down by step 2 of 4 to cool it (thermal-cpufreq-0)"],
        ),
        (core_files(range(4), 1_800_000, limit=600_000), ["limited to 600 of 1800 MHz (core 0"]),
        (core_files(range(4), 1_800_000, governor="powersave"), ["governor powersave"]),
        (core_files(range(4), 4_000_000, governor="powersave", driver="intel_pstate"), []),
        ({PI: "50005"}, ["its voltage is too low", "its firmware throttles it"]),
        ({PI: "0xa"}, ["its firmware caps the frequency", "cool it"]),
        ({PI: "not a number"}, []),
        (
            {"class/hwmon/hwmon3/name": "rpi_volt", "class/hwmon/hwmon3/in0_lcrit_alarm": 1},
            ["its voltage is too low"],
        ),
        ({"class/hwmon/hwmon3/name": "other", "class/hwmon/hwmon3/in0_lcrit_alarm": 1}, []),
    ],
)
def test_a_slowdown_is_said_in_words(
    tmp_path: Path, files: dict[str, object], reasons: list[str]
) -> None:
    found = slowdowns(lay(tmp_path, files))
    assert len(found) == len(reasons)
    for reason, part in zip(found, reasons, strict=True):
        assert part in reason


def test_what_was_before_is_said_too(tmp_path: Path) -> None:
    pi = lay(tmp_path / "pi", {PI: "50000"})
    assert slowdowns(pi) == []
    assert earlier_slowdowns(pi) == ["its voltage was too low", "it was throttled"]
    counts = {
        "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 0,
        "devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": 17,
    }
    (reason,) = earlier_slowdowns(lay(tmp_path / "x86", counts))
    assert "throttled 17 times" in reason


def test_doctor_says_what_is_known(tmp_path: Path) -> None:
    board = lay(
        rock5(tmp_path),
        {
            PI: "50005",
            "class/thermal/thermal_zone0/type": "soc-thermal",
            "class/thermal/thermal_zone0/temp": 84_400,
        },
    )
    rows = machine(board)
    assert rows["fast cores"] == "4-7 of 8 (`run --cores fast` uses them)"
    assert rows["temperature"] == "soc-thermal 84 °C"
    assert rows["speed"].startswith("slowed down now: its voltage is too low")
    assert rows["speed"].endswith("Since it was started: its voltage was too low; it was throttled")
    nothing = machine(tmp_path / "nothing")
    assert nothing["speed"] == "no slowdown known"
    assert "fast cores" not in nothing


def answer(seconds: float, variant: str = "int8", stage: str = "device_slice") -> ImageAnswer:
    return ImageAnswer(
        image="one.png",
        class_index=None,
        class_name=None,
        confidence=None,
        shapes={},
        latency=1.0,
        bytes_sent=9,
        where="edge",
        edge=None,
        variant=variant,
        age=0.0,
        timings={stage: seconds, "transfer": 1.0},
        frame=None,
        time=0.0,
    )


def test_a_device_that_becomes_slower_is_told_once(tmp_path: Path) -> None:
    slowness = Slowness(lay(tmp_path, {PI: "4"}))
    steady = [0.004] * (ANSWERS - 9) + [0.1] * 9  # now and then one takes long
    told = [slowness.add(answer(each)) for each in steady * 3]
    # Another variant, and local answers, have times of their own.
    told += [slowness.add(answer(0.05, "later")) for _ in range(2 * ANSWERS)]
    told += [slowness.add(answer(0.05, stage="local_run")) for _ in range(2 * ANSWERS)]
    assert not any(told)
    told = [slowness.add(answer(0.009)) for _ in range(3 * ANSWERS)]
    (said,) = filter(None, told)
    assert said.startswith("the device slice takes 9.0 ms here, 2.2 times as long as at the start.")
    assert said.endswith("The processor is slowed down: its firmware throttles it")


def test_run_warns_of_a_device_that_became_slower(caplog: pytest.LogCaptureFixture) -> None:
    class Silent:
        def add(self, row: Row) -> None:
            pass

    writer = Writer([], cast(LiveLine, Silent()))
    with caplog.at_level(logging.WARNING, "scissionlite"):
        for seconds in (0.001, 0.003):
            for _ in range(ANSWERS):
                writer.write(answer(seconds))
    (record,) = caplog.records
    assert "3.0 times as long as at the start" in record.getMessage()


ALLOWED = sorted(os.sched_getaffinity(0))


# With all of them, too, ONNX Runtime must not give each of its threads a core.
@pytest.mark.parametrize("wanted", [ALLOWED[-1:], ALLOWED])
def test_run_keeps_every_thread_on_the_cores(
    onnx_bundle: Bundle, frames: Frames, tmp_path: Path, wanted: list[int]
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "one.png")
    command = ("run", onnx_bundle.path, "--watch", tmp_path, "--existing", "--jsonl")
    options = ("--fallback", "local", "--cores", core_list(wanted))
    process = subprocess.Popen(
        [sys.executable, "-m", "scissionlite", *command, *options], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        threads = [int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir()]
        pinned = [os.sched_getaffinity(each) for each in threads]
    finally:
        process.kill()
        process.communicate(timeout=LONG)
    # The program's, the pipeline's two, and the runtime's, which counts the caller as one.
    assert len(threads) == 2 + len(wanted)
    assert all(each == set(wanted) for each in pinned)


def test_cores_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    assert use_cores("all", None) is None
    assert use_cores("all", 3) == 3
    for text, reason in (
        ("0-", "must be all, fast, or a list as 0-3,6"),
        ("3-1", "must be all, fast"),
        ("big", "must be all, fast"),
        ("9000", "this process may not use 9000, only"),
    ):
        with pytest.raises(typer.BadParameter, match=reason):
            use_cores(text, None)
    assert os.sched_getaffinity(0) == set(ALLOWED)
    # Where all fast cores are of others, those that there are.
    assert use_cores("fast", None, lay(tmp_path, core_files(range(9000, 9002), 1))) == len(ALLOWED)
    assert os.sched_getaffinity(0) == set(ALLOWED)
