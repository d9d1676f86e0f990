"""Photographs with a mask each: the classes of their pixels, for segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from scissionlite.errors import PrepareError
from scissionlite.image_files import read_indices, upright_size
from scissionlite.images import Preprocessing
from scissionlite.preprocessor.data import Photographs

IMAGES, MASKS = "images", "masks"
"""The folders of photographs and of masks."""

_SHOWN = 3
"""Most files that a message names."""


class MaskFolder(Photographs):
    """Photographs with masks: ``FOLDER/images/NAME.jpg`` and ``FOLDER/masks/NAME.png``.

    A mask has the photograph's size, and a pixel of it is the index of a class, or 255 where none
    counts. Palettes are not looked at. It is resized and cropped as the photograph is, without
    interpolation, and mirrored with it. Photographs may be in folders below ``images``; masks are
    then in the same ones.

    Parameters and errors are those of :class:`.Photographs`, and:

    Attributes
    ----------
    masks : list of pathlib.Path
        The mask of each photograph.

    Raises
    ------
    PrepareError
        If a photograph has no mask, or a mask no photograph. Samples raise it for a mask of
        another size.
    """

    expected = "expected {root}/images/NAME.jpg and {root}/masks/NAME.png"

    def __init__(
        self, folder: str | Path, preprocessing: Preprocessing, *, augment: bool = False
    ) -> None:
        self.masks: list[Path] = []
        self._fitted: dict[int, npt.NDArray[np.uint8]] = {}
        super().__init__(folder, preprocessing, augment=augment)

    def _find(self) -> list[tuple[Path, int]]:
        for name in (IMAGES, MASKS):
            if not (self.folder / name).is_dir():
                raise PrepareError(
                    f"{self.folder} has no folder {name!r}: {self.expected.format(root='it')}"
                )
        photographs = self._by_name(self.folder / IMAGES)
        masks = self._by_name(self.folder / MASKS)
        for these, others, missing in ((photographs, masks, "mask"), (masks, photographs, "image")):
            if alone := [str(these[name]) for name in these if name not in others]:
                more = f", and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
                raise PrepareError(f"there is no {missing} for {', '.join(alone[:_SHOWN])}{more}")
        self.masks = [masks[name] for name in photographs]
        return [(file, 0) for file in photographs.values()]

    def _by_name(self, folder: Path) -> dict[Path, Path]:
        """Images by their path in a folder, without suffix."""
        named: dict[Path, Path] = {}
        for file, _ in self._labelled(folder, 0):
            name = file.relative_to(folder).with_suffix("")
            if name in named:
                raise PrepareError(f"{named[name]} and {file} have the same name")
            named[name] = file
        return named

    def mask(self, index: int) -> npt.NDArray[np.uint8]:
        """The classes of a photograph's pixels: uint8, ``(height, width)``."""
        if index in self._fitted:
            return self._fitted[index]
        file, photograph = self.masks[index], self.files[index][0]
        indices, size = read_indices(file), upright_size(photograph)
        if indices.size != size:
            raise PrepareError(
                f"{file} has {indices.width}x{indices.height} pixels, and {photograph} "
                f"{size[0]}x{size[1]}"
            )
        fitted = np.asarray(self.preprocessing.fit(indices, "nearest"))
        if self._cache is not None:
            self._fitted[index] = fitted
        return fitted

    def _target(self, index: int, *, mirrored: bool) -> torch.Tensor:
        mask = self.mask(index)
        return torch.from_numpy((mask[:, ::-1] if mirrored else mask).astype(np.int64))
