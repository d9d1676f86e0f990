"""Events of the image files below a folder, from Linux's inotify.

inotify-simple is the binding: a hundred lines of Python that need nothing else. watchdog holds
events back for half a second to pair moves, and watchfiles does not say that a file was closed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from scissionlite.cli.output import print_warning
from scissionlite.errors import ImageError
from scissionlite.image_files import has_image_suffix, is_hidden

if TYPE_CHECKING:
    from inotify_simple import Event

PAIRED: Final = 1.0
"""Seconds after which what was moved away is gone, unless it came back under another name."""

_LIMITS = {
    errno.ENOSPC: "the limit of watched folders is reached: raise fs.inotify.max_user_watches",
    errno.EMFILE: "the limit of watching programs is reached: raise fs.inotify.max_user_instances",
}

Change: TypeAlias = Literal["appeared", "complete", "renamed", "gone", "overflow"]


class FolderEvent(NamedTuple):
    """A change below the folder.

    Attributes
    ----------
    change
        A file ``appeared`` (perhaps not complete), or is ``complete`` (its writer closed it, or it
        was moved here). A file or a folder was ``renamed``, or is ``gone``. Or the kernel dropped
        events, an ``overflow``.
    path
        Of the file or folder.
    is_folder
        Whether it is a folder, with all that is in it.
    before
        Its path before it was renamed.
    """

    change: Change
    path: Path
    is_folder: bool = False
    before: Path | None = None


class _Moved(NamedTuple):
    """Something that was moved away, and may come back under another name."""

    path: Path
    is_folder: bool
    time: float


class FolderEvents:
    """Watches a folder and the folders below it; links to folders are followed.

    Parameters
    ----------
    folder
        The folder.

    Raises
    ------
    ImageError
        If it cannot be watched.
    """

    def __init__(self, folder: Path) -> None:
        from inotify_simple import INotify, flags

        self._folder = folder
        self._watched: dict[int, Path] = {}
        self._moved: dict[int, _Moved] = {}
        self._flags = flags
        self._mask = (
            flags.CLOSE_WRITE | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
        )
        self._mask |= flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
        try:
            self._inotify = INotify()
        except OSError as error:
            raise _refused(folder, error) from error

    def look(self, folder: Path | None = None) -> Iterator[Path]:
        """Watch a folder, by default all, and find the image files that it has now.

        Raises
        ------
        ImageError
            If the whole folder cannot be read, or no more can be watched.
        """
        yield from self._look(folder or self._folder, set())

    def read(self, milliseconds: int) -> Iterator[FolderEvent]:
        """Wait for events at most so long.

        Raises
        ------
        ImageError
            If the folder itself is gone.
        """
        for event in self._inotify.read(milliseconds):
            yield from self._translated(event)
        now = time.monotonic()
        for cookie, moved in list(self._moved.items()):
            if now > moved.time + PAIRED:
                del self._moved[cookie]
                yield self._gone(moved.path, moved.is_folder)

    def close(self) -> None:
        """Watch no longer."""
        self._inotify.close()

    def _look(self, folder: Path, entered: set[int]) -> Iterator[Path]:
        try:
            watch = self._inotify.add_watch(folder, self._mask)
            known = self._watched.get(watch, folder)
            if watch in entered or (known != folder and known.is_dir()):
                return  # a link to a folder that has a place already
            entered.add(watch)
            self._watched[watch] = folder
            # After the watch: a file that comes in between is found twice, not never.
            entries = sorted(folder.iterdir())
        except OSError as error:
            if folder == self._folder or error.errno in _LIMITS:
                raise _refused(folder, error) from error
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # it came and went
                print_warning(f"the folder {folder} cannot be watched: {error.strerror}")
            return
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from self._look(entry, entered)
            elif has_image_suffix(entry.name):
                yield entry

    def _translated(self, event: Event) -> Iterator[FolderEvent]:
        flags = self._flags
        if event.mask & flags.Q_OVERFLOW:
            yield FolderEvent("overflow", self._folder)
            return
        folder = self._watched.get(event.wd)
        if folder is None:
            return
        if event.mask & flags.IGNORED:
            del self._watched[event.wd]
        elif event.mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT):
            if folder == self._folder:
                raise ImageError(f"the folder {folder} is gone: it was removed or renamed")
        elif not is_hidden(event.name):
            yield from self._entry_event(event, folder / event.name)

    def _entry_event(self, event: Event, path: Path) -> Iterator[FolderEvent]:
        """Translate an event of a file or folder below."""
        flags = self._flags
        is_folder = bool(event.mask & flags.ISDIR)
        if not is_folder and not has_image_suffix(path.name):
            is_folder = bool(event.mask & (flags.CREATE | flags.MOVED_TO)) and path.is_dir()  # link
            if not is_folder:
                return
        if event.mask & flags.MOVED_FROM:
            self._moved[event.cookie] = _Moved(path, is_folder, time.monotonic())
        elif event.mask & flags.DELETE:
            yield self._gone(path, is_folder)
        elif event.mask & flags.MOVED_TO:
            if (moved := self._moved.pop(event.cookie, None)) is not None:
                self._rename_watches(moved.path, path)
                yield FolderEvent("renamed", path, is_folder, moved.path)
            if is_folder:
                yield from (FolderEvent("appeared", file) for file in self.look(path))
            else:
                yield FolderEvent("complete", path)
        elif is_folder:
            yield from (FolderEvent("appeared", file) for file in self.look(path))
        elif event.mask & flags.CLOSE_WRITE:
            yield FolderEvent("complete", path)
        else:  # created; or a link, which nobody closes
            yield FolderEvent("appeared", path)

    def _rename_watches(self, before: Path, path: Path) -> None:
        for watch, watched in self._watched.items():
            if watched.is_relative_to(before):
                self._watched[watch] = path / watched.relative_to(before)

    def _gone(self, path: Path, is_folder: bool) -> FolderEvent:
        for watch, watched in list(self._watched.items()) if is_folder else ():
            if watched.is_relative_to(path):
                # A folder that was moved out is still there, and is not ours.
                with suppress(OSError):  # removed with its folder
                    self._inotify.rm_watch(watch)
        return FolderEvent("gone", path, is_folder)


def _refused(folder: Path, error: OSError) -> ImageError:
    reason = _LIMITS.get(error.errno or 0) or error.strerror
    return ImageError(f"the folder {folder} cannot be watched: {reason}")
