"""The options of ``run`` that say what is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from scissionlite.cli.run.sources import ImageFiles, Source, image_files
from scissionlite.images import Preprocessing

_PANEL = "What is answered"

ImagesArgument = Annotated[
    list[Path],
    typer.Argument(help="Image files, or folders of them.", show_default=False),
]
WatchOption = Annotated[
    Path | None,
    typer.Option(
        help="Answer the image files that come into this folder or one below it, each when it is "
        "complete, until Ctrl-C.",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        rich_help_panel=_PANEL,
    ),
]
ExistingOption = Annotated[
    bool,
    typer.Option(
        "--existing",
        help="With --watch: answer the files that are there already, too.",
        rich_help_panel=_PANEL,
    ),
]
RescanOption = Annotated[
    float | None,
    typer.Option(
        help="With --watch: also look through the folder every so many seconds, for a folder of "
        "another machine.",
        min=0.1,
        max=86_400,
        rich_help_panel=_PANEL,
    ),
]
CameraOption = Annotated[
    str | None,
    typer.Option(
        help="Answer the newest frame of a camera (V4L2), by its number or device: 0 or "
        "/dev/video0.",
        rich_help_panel=_PANEL,
    ),
]
VideoOption = Annotated[
    str | None,
    typer.Option(
        help="Answer every frame of a video file; of a stream (rtsp://...) the newest.",
        metavar="FILE|URL",
        rich_help_panel=_PANEL,
    ),
]
FpsOption = Annotated[
    float | None,
    typer.Option(
        help="With --camera or --video: take at most so many frames a second of its time.",
        min=0.001,
        max=1000,
        rich_help_panel=_PANEL,
    ),
]
FramesOption = Annotated[
    int | None,
    typer.Option(
        help="With --camera or --video: take so many frames, and end.",
        min=1,
        rich_help_panel=_PANEL,
    ),
]


class SourceRequest(NamedTuple):
    """The options that name a source; the fields are theirs."""

    images: list[Path]
    watch: Path | None
    existing: bool
    rescan: float | None
    camera: str | None
    video: str | None
    fps: float | None
    frames: int | None

    def check(self, repeat: int) -> None:
        """Check that there is one source, and that the other options are of it.

        Raises
        ------
        typer.BadParameter
            If not.
        """
        given = {
            "IMAGES": bool(self.images),
            "--watch": self.watch is not None,
            "--camera": self.camera is not None,
            "--video": self.video is not None,
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) != 1:
            got = f", not {' and '.join(names)}" if names else ""
            raise typer.BadParameter(f"give one of IMAGES, --watch, --camera and --video{got}")
        of_others = {
            "--existing": (self.existing, ("--watch",)),
            "--rescan": (self.rescan is not None, ("--watch",)),
            "--fps": (self.fps is not None, ("--camera", "--video")),
            "--frames": (self.frames is not None, ("--camera", "--video")),
            "--repeat": (repeat > 1, ("IMAGES",)),
        }
        for option, (is_given, owners) in of_others.items():
            if is_given and names[0] not in owners:
                raise typer.BadParameter(f"{option} goes with {' or '.join(owners)}")

    @property
    def is_endless(self) -> bool:
        """Whether there may be any number of pictures."""
        return not self.images

    @property
    def announcement(self) -> str | None:
        """A line that says what is waited for; None for what has an end."""
        if self.watch is not None:
            return f"Answering new images in {self.watch}. Ctrl-C stops."
        if self.camera is not None:
            return f"Answering camera {self.camera}. Ctrl-C stops."
        return None

    def open(self, preprocessing: Preprocessing) -> Source:
        """Open the source; what it needs is imported only now.

        Raises
        ------
        typer.BadParameter
            If there are no such image files.
        ImageError, VideoError
            If the folder, camera or video cannot be opened.
        """
        if self.images:
            return ImageFiles(image_files(self.images), preprocessing)
        if self.watch is not None:
            from scissionlite.cli.run.watched_folder import WatchedFolder

            return WatchedFolder(
                self.watch, preprocessing, existing=self.existing, rescan=self.rescan
            )
        from scissionlite.cli.run.video import open_camera, open_video

        if self.camera is not None:
            return open_camera(self.camera, preprocessing, fps=self.fps, frames=self.frames)
        assert self.video is not None
        return open_video(self.video, preprocessing, fps=self.fps, frames=self.frames)
