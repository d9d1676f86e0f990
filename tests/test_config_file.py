"""The options of ``serve`` from a TOML file, and the log as JSON."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from peers import LONG, HandmadeDevice, Sockets
from typer.testing import CliRunner

from scissionlite.bundle import Bundle
from scissionlite.cli import app
from scissionlite.cli.config_file import Tables, keys_of, read_config
from scissionlite.offloader import Device
from scissionlite.offloader.wire import control

ROOT = Path(__file__).parents[1]


def serve_context() -> Any:
    command: Any = typer.main.get_command(app)
    return command.commands["serve"].make_context("serve", [])


@pytest.fixture
def tables() -> Tables:
    return keys_of(serve_context())


def refusal(tmp_path: Path, text: str) -> str:
    """The error of a file that is refused, without its beginning."""
    file = tmp_path / "edge.toml"
    file.write_text(text)
    # If the file is not refused, a unit is printed, and no daemon runs.
    command = ["serve", "--config", str(file), "--print-unit"]
    done = CliRunner(env={"COLUMNS": "1000"}).invoke(app, command)
    assert done.exit_code == 2, done.output
    found = re.search(rf"'--config': {re.escape(str(file))}:? (.*)", done.stderr)
    assert found, done.stderr
    return found[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bnd = 1", r"bnd is not known: did you mean 'bind'\? There are .*, bind, .*\[limits\]"),
        ("profile_models = []", "profile_models is not known: did you mean 'profile-models'"),
        ("config = 'x'", "config is not known"),
        ("[limits]\nquue = 4", r"limits.quue is not known: did you mean 'queue'\? There are "),
        ("[more]\nx = 4", "more is not known"),
        ("credit = 4", r"credit is not known there: it stands in the table \[limits\]"),
        ("[limits]\nbind = 'x'", "limits.bind is not known there: it stands before the first tab"),
        ("limits = 4", r"limits must be a table, \[limits\]"),
        ("[limits]\nqueue = 'many'", "limits.queue = 'many' must be a whole number"),
        ("[limits]\nqueue = 4.5", "limits.queue = 4.5 must be a whole number"),
        ("[limits]\nqueue = true", "limits.queue = True must be a whole number"),
        ("[limits]\nqueue = 0", "limits.queue: .*1"),
        ("[limits]\nheartbeat = nan", "limits.heartbeat = nan must be a number"),
        ("[limits]\nheartbeat = 1e9", "limits.heartbeat: .*3600"),
        ("insecure = 1", "insecure = 1 must be true or false"),
        ("bind = 5555", "bind = 5555 must be text in quotes"),
        ("bind = 'nonsense'", "bind: not an endpoint such as"),
        ("page = '8080'", "page: not an address such as :8080"),
        ("profile-models = 'x'", r"profile-models = 'x' must be a list, \[...\], each text in qu"),
        ("profile-models = [1]", r"profile-models = \[1\] must be a list"),
        ("log-format = 'xml'", 'log-format = \'xml\' must be one of "text", "json"'),
        ("key = 3", "key = 3 must be a path in quotes"),
        ("threads = 2024-01-01", "threads = .* must be a whole number"),
        ("bind = ", "is not TOML: "),
        ("bind = 'a'\nbind = 'b'", "is not TOML: "),
    ],
)
def test_what_is_wrong_is_refused_with_its_key_and_what_is_allowed(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert re.match(expected, refusal(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["serve", "--config", f"{tmp_path}/no"])
    assert done.exit_code == 2
    assert "No such file or directory" in done.stderr


SAMPLES = {bool: "true", int: "2", float: "2.5", str: '"x"', Path: '"x"'}
VALUES = {  # where not all text is allowed
    "bind": '"tcp://127.0.0.1:*"',
    "control": '"tcp://127.0.0.1:*"',
    "next": '"tcp://127.0.0.1:9"',
    "next-control": '"tcp://127.0.0.1:9"',
    "page": '":*"',
}


def test_every_option_has_its_key(tmp_path: Path, tables: Tables) -> None:
    context = serve_context()
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]"] if table else []
        for name, key in keys.items():
            value = VALUES.get(name, SAMPLES[key.type])
            if key.choices:
                value = f'"{key.choices[0]}"'
            elif key.type in (int, float) and key.parameter.default is not None:
                value = str(key.parameter.default)  # in its range
            lines.append(f"{name} = [{value}]" if key.several else f"{name} = {value}")
    file = tmp_path / "edge.toml"
    file.write_text("\n".join(lines))
    options = {parameter.name for parameter in context.command.params}
    assert set(read_config(file, context)) == options - {"config", "print_unit", "help"}


def test_the_documented_sample_has_every_key(tmp_path: Path, tables: Tables) -> None:
    """A new option of ``serve`` gets a line in the sample of docs/daemon.md."""
    (sample,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/daemon.md").read_text(), re.DOTALL)
    file = tmp_path / "edge.toml"
    file.write_text(sample)
    context = serve_context()
    read_config(file, context)
    # What only some daemons have is a comment there: it must be right, too.
    file.write_text(re.sub(r"^# ([a-z-]+ = )", r"\1", sample, flags=re.MULTILINE))
    parameters = {key.parameter.name for keys in tables.values() for key in keys.values()}
    assert set(read_config(file, context)) == parameters


def test_serve_reads_its_file_and_the_command_line_wins(
    tiny_bundle: Bundle, tmp_path: Path, sockets: Sockets
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "there").symlink_to(tiny_bundle.path)
    file = tmp_path / "conf" / "edge.toml"
    # The path is relative to the file, not to where the daemon is started.
    file.write_text(
        'bundle = ["../there"]\nbind = "tcp://127.0.0.1:*"\nname = "file"\nlog-format = "json"\n'
        'page = ":*"\n[limits]\ncredit = 3\nheartbeat = 7.5\n'
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "scissionlite", "serve", "--config", str(file), "--json"),
            *("--name", "line 4", "--credit", "5"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert [each["id"] for each in ready["bundles"]] == [tiny_bundle.id]
    with Device(
        tiny_bundle,
        ready["endpoint"],
        control=ready["control_endpoint"],
        name="a\n7",
        deadline=LONG,
    ) as device:
        device.connect(LONG)
    handmade = HandmadeDevice(sockets, tiny_bundle, ready["endpoint"], ready["control_endpoint"])
    welcome = handmade.hello()
    assert isinstance(welcome, control.Welcome)
    # The first two are the command line's, the third is the file's.
    assert (welcome.name, welcome.credit, welcome.heartbeat) == ("line 4", 5, 7.5)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=LONG)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", each["time"]) for each in lines)
    by_message = {each["message"].split(",")[0]: each for each in lines}
    (serving,) = (each for each in lines if each["message"].startswith("Serving "))
    assert serving["endpoint"] == ready["endpoint"]
    assert serving["page"].startswith("http://127.0.0.1:")
    connected = by_message["device 'a\\n7' connected"]
    assert connected["device"] == "a\n7"
    assert connected["bundle"] == tiny_bundle.id
    assert connected["level"] == "info"
    assert "device 'a\\n7' left" in by_message


def test_a_failure_is_a_line_of_json_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scissionlite", "serve", f"{tmp_path}/none", "--log-format=json"],
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 1
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "error"
    assert "is not a bundle" in line["message"]


def test_every_record_becomes_one_line() -> None:
    program = """
import logging, warnings
from scissionlite.cli.logs import set_up_logging
set_up_logging("json", "warning")
log = logging.getLogger("scissionlite.here")
log.info("not shown")
log.warning("two\\nlines %s", "\\ud800", extra={"device": "\\udcff", "count": 3, "other": object})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
warnings.warn("beware")
raise SystemError("the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG
    )
    first, broken, warned, end = map(json.loads, done.stderr.splitlines())
    assert first["message"] == "two\nlines \\ud800"
    assert (first["device"], first["count"], first["other"]) == ("\\udcff", 3, "<class 'object'>")
    assert "ZeroDivisionError" in broken["exception"]
    assert "beware" in warned["message"]
    assert (end["level"], "the end" in end["message"]) == ("critical", True)
    assert done.returncode == 1
