"""The processor as Linux describes it in /sys: its fast cores, and whether it is slowed down.

What is not there, as in a container or a virtual machine, is not known, and nothing is said of it.
The files are those of cpufreq, thermal and hwmon (Documentation/ABI of the kernel), and of the
Raspberry Pi's firmware (raspberrypi/linux, pull request 2397).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

SYSFS: Final = Path("/sys")

# A core is fast with this much of the best one's value. Cores of one kind differ a little.
_FAST_CAPACITY, _FAST_FREQUENCY = 0.75, 0.9

_PI_FILE = "devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW = {
    0: "its voltage is too low: use a stronger power supply, or a shorter cable",
    1: "its firmware caps the frequency",
    2: "its firmware throttles it",
    3: "it is near its limit of temperature: cool it",
}
_PI_BEFORE = {
    16: "its voltage was too low",
    17: "the frequency was capped",
    18: "it was throttled",
    19: "it was near its limit of temperature",
}


class Core(NamedTuple):
    """A core that is online.

    Attributes
    ----------
    number
        As in ``taskset``.
    capacity
        How much it computes, the fastest having 1024; None if Linux does not say.
    frequency, limit
        The highest frequency of its kind, and the highest allowed now, in kHz; None if unknown.
    governor
        What chooses its frequency, as "ondemand"; empty if unknown.
    """

    number: int
    capacity: int | None
    frequency: int | None
    limit: int | None
    governor: str


def cores(sysfs: Path = SYSFS) -> list[Core]:
    """List the cores that are online, by number."""
    found = []
    for folder in (sysfs / "devices/system/cpu").glob("cpu[0-9]*"):
        if _text(folder / "online") == "0":
            continue
        scaling = folder / "cpufreq"
        found.append(
            Core(
                int(folder.name[3:]),
                _number(folder / "cpu_capacity"),
                _number(scaling / "cpuinfo_max_freq"),
                _number(scaling / "scaling_max_freq"),
                _text(scaling / "scaling_governor"),
            )
        )
    return sorted(found)


def fast_cores(found: Sequence[Core]) -> set[int]:
    """Numbers of the fast cores of big.LITTLE; of all, where Linux knows no difference."""
    capacities = {each.number: each.capacity for each in found if each.capacity}
    frequencies = {each.number: each.frequency for each in found if each.frequency}
    for values, share in ((capacities, _FAST_CAPACITY), (frequencies, _FAST_FREQUENCY)):
        if found and len(values) == len(found):
            best = max(values.values())
            return {number for number, value in values.items() if value >= share * best}
    return {each.number for each in found}


def temperatures(sysfs: Path = SYSFS) -> dict[str, float]:
    """Temperatures in degrees Celsius, by the names of the thermal zones."""
    return {
        _text(zone / "type"): degrees / 1000
        for zone in _numbered(sysfs / "class/thermal", "thermal_zone")
        if (degrees := _number(zone / "temp")) is not None
    }


def slowdowns(sysfs: Path = SYSFS) -> list[str]:
    """Say why the processor is slower now than it could be, a reason each; empty if it is not."""
    reasons = []
    thermal = sysfs / "class/thermal"
    for device in _numbered(thermal, "cooling_device"):
        kind, level = _text(device / "type"), _number(device / "cur_state")
        if level and re.search(r"cpufreq|cpu|processor", kind, re.IGNORECASE):
            most = _number(device / "max_state")
            reasons.append(
                f"the kernel slows it down by step {level} of {most} to cool it ({kind})"
            )
    found = cores(sysfs)
    capped = [each for each in found if each.limit and each.limit < (each.frequency or 0)]
    if capped:
        worst = min(capped, key=lambda each: (each.limit or 0) / (each.frequency or 1))
        reasons.append(
            f"its frequency is limited to {(worst.limit or 0) / 1000:.0f} of "
            f"{(worst.frequency or 0) / 1000:.0f} MHz (core {worst.number}, scaling_max_freq)"
        )
    if saving := [each.number for each in found if each.governor == "powersave" and each.limit]:
        # That of intel_pstate and amd_pstate in active mode is another one, and is no slowdown.
        driver = _text(sysfs / f"devices/system/cpu/cpu{saving[0]}/cpufreq/scaling_driver")
        if not re.search(r"pstate", driver):
            reasons.append("the governor powersave keeps its lowest frequency: set ondemand")
    bits = _pi_bits(sysfs)
    reasons += [reason for bit, reason in _PI_NOW.items() if bits >> bit & 1]
    for monitor in _numbered(sysfs / "class/hwmon", "hwmon"):
        if _text(monitor / "name") == "rpi_volt" and _number(monitor / "in0_lcrit_alarm"):
            reasons.append(_PI_NOW[0])
    return list(dict.fromkeys(reasons))


def earlier_slowdowns(sysfs: Path = SYSFS) -> list[str]:
    """Say what slowed the processor down since it was started; empty if nothing is known."""
    bits = _pi_bits(sysfs)
    reasons = [reason for bit, reason in _PI_BEFORE.items() if bits >> bit & 1]
    counts = (sysfs / "devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    most = max((_number(each) or 0 for each in counts), default=0)
    if most:
        reasons.append(f"it was throttled {most} times because it was hot")
    return reasons


def core_list(numbers: Iterable[int]) -> str:
    """Write the numbers of cores as ``taskset`` does: 0-3,6."""
    text: list[str] = []
    ordered = sorted(numbers)
    for position, number in enumerate(ordered):
        if position and number == ordered[position - 1] + 1:
            text[-1] = f"{text[-1].partition('-')[0]}-{number}"
        else:
            text.append(str(number))
    return ",".join(text)


def _pi_bits(sysfs: Path) -> int:
    """Read the bits of ``vcgencmd get_throttled``; 0 where there is no such file."""
    text = _text(sysfs / _PI_FILE)
    return int(text, 16) if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text) else 0


def _numbered(folder: Path, name: str) -> Iterator[Path]:
    return iter(sorted(folder.glob(f"{name}[0-9]*")))


def _text(file: Path) -> str:
    """A file's text; empty if there is none, or if the kernel has no answer."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if re.fullmatch(r"-?\d+", text) else None
