"""Image files of a folder, each when it is complete.

A file that its writer closed, or that was moved to its place, is read at once. One that comes
without such an event (a link, a file in a folder that is new itself, or after the kernel dropped
events) is read when it has not changed for a while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from scissionlite.cli.output import print_warning
from scissionlite.cli.run.folder_events import FolderEvent, FolderEvents
from scissionlite.cli.run.sources import Picture, pixels_of
from scissionlite.errors import ImageError
from scissionlite.images import Preprocessing

SETTLED: Final = 1.0
"""Seconds without a change after which a file is read that nobody was seen to close."""

LAST_CHANCE: Final = 20.0
"""Seconds without a change after which such a file, if it cannot be read, is an error."""

_WAIT_MS = 200  # for events; stop() and settled files are seen after it

T = TypeVar("T")


class _Version(NamedTuple):
    """A content of a file: another one has other values."""

    inode: int
    size: int
    mtime: int

    @classmethod
    def of(cls, file: Path) -> _Version | None:
        """Look at a file; None if it is not there."""
        try:
            status = file.stat()
        except OSError:
            return None
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class _Unsettled(NamedTuple):
    """A file that may not be complete."""

    version: _Version | None
    due: float
    last_chance: bool = False


class WatchedFolder:
    """The image files that come into a folder and the folders below it.

    A file that is written again is a new one, a file that is renamed is not. Hidden files and
    folders, and files without the suffix of an image, are left out.

    Parameters
    ----------
    folder
        The folder. It is watched from now on.
    preprocessing
        The bundle's.
    existing
        Whether files that are there already are answered, too.
    rescan
        Seconds between two looks at the whole folder, for a folder of another machine, whose
        writers inotify does not see; None does not look.

    Raises
    ------
    ImageError
        If the folder cannot be watched.
    """

    dropped = 0

    def __init__(
        self,
        folder: Path,
        preprocessing: Preprocessing,
        *,
        existing: bool = False,
        rescan: float | None = None,
    ) -> None:
        self._preprocessing = preprocessing
        self._events = FolderEvents(folder)
        self._rescan = rescan
        self._look_at = time.monotonic() + (rescan or 0.0)
        self._stopped = False
        # By their paths: versions that were answered, or were there at the start; files to be read
        # (those that may not be complete with what is known of them); and files that settle.
        self._answered: dict[Path, _Version | None] = {}
        self._old: dict[Path, _Version | None] = {}
        self._ready: dict[Path, _Unsettled | None] = {}
        self._unsettled: dict[Path, _Unsettled] = {}
        try:
            found = {file: _Version.of(file) for file in self._events.look()}
        except BaseException:
            self._events.close()
            raise
        if existing:
            self._unsettled = {
                file: _Unsettled(version, time.monotonic() + SETTLED)
                for file, version in found.items()
            }
        else:
            self._old = found

    def pictures(self) -> Iterator[Picture]:
        """Wait for files, and read them in the order in which they became complete.

        Raises
        ------
        ImageError
            If the folder itself is gone.
        """
        while not self._stopped:
            self._note_events(0 if self._ready else _WAIT_MS)
            now = time.monotonic()
            if self._rescan is not None and now >= self._look_at:
                self._look()
                self._look_at = now + self._rescan
            self._settle(now)
            if self._ready and (picture := self._read_next()) is not None:
                yield picture
        if self._ready:
            print_warning(f"{len(self._ready):,} files that came were not read")

    def stop(self) -> None:
        """Let :meth:`pictures` end; files that wait are not read."""
        self._stopped = True

    def close(self) -> None:
        """Watch no longer."""
        self._events.close()

    def _note_events(self, milliseconds: int) -> None:
        for event in self._events.read(milliseconds):
            self._note(event)

    def _note(self, event: FolderEvent) -> None:
        path = event.path
        if event.change == "appeared":
            self._found(path)
        elif event.change == "complete":
            # One that was there at the start is new if it is closed now: it was being written.
            self._old.pop(path, None)
            self._unsettled.pop(path, None)
            self._ready[path] = None
        elif event.change == "renamed":
            self._rename(event)
        elif event.change == "gone":
            _remove(self._answered, path, event.is_folder)
            _remove(self._old, path, event.is_folder)
            _remove(self._unsettled, path, event.is_folder)
        else:
            self._look()

    def _rename(self, event: FolderEvent) -> None:
        """Give files their new paths, where they or their folder were renamed."""
        _move(self._ready, self._ready, event)
        _move(self._unsettled, self._unsettled, event)
        _move(self._answered, self._answered, event)
        # One that was there at the start does not become new by another name.
        _move(self._old, self._answered, event)

    def _look(self) -> None:
        found = set(self._events.look())
        for file in sorted(found):
            self._found(file)
        for files in (self._answered, self._old):
            for file in files.keys() - found:
                del files[file]

    def _found(self, file: Path) -> None:
        """Note a file that may not be complete."""
        version = _Version.of(file)
        known = (self._answered.get(file), self._old.get(file))
        if version not in known and file not in self._ready and file not in self._unsettled:
            self._unsettled[file] = _Unsettled(version, time.monotonic() + SETTLED)

    def _settle(self, now: float) -> None:
        """Move files that have not changed for long enough to those that are read."""
        for file, unsettled in list(self._unsettled.items()):
            if now < unsettled.due:
                continue
            version = _Version.of(file)
            if version is None:
                del self._unsettled[file]
            elif version != unsettled.version:
                self._unsettled[file] = _Unsettled(version, now + SETTLED)
            else:
                self._ready[file] = self._unsettled.pop(file)

    def _read_next(self) -> Picture | None:
        """Read the first file that waits; None if it has nothing new after all."""
        file = next(iter(self._ready))
        version = _Version.of(file)
        if version is None:
            self._note_events(0)  # it may have another name now
            if file not in self._ready:
                return None
        unsettled = self._ready.pop(file)
        if version is None:
            if unsettled is not None:
                return None
            gone = ImageError(f"{file} was removed before it was read")
            return Picture(str(file), None, gone)
        if not version.size or version == self._answered.get(file):
            return None  # an empty file is still to be written
        pixels = pixels_of(file, self._preprocessing)
        after = _Version.of(file)
        failed = isinstance(pixels, ImageError)
        if after != version and (after is not None or failed):
            self._ready[file] = unsettled  # it was written again, or removed, meanwhile
            return None
        if failed and unsettled is not None and not unsettled.last_chance:
            due = time.monotonic() + LAST_CHANCE
            self._unsettled[file] = _Unsettled(version, due, last_chance=True)
            return None
        self._answered[file] = version
        return Picture(str(file), None, pixels)


def _remove(files: dict[Path, T], path: Path, is_folder: bool) -> dict[Path, T]:
    """Take out a file, or all files of a folder."""
    if is_folder:
        removed = [file for file in files if file.is_relative_to(path)]
    else:
        removed = [path] if path in files else []
    return {file: files.pop(file) for file in removed}


def _move(files: dict[Path, T], into: dict[Path, T], event: FolderEvent) -> None:
    """Take a file, or all files of a folder, to where they were renamed."""
    assert event.before is not None
    moved = _remove(files, event.before, event.is_folder)
    for file, value in moved.items():
        into[event.path / file.relative_to(event.before)] = value
