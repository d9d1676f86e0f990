"""Videos and cameras: OpenCV's frames are answered as image files are; a camera's newest first.

There is no camera here. Its class reads a video file instead, through the same OpenCV class.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from conftest import PREPROCESSING
from PIL import Image
from typer.testing import CliRunner, Result

from scissionlite.bundle import Bundle
from scissionlite.cli import app
from scissionlite.cli.run.sources import Picture
from scissionlite.cli.run.video import LiveVideo, frame_of, open_camera, open_video
from scissionlite.errors import VideoError
from scissionlite.images import Preprocessing
from scissionlite.offloader import Device

LONG = 60.0  # seconds; only a hang waits so long
COUNT, RATE = 30, 10.0
OPTIONS: dict[str, Any] = {"fps": None, "frames": None}

Pixels = npt.NDArray[np.uint8]


def drawn(number: int) -> Pixels:
    """A frame, RGB, in which nothing is symmetrical and every frame differs."""
    generator = np.random.default_rng(number)
    rough = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.kron(rough, np.ones((8, 8, 1), np.uint8))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video without loss: OpenCV gives back the very pixels."""
    file = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"FFV1"), RATE, (64, 48))
    assert writer.isOpened()
    for number in range(COUNT):
        writer.write(np.ascontiguousarray(drawn(number)[:, :, ::-1]))
    writer.release()
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


def frames_of(video: Path, **options: Any) -> list[Picture]:
    source = open_video(str(video), PREPROCESSING, **{**OPTIONS, **options})
    pictures = list(source.pictures())
    source.close()
    return pictures


def test_a_frame_is_answered_as_the_same_picture_in_a_file(
    tiny_bundle: Bundle, video: Path, tmp_path: Path
) -> None:
    capture = cv2.VideoCapture(str(video))
    for number in range(COUNT):
        read, pixels = capture.read()
        assert read
        Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])).save(
            tmp_path / f"{number:03}.png"
        )
    capture.release()
    options = ("--fallback", "local", "--json", "--quiet")
    of_video = json.loads(run(tiny_bundle.path, "--video", video, *options).stdout)
    of_files = json.loads(run(tiny_bundle.path, tmp_path, *options).stdout)
    shared = ("class_index", "class_name", "confidence")
    assert len(of_video["answers"]) == COUNT
    for number, (one, other) in enumerate(
        zip(of_video["answers"], of_files["answers"], strict=True)
    ):
        assert {name: one[name] for name in shared} == {name: other[name] for name in shared}
        assert (one["image"], one["frame"], other["frame"]) == (str(video), number, None)
    assert len({one["confidence"] for one in of_video["answers"]}) == COUNT  # they differ


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size=(32, 32)),
        Preprocessing(size=(20, 28), resize=30, interpolation="bicubic"),
        Preprocessing(size=(16, 16), mean=(0.5,), std=(0.5,)),  # grayscale
    ],
)
def test_frames_are_resized_and_cropped_as_files_are(
    preprocessing: Preprocessing, tmp_path: Path
) -> None:
    Image.fromarray(drawn(1)).save(tmp_path / "1.png")
    made = frame_of(np.ascontiguousarray(drawn(1)[:, :, ::-1]), preprocessing)
    assert np.array_equal(made, preprocessing.frame(tmp_path / "1.png"))


def test_a_file_gives_every_frame_in_order(video: Path) -> None:
    pictures = frames_of(video)
    assert [picture.frame for picture in pictures] == list(range(COUNT))
    for number, picture in enumerate(pictures):
        expected = frame_of(np.ascontiguousarray(drawn(number)[:, :, ::-1]), PREPROCESSING)
        assert np.array_equal(np.asarray(picture.pixels), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fps": 5.0}, range(0, COUNT, 2)),
        ({"fps": 4.0}, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]),
        ({"fps": RATE}, range(COUNT)),
        ({"fps": 100.0}, range(COUNT)),
        ({"frames": 3}, range(3)),
        ({"fps": 1.0, "frames": 2}, [0, 10]),
    ],
)
def test_fps_and_frames(video: Path, options: dict[str, Any], expected: Any) -> None:
    assert [picture.frame for picture in frames_of(video, **options)] == list(expected)


def live(video: Path, **options: Any) -> LiveVideo:
    """The camera's class, on a file."""
    return LiveVideo(cv2.VideoCapture(str(video)), "camera", PREPROCESSING, **options)


def test_a_camera_gives_the_newest_frame_and_counts_the_others(video: Path) -> None:
    camera = live(video)
    pictures = camera.pictures()
    first = next(pictures)
    assert first.frame is not None
    wait_for(lambda: camera._newest._ended)  # it went on while we were busy
    last = next(pictures)
    assert last.frame == COUNT - 1
    newest = frame_of(np.ascontiguousarray(drawn(COUNT - 1)[:, :, ::-1]), PREPROCESSING)
    assert np.array_equal(np.asarray(last.pixels), newest)
    assert camera.dropped == COUNT - 2
    with pytest.raises(VideoError, match=r"camera gives no more frames: it was unplugged"):
        next(pictures)
    camera.close()


def test_a_camera_gives_so_many_frames_a_second(video: Path) -> None:
    camera = live(video, fps=0.01)
    pictures = camera.pictures()
    assert next(pictures).frame == 0
    with pytest.raises(VideoError):  # the others come within the same 100 seconds
        next(pictures)
    assert camera.dropped == 0
    camera.close()
    camera = live(video, frames=1)
    assert len(list(camera.pictures())) == 1
    camera.close()


def test_a_camera_that_waits_can_be_stopped(video: Path) -> None:
    camera = live(video)
    release, capture = threading.Event(), camera._capture

    class Stalled:
        """A camera that gives a frame, and then none for long."""

        frames = 0

        def grab(self) -> bool:
            self.frames += 1
            grabbed: bool = capture.grab()
            return grabbed and (self.frames == 1 or release.wait(LONG))

        def __getattr__(self, name: str) -> Any:
            return getattr(capture, name)

    camera._capture = Stalled()  # type: ignore[assignment]
    pictures = camera.pictures()
    assert next(pictures).frame == 0
    threading.Timer(0.1, camera.stop).start()
    assert list(pictures) == []
    release.set()
    camera.close()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--camera", "97"), "there is no camera /dev/video97: No such file or directory"),
        (("--camera", "/dev/null"), "/dev/null cannot be opened: it is no camera, or another"),
        (("--camera", "{clip}"), "is no camera: --video reads files"),
        (("--video", "/nowhere.mp4"), "the video /nowhere.mp4 cannot be read: No such file"),
        (("--video", "{text}"), "cannot be opened: it is no video that OpenCV can decode"),
        (("--video", "{empty}"), "cannot be opened: it is no video that OpenCV can decode"),
        (
            ("--video", "rtsp://user:secret@127.0.0.1:9/x"),
            "VideoError: rtsp://127.0.0.1:9/x cannot be opened",
        ),
    ],
)
def test_what_cannot_be_opened_is_said(
    tiny_bundle: Bundle, video: Path, tmp_path: Path, arguments: tuple[str, str], said: str
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    places = {"clip": video, "text": tmp_path / "text.mp4", "empty": tmp_path / "empty.mp4"}
    option, value = arguments
    done = run(tiny_bundle.path, option, value.format(**places), "--fallback", "local")
    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


@pytest.mark.parametrize("value", ["rtsp://user:secret@127.0.0.1:9/x", __file__])
def test_opencv_prints_nothing_of_its_own(tiny_bundle: Bundle, value: str) -> None:
    command = ["scissionlite", "run", str(tiny_bundle.path), "--fallback", "local"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--video", value],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: VideoError: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_video_without_its_end_is_answered_as_far_as_it_goes(
    tiny_bundle: Bundle, video: Path, tmp_path: Path
) -> None:
    content = video.read_bytes()
    (tmp_path / "half.avi").write_bytes(content[: len(content) // 2])
    done = run(
        *(tiny_bundle.path, "--video", tmp_path / "half.avi", "--fallback", "local", "--json")
    )
    summary = json.loads(done.stdout)["summary"]
    assert done.exit_code == 0
    assert f"half.avi ends after frame {summary['answers']} of {COUNT}" in done.stderr
    assert COUNT // 3 < summary["answers"] < COUNT


class _Endless(http.server.BaseHTTPRequestHandler):
    """A network camera: JPEGs one after the other, as fast as they are read."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for number in range(2000):
                _, jpeg = cv2.imencode(".jpg", drawn(number % COUNT))
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n")
                self.wfile.write(jpeg.tobytes() + b"\r\n")
                time.sleep(0.005)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def network_camera() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Endless) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/stream.mjpg"
        server.shutdown()
        thread.join()


def test_a_stream_from_the_network_is_live(
    tiny_bundle: Bundle, network_camera: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Device.submit

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.05)  # ten frames
        return submit(*arguments)

    monkeypatch.setattr(Device, "submit", slowly)
    done = run(
        *(tiny_bundle.path, "--video", network_camera, "--frames", 8, "--fallback", "local"),
        "--json",
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    numbers = [answer["frame"] for answer in printed["answers"]]
    assert len(numbers) == 8
    assert numbers == sorted(set(numbers))
    assert printed["summary"]["dropped"] >= numbers[-1] + 1 - 8 > 0


def test_opening_a_camera_needs_a_camera() -> None:
    with pytest.raises(VideoError, match="there is no camera /dev/video97"):
        open_camera("97", PREPROCESSING, **OPTIONS)


def test_a_camera_that_may_not_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/null stands for the camera: whoever runs the tests may be root, who may read all."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(VideoError, match=r"^/dev/null may not be read: add the user to the group"):
        open_camera("/dev/null", PREPROCESSING, **OPTIONS)
