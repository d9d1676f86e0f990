"""Atomic folders and files: written whole or not at all, even if the writer or the power fails.

A folder is written beside its place under a name that nobody reads, flushed to the disk, and then
put in its place by one rename. The leftovers of a killed writer disturb nobody, and the next writer
of the same folder removes them. A file is written in the same way.

:func:`check_folder_place` and :func:`check_file_place` find out before any work whether a folder or
file can be written.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_UNFINISHED, _REPLACED = ".scissionlite-unfinished", ".scissionlite-replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fs.h


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write files into, and put it in the place of ``folder`` at the end.

    A folder that is there already is replaced in one step: whoever opens files there finds the old
    ones or the new ones. A file system that cannot exchange two folders (NFS) has none there for a
    moment. A writer that is killed in this moment leaves the old folder beside its place;
    :func:`replaced_folder` finds it.

    If the block raises, nothing changes.
    """
    folder = folder.resolve()  # the target of a symbolic link is replaced, not the link
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A lock marks the unfinished folder of a living writer; a killed writer's lock ended with it.
    # The parent's lock covers the moments in which a folder has no lock: while it is new, and while
    # an old one is set aside.
    with _locked(folder.parent):
        staging = Path(_named(folder, _UNFINISHED))
        lock = _lock(staging)
    try:
        staging.chmod(0o755)  # mkdtemp makes it private, but a daemon of another user reads it
        yield staging
        for path in (*staging.iterdir(), staging):
            _sync(path)
        with _locked(folder.parent):
            _put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # unfinished, or what was replaced
        if lock is not None:
            os.close(lock)
    _remove_leftovers(folder)


@contextmanager
def atomic_file(file: str | Path) -> Iterator[Path]:
    """Yield a path to write a file to, and put the file in the place of ``file`` at the end.

    If the block raises, nothing changes, and an OSError names ``file``. A device such as
    ``/dev/stdout`` is written to directly.
    """
    place = Path(file).resolve()  # the target of a symbolic link is replaced, not the link
    if place.exists() and not place.is_file():
        written = place
    else:
        # The suffix stays, because it says the format of a figure.
        written = place.with_name(f".{place.stem}.{os.getpid()}{_UNFINISHED}{place.suffix}")
    try:
        yield written
        if written != place:
            _sync(written)
            written.replace(place)
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        if written != place:
            written.unlink(missing_ok=True)


def check_file_place(file: Path) -> None:
    """Check that a file can be written: in a folder that exists, in the place of no folder.

    Raises
    ------
    OSError
        If it cannot.
    """
    place = file.resolve()
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if place.exists() and not place.is_file():
        return  # a device
    _check_writable(place.parent)


def check_folder_place(folder: Path) -> None:
    """Check that files can be written in a folder, which is there or can be made.

    Raises
    ------
    OSError
        If they cannot.
    """
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    _check_writable(existing)


def _check_writable(folder: Path) -> None:
    """Make and remove a folder in it: permissions alone do not tell of /proc or of root."""
    try:
        Path(tempfile.mkdtemp(prefix=".", suffix=_UNFINISHED, dir=folder)).rmdir()
    except OSError as error:
        error.filename = str(folder)
        raise


def replaced_folder(folder: Path) -> Path | None:
    """The earlier folder, if a writer was killed between removing it and placing the new one."""
    found = _beside(folder.resolve(), _REPLACED)
    return next((path for path in found if path.is_dir() and any(path.iterdir())), None)


def _named(folder: Path, suffix: str) -> str:
    return tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=suffix, dir=folder.parent)


def _beside(folder: Path, suffix: str) -> Iterator[Path]:
    return folder.parent.glob(f".{glob.escape(folder.name)}.*{suffix}")


def _put_in_place(staging: Path, folder: Path) -> None:
    aside = None
    if not folder.exists():
        staging.rename(folder)
    elif not _exchange(staging, folder):
        aside = Path(_named(folder, _REPLACED))
        folder.rename(aside)
        try:
            staging.rename(folder)
        except BaseException:
            aside.rename(folder)
            raise
    _sync(folder.parent)  # before the old one goes
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step, if kernel and file system can."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _remove_leftovers(folder: Path) -> None:
    with _locked(folder.parent):
        for leftover in (*_beside(folder, _UNFINISHED), *_beside(folder, _REPLACED)):
            lock = _lock(leftover)
            if lock is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path, operation: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> int | None:
    """Lock a folder; the returned descriptor holds the lock until it is closed.

    None means that another process has the lock, or that the file system does not lock folders. In
    the latter case nobody removes leftovers there.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, operation)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for a folder's lock and hold it."""
    lock = _lock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, before another step depends on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot do it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
