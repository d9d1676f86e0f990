"""``scissionlite run``: rows in order, failures, signals, the live line, and what it imports."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OUTPUT, BundleFactory
from peers import LOCAL, LONG, NOWHERE, Frames, HandmadeEdge, Sockets
from PIL import Image
from typer.testing import CliRunner, Result

from scissionlite import progress
from scissionlite.bundle import Bundle
from scissionlite.cli import app
from scissionlite.cli.run import live_line
from scissionlite.cli.run.live_line import LiveLine
from scissionlite.cli.run.results import Failure, ImageAnswer
from scissionlite.errors import EdgeUnavailableError, ImageError
from scissionlite.offloader import EdgeServer
from scissionlite.offloader.wire import control

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.fixture(scope="module")
def onnx_bundle(make_bundle: BundleFactory) -> Bundle:
    """The tiny network for ONNX Runtime, which starts faster and needs no torch."""
    return make_bundle(runtime="onnx")


@pytest.fixture
def images(tmp_path: Path, frames: Frames) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, frame in enumerate(frames[:4]):
        Image.fromarray(frame).save(folder / f"{index}.png")
    return folder


class Running:
    """``scissionlite run`` in a process, which is killed, if need be, when the test ends."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scissionlite", "run", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )

    def row(self) -> dict[str, Any]:
        """Wait for the next line of --jsonl."""
        assert self.process.stdout is not None
        row: dict[str, Any] = json.loads(self.process.stdout.readline())
        return row

    def end(self) -> tuple[int, str, str]:
        """Wait for the end: the exit code, and what else it printed."""
        output, errors = self.process.communicate(timeout=LONG)
        return self.process.returncode, output, errors


@pytest.fixture
def start_run() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*arguments: object) -> Running:
        started.append(Running(*arguments))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.communicate()


StartRun = Callable[..., Running]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def connect_to(edge: HandmadeEdge, deadline: float = LONG) -> list[object]:
    return ["--connect", edge.endpoint, "--control", edge.control, "--deadline", deadline]


def one_hot(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    output = np.zeros(OUTPUT, np.float32)
    output[0, index] = 9
    return output


def test_rows_are_in_the_order_of_the_images_whoever_is_answered_first(
    onnx_bundle: Bundle, images: Path, sockets: Sockets, start_run: StartRun
) -> None:
    edge = HandmadeEdge(sockets, onnx_bundle)
    command = (onnx_bundle.path, images, *connect_to(edge), "--jsonl", "--warm-up", 0)
    running = start_run(*command, "--in-flight", 3)
    device_id = edge.greet()
    requests = [edge.request() for _ in range(3)]  # all under way before the first answer
    assert edge.next_request(0.3) is None  # and no more than asked for
    edge.answer(requests[2], one_hot(2))
    edge.send(device_id, control.Failed(requests[1].request_id, "execution", "the slice failed"))
    edge.answer(requests[0], one_hot(0))
    assert running.row()["class_index"] == 0  # at once, not at the end
    failed = running.row()
    assert (failed["image"], failed["kind"]) == (f"{images}/1.png", "EdgeExecutionError")
    assert "the slice failed" in failed["error"]
    assert running.row()["class_index"] == 2
    edge.answer(edge.request(), one_hot(3))
    last = running.row()
    assert (last["image"], last["class_name"], last["frame"]) == (f"{images}/3.png", "dog", None)
    assert abs(last["time"] - time.time()) < LONG
    code, output, errors = running.end()
    assert (code, output) == (1, "")
    error, summary = errors.splitlines()
    assert error.startswith("error: EdgeExecutionError: ")
    assert error.endswith(f"({images}/1.png)")
    assert summary.startswith("3 answers: median ")
    assert summary.endswith("3 by the edge, 0 locally; 1 failed")


def test_a_table_and_a_document_have_the_failures_too(onnx_bundle: Bundle, images: Path) -> None:
    (images / "1.png").write_text("no image")
    command = (onnx_bundle.path, images, "--connect", NOWHERE, "--deadline", 0.05)
    done = run(*command, "--json")
    assert done.exit_code == 1
    printed = json.loads(done.stdout)
    assert printed["answers"] == []
    assert [each["image"] for each in printed["unread"]] == [f"{images}/1.png"]
    assert [each["image"] for each in printed["failed"]] == [f"{images}/{i}.png" for i in (0, 2, 3)]
    assert {each["kind"] for each in printed["failed"]} <= {
        "EdgeUnavailableError",
        "DeadlineExceededError",
    }
    assert (printed["summary"]["failed"], printed["summary"]["unread"]) == (3, 1)
    assert len(done.stderr.splitlines()) == 4
    table = run(*command)
    assert "0 answers in" in table.stdout
    assert "3 failed; 1 not read" in table.stdout
    assert "ImageError" in table.stdout


def test_the_edge_that_is_there_answers(tiny_bundle: Bundle, images: Path, tmp_path: Path) -> None:
    with EdgeServer(tiny_bundle, LOCAL) as edge:
        away = ("--connect", NOWHERE, "--control", NOWHERE)
        there = ("--connect", edge.endpoint, "--control", edge.control_endpoint)
        done = run(tiny_bundle.path, images, *away, *there, "--json")
    assert done.exit_code == 0, done.output
    assert [each["edge"] for each in json.loads(done.stdout)["answers"]] == [edge.endpoint] * 4


def test_the_last_answer_again(
    onnx_bundle: Bundle, images: Path, sockets: Sockets, start_run: StartRun
) -> None:
    edge = HandmadeEdge(sockets, onnx_bundle)
    command = (onnx_bundle.path, images, *connect_to(edge), "--jsonl", "--warm-up", 0)
    running = start_run(*command, "--fallback", "last")
    device_id = edge.greet()
    edge.answer(edge.request(), one_hot(3))
    for _ in range(3):
        request = edge.request()
        edge.send(device_id, control.Failed(request.request_id, "execution", "no"))
    rows = [running.row() for _ in range(4)]
    assert [(row["where"], row["class_index"]) for row in rows] == [("edge", 3), *[("last", 3)] * 3]
    assert 0 == rows[0]["age"] < rows[1]["age"] < rows[3]["age"]
    code, _, errors = running.end()
    assert code == 0
    assert errors.strip().endswith("1 by the edge, 0 locally, 3 the last one again")


def test_a_refusal_that_holds_for_all_ends_at_once(
    onnx_bundle: Bundle, images: Path, sockets: Sockets, start_run: StartRun
) -> None:
    edge = HandmadeEdge(sockets, onnx_bundle)
    running = start_run(onnx_bundle.path, images, *connect_to(edge, 5), "--warm-up", 0)
    edge.send(edge.wait_for(control.Hello), control.Refused("bundle-mismatch", "another is served"))
    code, output, errors = running.end()
    assert (code, output) == (1, "")
    assert errors.startswith("error: BundleMismatchError: ")
    assert len(errors.splitlines()) == 1


def test_a_signal_ends_after_the_answers_under_way(
    onnx_bundle: Bundle,
    images: Path,
    sockets: Sockets,
    start_run: StartRun,
) -> None:
    edge = HandmadeEdge(sockets, onnx_bundle)
    running = start_run(
        *(onnx_bundle.path, images, *connect_to(edge), "--jsonl", "--warm-up", 0),
        *("--in-flight", 2),
    )
    device_id = edge.greet()
    requests = [edge.request() for _ in range(2)]
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)  # it has arrived
    for index, request in enumerate(requests):
        edge.answer(request, one_hot(index))
    assert [running.row()["class_index"] for _ in range(2)] == [0, 1]
    ended, output, errors = running.end()
    assert (ended, output) == (143, "")
    assert errors.startswith("2 answers: ")
    assert edge.wait_for(control.Goodbye) == device_id


def test_a_second_signal_does_not_wait(
    onnx_bundle: Bundle, images: Path, sockets: Sockets, start_run: StartRun
) -> None:
    edge = HandmadeEdge(sockets, onnx_bundle)
    running = start_run(onnx_bundle.path, images, *connect_to(edge), "--warm-up", 0)
    device_id = edge.greet()
    edge.request()
    for _ in range(2):
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert running.end()[0] == 130
    assert edge.wait_for(control.Goodbye) == device_id


@pytest.mark.long
def test_an_answer_that_does_not_come_after_a_signal_is_a_failure(
    onnx_bundle: Bundle, images: Path, sockets: Sockets, start_run: StartRun
) -> None:
    edge = HandmadeEdge(sockets, onnx_bundle)
    command = (onnx_bundle.path, images, *connect_to(edge), "--warm-up", 0, "--json")
    running = start_run(*command)
    edge.greet()
    edge.request()
    running.process.send_signal(signal.SIGTERM)
    code, output, _ = running.end()
    assert code == 143
    printed = json.loads(output)
    assert [each["image"] for each in printed["failed"]] == [f"{images}/0.png"]
    assert "closed" in printed["failed"][0]["error"]


def test_a_watched_folder_is_answered_until_a_signal(
    onnx_bundle: Bundle, images: Path, tmp_path: Path, start_run: StartRun
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (images / "0.png").rename(inbox / "0.png")
    command = (onnx_bundle.path, "--watch", inbox, "--existing", "--fallback", "local")
    running = start_run(*command, "--jsonl")
    assert running.row()["image"] == f"{inbox}/0.png"
    (inbox / "bad.jpg").write_text("no image")
    assert running.row()["kind"] == "ImageError"
    for number in (1, 2, 3):
        (images / f"{number}.png").rename(inbox / f"{number}.png")
        assert running.row()["image"] == f"{inbox}/{number}.png"
    running.process.send_signal(signal.SIGINT)
    code, output, errors = running.end()
    assert (code, output) == (130, "")
    first, bad, summary = errors.splitlines()
    assert first == f"Answering new images in {inbox}. Ctrl-C stops."
    assert bad.startswith("error: ImageError: ")
    assert summary.endswith("0 by the edge, 4 locally; 1 not read")


def test_it_ends_when_nobody_reads_its_rows_any_more(
    onnx_bundle: Bundle, images: Path, start_run: StartRun
) -> None:
    command = (onnx_bundle.path, images, "--fallback", "local", "--jsonl", "--repeat", 10_000)
    running = start_run(*command)
    running.row()
    assert running.process.stdout is not None
    running.process.stdout.close()  # as in `| head -1`
    assert running.process.wait(LONG) == 1


def test_a_device_imports_only_what_its_options_need(onnx_bundle: Bundle, images: Path) -> None:
    program = (
        "import sys\n"
        "from scissionlite.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "print(*sorted({'torch', 'cv2', 'paho', 'inotify_simple', 'ssl', 'asyncio'} "
        "& set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", onnx_bundle.path, images, "--fallback", "local"],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    )
    assert done.stderr == "\n"
    assert "4 answers" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of IMAGES, --watch, --camera and --video"),
        (("x.png", "--camera", "0"), "not IMAGES and --camera"),
        (("--watch", "{images}", "--video", "x.mp4"), "not --watch and --video"),
        (("--watch", "{images}/0.png"), "--watch"),
        (("--watch", "/nowhere"), "--watch"),
        (("x.png", "--existing"), "--existing goes with --watch"),
        (("--video", "x.mp4", "--rescan", 5), "--rescan goes with --watch"),
        (("x.png", "--fps", 5), "--fps goes with --camera or --video"),
        (("--watch", "{images}", "--frames", 5), "--frames goes with --camera or --video"),
        (("--camera", 0, "--repeat", 2), "--repeat goes with IMAGES"),
        (("x.png", "--json", "--jsonl"), "give one"),
        (("x.png", "--in-flight", 0), "--in-flight"),
        (("x.png", "--mqtt-id", "x"), "--mqtt-id goes with --mqtt"),
        (("x.png", "--mqtt", "broker"), "not an address of a broker: mqtt://[USER"),
    ],
)
def test_wrong_usage(arguments: tuple[object, ...], said: str, images: Path) -> None:
    words = [str(each).format(images=images) for each in arguments]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["run", "bundle", *words])
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.stderr.split())


def answer(where: str = "edge", latency: float = 0.0142) -> ImageAnswer:
    return ImageAnswer("x", 0, "x", 1.0, {}, latency, 1, where, None, None, 0.0, {}, None, 0.0)


def failure() -> Failure:
    return Failure.of("x", None, EdgeUnavailableError("nobody"))


class Clock:
    """The time, as a test sets it."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live_line, "time", clock)
    return clock


def line_of(live: LiveLine, width: int | None = None) -> str:
    return live._text(width)


def make_line(dropped: int = 0, trouble: str = "", **options: Any) -> LiveLine:
    options = {"shown": True, "has_edge": True, **options}
    return LiveLine(dropped=lambda: dropped, troubles=lambda: [trouble], **options)


def test_the_live_line_says_rate_latency_who_answers_and_the_link(clock: Clock) -> None:
    live = make_line(dropped=12, trouble="MQTT away: 3 wait")
    assert line_of(live) == ("0 answers, 0.0/s, no answer yet, 12 dropped, MQTT away: 3 wait")
    for step in range(20):
        clock.now += 0.5
        live.add(answer(latency=0.010 if step < 19 else 0.1))
    assert line_of(live) == (
        "20 answers, 2.0/s, median 10.0 ms, p95 14.5 ms, edge 20 (100%), link up, 12 dropped, "
        "MQTT away: 3 wait"
    )
    live.add(failure())
    clock.now += 5
    for _ in range(5):
        live.add(answer("local", 0.05))
    live.add(Failure.of("x", None, ImageError("torn")))
    line = line_of(live)
    assert "edge 20 (80%), local 5 (20%), link down 5 s, 2 failed" in line
    assert line_of(live, 120).startswith("25 answers, 1.6/s, 10.0 ms (p95 62.5), edge 80%, link")
    assert line_of(live, 80).startswith("25 answers, 2/s, 10.0 ms, edge 80%, link down 5 s")
    clock.now += 60
    assert line_of(live).startswith("25 answers, 0.0/s, edge 20 (80%), local 5 (20%), link down")
    live.add(answer())
    assert "link up" in line_of(live)
    assert "link" not in line_of(make_line(has_edge=False))


def test_a_usual_line_fits_80_columns(clock: Clock) -> None:
    live = make_line(dropped=1234)
    for number in range(3000):
        clock.now += 0.03
        live.add(answer("edge" if number % 10 else "local", 0.0142 + number / 1e5))
    assert len(line_of(live, 80)) <= 80
    for _ in range(12):
        live.add(failure())
    clock.now += 12
    assert len(line_of(live, 80)) <= 80


def test_a_log_has_a_line_now_and_then_if_there_is_news(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_line() as live:
        live.add(answer())
        live.refresh()
        clock.now += progress.LOG_INTERVAL
        live.refresh()
        live.refresh()
        clock.now += progress.LOG_INTERVAL
        live.refresh()  # nothing is new
        live.add(answer("local"))
        live.refresh()
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first.startswith("1 answers, 0.1/s, median 14.2 ms")
    assert second.endswith("edge 1 (50%), local 1 (50%), link down 20 s")
    with make_line(shown=False) as live:
        live.add(answer())
        clock.now += progress.LOG_INTERVAL
        live.refresh()
    assert capsys.readouterr() == ("", "")


def read_terminal(descriptor: int) -> str:
    """Everything that was written to a terminal whose other end is closed."""
    text = b""
    try:
        while part := os.read(descriptor, 65536):
            text += part
    except OSError:  # Linux ends a terminal so
        pass
    return text.decode()


@pytest.mark.parametrize("same", [False, True], ids=["stdout is a file", "one terminal"])
def test_a_terminal_has_one_line_that_is_gone_in_the_end(
    onnx_bundle: Bundle, images: Path, tmp_path: Path, same: bool
) -> None:
    ours, theirs = pty.openpty()
    (images / "1.png").write_text("no image")
    command = ["run", str(onnx_bundle.path), str(images), "--fallback", "local", "--jsonl"]
    with (tmp_path / "lines").open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "scissionlite", *command, "--slowdown", "300"],
            stdout=theirs if same else lines,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        )
    os.close(theirs)
    drawn = read_terminal(ours)
    os.close(ours)
    assert process.wait(LONG) == 1
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", drawn).replace("\r", "\n")
    printed = plain if same else (tmp_path / "lines").read_text()
    # Each on a line of its own, never behind the live line.
    rows = [json.loads(line) for line in re.findall(r"^\{.*\}$", printed, re.MULTILINE)]
    assert [Path(row["image"]).name for row in rows] == [f"{i}.png" for i in range(4)]
    assert re.search(r"^\d answers, \d", plain, re.MULTILINE)
    assert re.search(r"^error: ImageError: ", plain.replace("error:\n ", "error: "), re.MULTILINE)
    assert plain.strip().splitlines()[-1].startswith("3 answers: median")


def test_a_quiet_run_of_months_keeps_no_old_answers(clock: Clock) -> None:
    live, kept = LiveLine(False, has_edge=True, dropped=int, troubles=list), []
    tracemalloc.start()
    try:
        for _ in range(2):
            for _ in range(5000):
                clock.now += 0.1
                live.add(answer(latency=clock.now))
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert kept[1] - kept[0] < 50_000  # they would be 600,000 bytes
