"""A folder of bundles that is watched: what comes there is served, what goes is dropped.

The folder is looked at once a second, which also sees what another machine writes; a second does
not matter where loading takes as long. A bundle is loaded when its folder was the same in two
looks, so that one that is copied file by file is complete.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from scissionlite.errors import BundleError
from scissionlite.offloader.edge.engines.engine import Computation
from scissionlite.offloader.edge.loop import EdgeLoop

logger = logging.getLogger(__name__)

_LAST_JOIN = 0.5  # seconds for the thread to end, if it is not loading a bundle
_INTERVAL = 1.0  # seconds between two looks
_NOT_BY_OTHERS = 0o022  # whoever can write there decides which programs run here

State: TypeAlias = tuple[tuple[str, int, int, int], ...] | None
"""Names, inodes, sizes and times of the files of a folder; None if it is not there."""


class _Place(NamedTuple):
    """A folder: its last state that was used, and what came of it.

    ``bundle`` is the id of the bundle served from there, "" if none is; ``failed`` is true if the
    state could not be loaded.
    """

    state: State
    bundle: str
    failed: bool = False


class BundleFolder:
    """Serves the bundles of a folder's folders.

    Parameters
    ----------
    folder
        The folder. Folders in it whose names begin with a dot are left out.
    open_side
        Loads a bundle and its slices.
    given
        Ids of bundles that are served whether they are in the folder or not.
    signed
        Whether ``open_side`` takes only what somebody trusted has signed.

    Attributes
    ----------
    sides
        The computations of the bundles that are there at first.

    Raises
    ------
    BundleError
        If the folder cannot be read; or if others than its owner can write in it, and bundles are
        not signed.
    """

    def __init__(
        self,
        folder: Path,
        open_side: Callable[[Path], Computation],
        given: frozenset[str],
        *,
        signed: bool,
    ) -> None:
        try:
            mode = folder.stat().st_mode
            list(folder.iterdir())
        except OSError as error:
            raise BundleError(f"{folder} cannot be watched: {error.strerror}") from error
        if stat.S_IMODE(mode) & _NOT_BY_OTHERS and not signed:
            raise BundleError(
                f"others than its owner can write in {folder}, and the slices of bundles are "
                "programs: `chmod go-w` it, or take signed bundles only, trust="
            )
        self._folder = folder
        self._open = open_side
        self._places: dict[Path, _Place] = {}
        self._unsettled: dict[Path, State] = {}
        self._given = given
        self._loop: EdgeLoop | None = None
        self._wake, self._hurry, self._ended = threading.Event(), False, False
        self._thread: threading.Thread | None = None
        self.sides: list[Computation] = []
        self._look(hurry=True)

    @property
    def working(self) -> bool:
        """Whether the thread runs; after the end, one that is loading a bundle."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, loop: EdgeLoop) -> None:
        """Watch from now on, in a thread of its own, for the loop that serves the bundles."""
        self._loop, self.sides = loop, []
        self._thread = threading.Thread(
            target=self._watch, name="scissionlite-bundle-folder", daemon=True
        )
        self._thread.start()

    def look(self) -> None:
        """Look at once, and try again what could not be loaded; signal handlers may call it."""
        self._hurry = True
        self._wake.set()

    def stop(self) -> None:
        """Watch no longer; does not wait for a bundle that is being loaded."""
        self._ended = True
        self._wake.set()

    def close(self) -> None:
        """Watch no longer, and wait a moment for the thread."""
        self.stop()
        if self._thread is not None:
            self._thread.join(_LAST_JOIN)

    def _watch(self) -> None:
        while not self._ended:
            self._wake.wait(_INTERVAL)
            self._wake.clear()
            hurry, self._hurry = self._hurry, False
            if not self._ended:
                self._look(hurry=hurry)

    def _look(self, *, hurry: bool) -> None:
        """Use what has changed and is settled, or all of it in a hurry; removals come last."""
        try:
            found = {each: _state(each) for each in self._folder.iterdir() if each.name[0] != "."}
        except OSError as error:
            logger.error("%s cannot be read: %s", self._folder, error.strerror)
            return  # what is served from there goes on
        states = {path: state for path, state in found.items() if state is not None}
        gone = {path: None for path in self._places if path not in states}
        for path, state in {**dict(sorted(states.items())), **gone}.items():
            known = self._places.get(path, _Place(None, ""))
            if known.state == state and not (hurry and known.failed):
                self._unsettled.pop(path, None)
            elif not hurry and self._unsettled.get(path, ()) != state:
                self._unsettled[path] = state
            elif state is None:
                self._remove(path, known)
            else:
                self._load(path, state, known)

    def _load(self, path: Path, state: State, known: _Place) -> None:
        bundle = known.bundle
        try:
            side = self._open(path)
            if self._ended:
                return
            if self._loop is None:
                self.sides.append(side)
            else:
                self._loop.put(side, bundle if self._may_drop(path, bundle) else None)
        except Exception as error:  # whatever a runtime says of a slice
            still = "; the one that was there before is served still" if bundle else ""
            logger.error("%s cannot be served: %s%s", path, error, still)
            self._places[path] = _Place(state, bundle, failed=True)
            return
        self._places[path] = _Place(state, side.bundle.id)
        logger.info(
            "%s is served: %s, bundle %s",
            path,
            side.bundle.manifest.model,
            side.bundle.id[:12],
            extra={"bundle": side.bundle.id},
        )

    def _remove(self, path: Path, known: _Place) -> None:
        del self._places[path]
        self._unsettled.pop(path, None)
        if self._loop is None or not self._may_drop(path, known.bundle):
            return
        if known.bundle in [bundle.id for bundle in self._loop.bundles.bundles]:
            self._loop.drop(known.bundle)
            logger.info("%s is gone: bundle %s is served no longer", path, known.bundle[:12])

    def _may_drop(self, path: Path, bundle: str) -> bool:
        """Whether nobody else wants the bundle of a place."""
        others = [place.bundle for other, place in self._places.items() if other != path]
        return bundle != "" and bundle not in others and bundle not in self._given


def _state(folder: Path) -> State:
    try:
        return tuple(
            sorted(
                (file.name, status.st_ino, status.st_size, status.st_mtime_ns)
                for file in folder.iterdir()
                if (status := file.stat())
            )
        )
    except OSError:  # no folder, or it goes or comes just now
        return None
