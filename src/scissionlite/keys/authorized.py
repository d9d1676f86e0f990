"""Files of public keys, one a line, in the manner of ssh's ``authorized_keys``."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scissionlite.atomic_folder import atomic_file
from scissionlite.errors import KeyFileError
from scissionlite.keys.files import KeyKind, PublicKey, parse_public, read_lines

logger = logging.getLogger(__name__)

_NOT_BY_OTHERS = 0o022  # whoever can write the file decides who is authorised


class AuthorizedKeys:
    """The link keys of a file, read again when it changes. Of one thread.

    Parameters
    ----------
    path
        The file; empty lines and lines that begin with ``#`` are comments.

    Raises
    ------
    KeyFileError
        If it cannot be read, others than its owner can write it, or a line is not a public key.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._state = _state(self._path)
        self._names = {key.key: key.name for key in read_keys(self._path, "link")}

    def __contains__(self, key: str) -> bool:
        return key in self._names

    def name(self, key: str) -> str:
        """Return the name of an authorised key."""
        return self._names[key]

    def refresh(self) -> bool:
        """Read the file again if it has changed; return whether it had.

        A file that cannot be read authorises nobody, and a line that is not a key authorises
        nobody either: both are logged, and the other lines hold.
        """
        state = _state(self._path)
        if state == self._state:
            return False
        self._state = state
        names: dict[str, str] = {}
        try:
            lines = read_lines(self._path, others=_NOT_BY_OTHERS)
        except KeyFileError as error:
            logger.error("nobody is authorised: %s", error)
            lines = []
        for line in lines:
            try:
                key = parse_public(line, "link", f"a line of {self._path}")
            except KeyFileError as error:
                logger.error("%s; the line is ignored", error)
            else:
                names[key.key] = key.name
        self._names = names
        logger.warning("%s has changed: %d keys are authorised", self._path, len(names))
        return True


def read_keys(path: Path, kind: KeyKind) -> list[PublicKey]:
    """Read a file of public keys of one kind.

    Raises
    ------
    KeyFileError
        If it cannot be read, others than its owner can write it, or a line is not such a key.
    """
    lines = read_lines(path, others=_NOT_BY_OTHERS)
    return [parse_public(line, kind, f"a line of {path}") for line in lines]


def authorize(path: Path, key: PublicKey) -> None:
    """Add a key to a file of authorised keys, which is made if need be.

    Raises
    ------
    KeyFileError
        If it is there already, another key has its name, or the file cannot be read or written.
    """
    with _locked(path):
        there = read_keys(path, key.kind) if path.exists() else []
        for other in there:
            if other.key == key.key:
                raise KeyFileError(f"{path} authorises this key already, as {other.name}")
            if other.name == key.name:
                raise KeyFileError(
                    f"{path} has another key of the name {key.name}: revoke that one first, or "
                    "make this one with another --name"
                )
        old = path.read_text("utf-8") if path.exists() else ""
        _replace(path, f"{old}{'' if old.endswith(chr(10)) or not old else chr(10)}{key.line}\n")


def revoke(path: Path, which: str) -> PublicKey:
    """Take a key, given by its name or in base64, out of a file of authorised keys.

    Raises
    ------
    KeyFileError
        If it is not there, or the file cannot be read or written.
    """
    with _locked(path):
        found = [key for key in read_keys(path, "link") if which in (key.name, key.key)]
        if not found:
            raise KeyFileError(f"{path} authorises no key {which!r}")
        kept = [
            line
            for line in path.read_text("utf-8").splitlines(keepends=True)
            if line.split()[1:2] != [found[0].key]
        ]
        _replace(path, "".join(kept))
    return found[0]


def _replace(path: Path, text: str) -> None:
    """Write a file in one step: a daemon that reads it finds the old text or the new one."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    try:
        with atomic_file(path) as file:
            file.write_text(text, encoding="utf-8")
            file.chmod(mode)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file's folder, so that two writers do not undo each other's change."""
    try:
        descriptor = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _state(path: Path) -> tuple[int, ...] | None:
    """Return facts that change when the file is written or replaced; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_mode
