"""Sources of pictures: what ``run`` answers. A picture is read into a frame of the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import typer

from scissionlite.errors import ImageError
from scissionlite.image_files import find_images
from scissionlite.images import Preprocessing


class Picture(NamedTuple):
    """One picture of a source.

    Attributes
    ----------
    image : str
        Name of the file, video or camera.
    frame : int or None
        Number of a video's or camera's frame, from 0 on; None for an image file.
    pixels : numpy.ndarray or ImageError
        uint8, ``(height, width, channels)``, as the bundle's preprocessing makes them; or why
        there are none.
    """

    image: str
    frame: int | None
    pixels: npt.NDArray[np.uint8] | ImageError


class Source(Protocol):
    """Something that has pictures, now or later."""

    @property
    def dropped(self) -> int:
        """How many frames were replaced by newer ones before anybody asked for them."""

    def pictures(self) -> Iterator[Picture]:
        """Read the pictures, one when it is asked for; waits for those that come later.

        Raises
        ------
        ScissionLiteError
            If there can be no more of them.
        """

    def stop(self) -> None:
        """Let :meth:`pictures` end soon; of any thread."""

    def close(self) -> None:
        """Give back what the source has opened."""


class ImageFiles:
    """Image files that are there, one after the other."""

    dropped = 0

    def __init__(self, files: list[Path], preprocessing: Preprocessing) -> None:
        self._files = files
        self._preprocessing = preprocessing

    def pictures(self) -> Iterator[Picture]:
        """Read the files."""
        for file in self._files:
            yield Picture(str(file), None, pixels_of(file, self._preprocessing))

    def stop(self) -> None:
        """Do nothing: reading a file takes no time to wait for."""

    def close(self) -> None:
        """Do nothing: no file is open between two pictures."""


def pixels_of(file: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8] | ImageError:
    """Read an image file, or say why it cannot be read."""
    try:
        return preprocessing.frame(file)
    except ImageError as error:
        return error


def image_files(paths: list[Path]) -> list[Path]:
    """Find the image files that arguments name: files, and folders of them.

    Raises
    ------
    typer.BadParameter
        If a path does not exist, or there are none.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += find_images(path).files
        elif path.exists() or path.is_symlink():
            files.append(path)
        else:
            raise typer.BadParameter(f"{path} does not exist")
    if not files:
        raise typer.BadParameter(f"no image files in {', '.join(map(str, paths))}")
    return files
