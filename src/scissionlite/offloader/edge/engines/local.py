"""The slices run in the daemon's own threads."""

from __future__ import annotations

from pathlib import Path

from scissionlite.bundle import Bundle
from scissionlite.offloader.edge.engines.engine import SliceOptions
from scissionlite.offloader.edge.side import EdgeSide


class LocalEngine:
    """Opens each bundle as an :class:`.side.EdgeSide` in this process."""

    workers = 1

    def open(self, bundle: Bundle | str | Path, options: SliceOptions) -> EdgeSide:
        """Load a bundle and its slice, which takes seconds."""
        return EdgeSide.open(
            bundle,
            options.threads,
            options.runtime,
            options.batch,
            options.processor,
            trust=options.trust,
        )

    def close(self) -> None:
        """Do nothing: the slices are freed with their computations."""
