"""The demo's steps, in the order of the flow; each prints a line on the console."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from scissionlite.atomic_folder import atomic_file
from scissionlite.bundle import Bundle
from scissionlite.demo.comparison import Row, compared_ways, measure
from scissionlite.demo.textures import write_dataset
from scissionlite.errors import PrepareError
from scissionlite.graph.capture import capture
from scissionlite.graph.graph import Graph
from scissionlite.images import Preprocessing
from scissionlite.models import load_model
from scissionlite.preprocessor import trainer
from scissionlite.preprocessor.data import ImageFolder
from scissionlite.preprocessor.opened_data import check_images
from scissionlite.preprocessor.pipeline import prepare
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.progress import progress_bar
from scissionlite.scissiontl.link import Link
from scissionlite.scissiontl.planner import plan
from scissionlite.scissiontl.plans import Plan
from scissionlite.scissiontl.profile import Profile
from scissionlite.scissiontl.profiler import profile

TEXTURES = {"train": 60, "test": 40}
"""Number of generated images per class."""


class Demo:
    """One run of the demo; its methods are called in the order in which they stand here."""

    def __init__(
        self,
        out: Path,
        console: Console,
        *,
        size: int,
        seed: int,
        slowdown: float,
        progress: bool,
    ) -> None:
        self.out = out
        self.console = console
        self.size = size
        self.seed = seed
        self.slowdown = slowdown
        self.progress = progress
        self._started = time.perf_counter()
        self._bundles: dict[tuple[object, ...], Bundle | None] = {}

    train_data: ImageFolder
    test_data: ImageFolder
    graph: Graph
    measured: Profile

    def write_textures(self) -> Path:
        """Generate the built-in data set and return its folder."""
        folder = self.out / "textures"
        self._print(f"Drawing the built-in data set (generated textures) in {folder}")
        write_dataset(folder, **TEXTURES, seed=self.seed)
        return folder

    def open_data(self, folder: Path, preprocessing: Preprocessing) -> None:
        """Open ``folder/train`` and ``folder/test``."""
        self.train_data = ImageFolder(folder / "train", preprocessing)
        classes = self.train_data.classes
        self.test_data = ImageFolder(folder / "test", preprocessing, classes=classes)
        for data in (self.train_data, self.test_data):
            check_images(data, progress=self.progress)
        self._print(
            f"{len(self.train_data)} training and {len(self.test_data)} test images, "
            f"{len(self.train_data.classes)} classes, at {self.size}x{self.size}"
        )

    def load_network(self, model: str, weights: Path | None, epochs: int) -> None:
        """Load the network, train it if there are no weights for it, and capture it."""
        torch.manual_seed(self.seed)
        network = load_model(model, num_classes=len(self.train_data.classes), weights=weights)
        if weights is None:
            self._print(f"Training the network itself: {model}, {epochs} epochs")
            trainer.train(
                network,
                self.train_data,
                Recipe(epochs=epochs, seed=self.seed),
                progress=self.progress,
                description="training the network",
            )
            # Given a path instead of an open file, torch does not say that the disk is full.
            with atomic_file(self.out / "network.pt") as file, file.open("wb") as opened:
                torch.save(network.state_dict(), opened)
        height, width, channels = self.train_data.preprocessing.frame_shape
        self.graph = capture(network, torch.zeros(1, channels, height, width), name=model)
        self._print(f"Captured: {self.graph}")

    def profile(self) -> None:
        """Measure the network on this host; for the device the times are multiplied later."""
        default_threads = torch.get_num_threads()
        frames = [self.test_data.frame(i) for i in range(0, len(self.test_data), 7)]
        with progress_bar(self.progress) as bar:
            # One thread, since device and edge share this host's cores.
            self.measured = profile(
                self.graph,
                threads=1,
                images=frames,
                preprocessing=self.test_data.preprocessing,
                progress=bar,
            )
        torch.set_num_threads(default_threads)
        self.measured.save(self.out / "profile.json")
        self._print(
            f"Profiled: uncut network {self.measured.network_latency * 1e3:.1f} ms on one thread "
            f"({self.out / 'profile.json'})"
        )

    def compare(
        self, links: Sequence[Link], *, at: str | None, epochs: int, images: int
    ) -> list[Row]:
        """Prepare and measure the ways to run it over each link."""
        step = max(1, len(self.test_data) // images)
        files = [file for file, _ in self.test_data.files[::step][:images]]
        rows = []
        for link in links:
            ranked = plan(self.measured.slowed(self.slowdown), self.measured, link)
            ways = {
                label: (chosen, bundle)
                for label, chosen in compared_ways(ranked, at).items()
                if (bundle := self._prepare(chosen, epochs)) is not None
            }
            self._print(f"Running over {link}, in turns: {', '.join(ways)}")
            rows += measure(ways, files, link, slowdown=self.slowdown)
        return rows

    def _prepare(self, chosen: Plan, epochs: int) -> Bundle | None:
        """Prepare a plan, once; None if the network in int8 is refused: then it is left out."""
        int8 = "int8" if chosen.device_precision == "int8" else ""
        key = (chosen.kind, chosen.slicing_point, chosen.spec, int8)
        if key not in self._bundles:
            pool, dtype = (chosen.spec.pool, chosen.spec.dtype) if chosen.spec else ("", "")
            spec = f"{pool}x{pool}-{dtype}" if chosen.spec else ""
            name = "_".join(filter(None, (chosen.kind, int8, chosen.slicing_point, spec)))
            where = f" at {chosen.slicing_point}" if chosen.slicing_point else ""
            self._print(f"Preparing a bundle: {chosen.label}{where}")
            try:
                self._bundles[key] = prepare(
                    self.graph,
                    chosen,
                    train=self.train_data,
                    validate=self.test_data,
                    out=self.out / "bundles" / name,
                    preprocessing=self.test_data.preprocessing,
                    recipe=Recipe(epochs=epochs, seed=self.seed),
                    local_fallback=False,
                    progress=self.progress,
                )
            except PrepareError as error:
                # What rounds too differently from what it is verified with is refused.
                if chosen.kind != "local" or not int8:
                    raise
                self._print(f"Left out, {chosen.label}: {error}")
                self._bundles[key] = None
        return self._bundles[key]

    def _print(self, what: str) -> None:
        passed = time.perf_counter() - self._started
        self.console.print(f"[dim]{passed:5.0f} s[/]  {what}", highlight=False, soft_wrap=True)
