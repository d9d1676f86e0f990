"""Frames of videos and cameras, read with OpenCV and resized as image files are.

A file gives every frame. A camera, or a stream from the network, gives the newest frame when the
device has time for one: the frames before it are dropped, so that no answer is about the past.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from scissionlite.cli.output import print_warning
from scissionlite.cli.run.sources import Picture
from scissionlite.errors import ImageError, VideoError
from scissionlite.images import Preprocessing
from scissionlite.offloader.device.newest_frame import FrameReader, NewestFrame

if TYPE_CHECKING:
    import cv2

OPEN_SECONDS: Final = 10.0
"""Seconds after which a stream that does not open, or gives no frame, is given up."""

_WHOLE = 0.9  # of the stated frames, which some files only estimate


def frame_of(pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Make the network's frame of OpenCV's, exactly as an image file with these pixels becomes it.

    Parameters
    ----------
    pixels
        uint8, BGR, ``(height, width, 3)``.
    preprocessing
        The bundle's.
    """
    from PIL import Image

    return preprocessing.frame(Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])))


class VideoFile:
    """Every frame of a video file, in order.

    Parameters
    ----------
    capture, name
        The opened video and its name.
    preprocessing
        The bundle's.
    fps
        Take at most so many frames of each second of the video; None takes all.
    frames
        Take so many frames and then end; None takes all.

    Raises
    ------
    VideoError
        If the video does not state its rate, and ``fps`` needs it.
    """

    dropped = 0

    def __init__(
        self,
        capture: cv2.VideoCapture,
        name: str,
        preprocessing: Preprocessing,
        *,
        fps: float | None = None,
        frames: int | None = None,
    ) -> None:
        self._capture = capture
        self._name = name
        self._preprocessing = preprocessing
        self._frames = frames
        self._step = 1.0
        if fps is not None:
            rate = float(capture.get(_cv2().CAP_PROP_FPS))
            if not rate > 0:
                raise VideoError(f"{name} does not state its frames per second: leave out fps=")
            self._step = max(rate / fps, 1.0)
        self._stopped = False

    def pictures(self) -> Iterator[Picture]:
        """Read the frames."""
        taken = number = 0
        while not self._stopped and self._capture.grab():
            if number >= taken * self._step:
                read, pixels = self._capture.retrieve()
                yield _picture(self._name, number, pixels if read else None, self._preprocessing)
                taken += 1
                if taken == self._frames:
                    return
            number += 1
        if self._stopped:
            return
        if not number:
            raise VideoError(f"{self._name} has no frame that can be decoded")
        stated = self._capture.get(_cv2().CAP_PROP_FRAME_COUNT)
        if number < _WHOLE * stated:
            print_warning(f"{self._name} ends after frame {number} of {stated:.0f}: is it whole?")

    def stop(self) -> None:
        """Let :meth:`pictures` end."""
        self._stopped = True

    def close(self) -> None:
        """Close the video."""
        self._capture.release()


class LiveVideo:
    """The newest frame of a camera or a stream; a thread of its own reads all of them.

    Parameters
    ----------
    As :class:`VideoFile`; ``fps`` is of real time.
    """

    def __init__(
        self,
        capture: cv2.VideoCapture,
        name: str,
        preprocessing: Preprocessing,
        *,
        fps: float | None = None,
        frames: int | None = None,
    ) -> None:
        self._capture = capture
        self._name = name
        self._preprocessing = preprocessing
        self._interval = 0.0 if fps is None else 1 / fps
        self._frames = frames
        self._changed = threading.Condition()
        # The same place and thread as Device.stream's; here frames that nobody takes are dropped
        # before they are resized, and those under way are answered when the stream ends.
        self._newest = NewestFrame(self._notify)
        self._reader: FrameReader | None = None
        self._stopped = False

    @property
    def dropped(self) -> int:
        """How many frames were replaced by newer ones."""
        return self._newest.dropped

    def pictures(self) -> Iterator[Picture]:
        """Wait for the frames, and give the newest.

        Raises
        ------
        VideoError
            If the camera or stream gives no more frames.
        """
        newest = self._newest
        self._reader = FrameReader(self._read_all(), newest)
        taken = 0
        while taken != self._frames:
            with self._changed:
                self._changed.wait_for(lambda: newest.waits or newest.ended or self._stopped)
            if self._stopped:
                return
            if (frame := newest.take()) is None:
                raise newest.error or VideoError(
                    f"{self._name} gives no more frames: it was unplugged, or the stream ended"
                )
            number, pixels = frame.frame
            yield _picture(self._name, number, pixels, self._preprocessing)
            taken += 1

    def stop(self) -> None:
        """Let :meth:`pictures` end."""
        self._stopped = True
        self._notify()

    def close(self) -> None:
        """Close the camera, after the read under way."""
        self.stop()
        if self._reader is None:
            self._capture.release()
        else:
            self._reader.close()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _read_all(self) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Read frames as fast as they come, with their numbers; in the reader's thread."""
        number, due = 0, time.monotonic()
        try:
            while not self._stopped and self._capture.grab():
                now = time.monotonic()
                if now >= due:
                    read, pixels = self._capture.retrieve()
                    if read:
                        due = max(due + self._interval, now - self._interval)
                        yield number, np.asarray(pixels, np.uint8)
                number += 1
        finally:
            self._capture.release()


def open_camera(
    name: str, preprocessing: Preprocessing, *, fps: float | None, frames: int | None
) -> LiveVideo:
    """Open a V4L2 camera by its number or device file.

    Raises
    ------
    VideoError
        If it cannot be opened, with the reason.
    """
    cv2 = _cv2()
    device = Path(f"/dev/video{name}" if name.isdecimal() else name)
    capture = cv2.VideoCapture()
    try:
        if not stat.S_ISCHR(device.stat().st_mode):
            raise VideoError(f"{device} is no camera: --video reads files")
        if not os.access(device, os.R_OK | os.W_OK):
            raise VideoError(f"{device} may not be read: add the user to the group 'video'")
    except OSError as error:
        raise VideoError(f"there is no camera {device}: {error.strerror}") from error
    capture.open(str(device), cv2.CAP_V4L2)
    if not capture.isOpened():
        raise VideoError(f"{device} cannot be opened: it is no camera, or another program has it")
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # older frames are of no use
    return LiveVideo(capture, str(device), preprocessing, fps=fps, frames=frames)


def open_video(
    name: str, preprocessing: Preprocessing, *, fps: float | None, frames: int | None
) -> VideoFile | LiveVideo:
    """Open a video file, or a stream by its URL.

    Raises
    ------
    VideoError
        If it cannot be opened, with the reason as far as OpenCV gives one.
    """
    cv2 = _cv2()
    stream = "://" in name
    shown = _without_password(name) if stream else name
    if not stream:
        _check_file(Path(name))
    patience = int(1000 * OPEN_SECONDS)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, patience, cv2.CAP_PROP_READ_TIMEOUT_MSEC, patience]
    capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        hint = "does the address answer?" if stream else "it is no video that OpenCV can decode"
        raise VideoError(f"{shown} cannot be opened: {hint}")
    # A stream that has an end is a file on another machine.
    live = stream and capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0
    kind = LiveVideo if live else VideoFile
    return kind(capture, shown, preprocessing, fps=fps, frames=frames)


def _check_file(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise VideoError(f"the video {file} cannot be read: {error.strerror}") from error


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _picture(name: str, number: int, pixels: Any, preprocessing: Preprocessing) -> Picture:
    if pixels is None:
        return Picture(name, number, ImageError(f"frame {number} of {name} cannot be decoded"))
    return Picture(name, number, frame_of(pixels, preprocessing))


def _cv2() -> Any:
    """Import OpenCV, silent: what it prints is said in the errors above."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    return cv2
