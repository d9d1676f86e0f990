"""Key pairs as files, in the manner of ssh: the secret file, and beside it its ``.pub``.

Each file has one line: the kind of key, the key in base64, and its name. A secret file that
others can read is refused.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path
from typing import Literal

import msgspec

from scissionlite.errors import KeyFileError

KeyKind = Literal["link", "signing"]
"""What a key is for: CURVE on the links (Curve25519), or signatures of bundles (Ed25519)."""

KEY_BYTES = 32
PUBLIC_SUFFIX = ".pub"
MAX_FILE_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_.@+-]{1,64}")
_KINDS: dict[str, KeyKind] = {"scissionlite-link": "link", "scissionlite-signing": "signing"}
_SECRET = "-secret"


class PublicKey(msgspec.Struct, frozen=True):
    """A public key: what it is for, the key in base64, and the name of who holds the secret."""

    kind: KeyKind
    key: str
    name: str

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the key."""
        return base64.b64decode(self.key)

    @property
    def line(self) -> str:
        """The key as a line of a ``.pub`` file, or of a file of several keys."""
        return f"scissionlite-{self.kind} {self.key} {self.name}"


class SecretKey:
    """A secret key and its public key. Its ``repr`` does not show the secret."""

    def __init__(self, raw: bytes, public: PublicKey) -> None:
        self.raw = raw
        self.public = public


def make_key_pair(path: str | Path, kind: KeyKind = "link", name: str | None = None) -> PublicKey:
    """Make a key pair: the secret in a new file that only its owner can read, and ``path.pub``.

    Parameters
    ----------
    path
        Of the secret file; the public key goes beside it, into a file that ends in ``.pub``.
    kind
        What the key is for.
    name
        Name of the key's holder; by default the file's name without its suffix.

    Raises
    ------
    KeyFileError
        If one of the files is there already or cannot be written, the name is not one word of at
        most 64 letters, digits and ``_.@+-``, or a package for this kind of key is missing.
    """
    path = Path(path)
    name = re.sub(r"[^A-Za-z0-9_.@+-]", "-", path.stem)[:64] if name is None else name
    if not _NAME.fullmatch(name):
        raise KeyFileError(
            f"a key's name is 1 to 64 letters, digits and _.@+- without spaces, not {name!r}"
        )
    raw = os.urandom(KEY_BYTES)
    public = PublicKey(kind, encode_key(_public_of(raw, kind)), name)
    beside = Path(f"{path}{PUBLIC_SUFFIX}")
    for file, line, mode in (
        (path, f"scissionlite-{kind}{_SECRET} {encode_key(raw)} {name}", 0o600),
        (beside, public.line, 0o644),
    ):
        try:
            # The mode holds from the first moment on; a file that is there is never replaced.
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "w", encoding="ascii") as opened:
                opened.write(f"{line}\n")
        except FileExistsError as error:
            raise KeyFileError(
                f"{file} exists: a key is never replaced; choose another name or remove it"
            ) from error
        except OSError as error:
            raise KeyFileError(f"{file} cannot be written: {error.strerror}") from error
    return public


def read_secret(path: str | Path, kind: KeyKind | None = None) -> SecretKey:
    """Read a secret key that :func:`make_key_pair` wrote.

    Raises
    ------
    KeyFileError
        If it cannot be read, others can read it, or it is not a secret key (of this kind, if one
        is named).
    """
    path = Path(path)
    lines = read_lines(path, others=0o077)
    if len(lines) != 1:
        raise KeyFileError(f"{path} is not a secret key: it has {len(lines)} lines, not one")
    word, raw, name = _split(lines[0], f"{path} is not a secret key")
    if word in _KINDS:
        raise KeyFileError(f"{path} is a public key: give the secret file, without .pub")
    found = _KINDS.get(word.removesuffix(_SECRET))
    if found is None or kind not in (None, found):
        raise KeyFileError(
            f"{path} is not a {kind or 'secret'} key: `scissionlite keys make` makes one"
            + (" with --signing" if kind == "signing" else "")
        )
    return SecretKey(raw, PublicKey(found, encode_key(_public_of(raw, found)), name))


def read_public(path: str | Path, kind: KeyKind | None = None) -> PublicKey:
    """Read a public key: the only one of its file.

    Raises
    ------
    KeyFileError
        If it cannot be read, or is not one public key (of this kind, if one is named).
    """
    path = Path(path)
    lines = read_lines(path, others=0o022)
    if len(lines) != 1:
        raise KeyFileError(f"{path} is not a public key: it has {len(lines)} lines, not one")
    return parse_public(lines[0], kind, str(path))


def parse_public(line: str, kind: KeyKind | None, where: str) -> PublicKey:
    """Read a public key's line; ``where`` names its place in errors.

    Raises
    ------
    KeyFileError
        If it is not a public key of this kind.
    """
    word, raw, name = _split(line, f"{where} is not a public key")
    if word.endswith(_SECRET):
        raise KeyFileError(f"{where} is a secret key: give the public one, which ends in .pub")
    found = _KINDS.get(word)
    if found is None or kind not in (None, found):
        raise KeyFileError(f"{where} is not a public {kind or 'link or signing'} key, but {word!r}")
    return PublicKey(found, encode_key(raw), name)


def read_lines(path: Path, *, others: int) -> list[str]:
    """Read the lines of a key file that are neither empty nor comments (``#``).

    Parameters
    ----------
    path
        The file.
    others
        Bits of the file's mode that must not be set.

    Raises
    ------
    KeyFileError
        If it cannot be read, is not a regular file, is too large, has such a mode, or is not text.
    """
    try:
        # At once: whoever puts a named pipe there must not stop the daemon.
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is not a file")
            if status.st_mode & others:
                can = "read" if others & 0o044 else "change"
                raise KeyFileError(
                    f"others than its owner can {can} {path} (mode {status.st_mode & 0o777:04o}): "
                    f"chmod {'600' if others & 0o044 else 'go-w'} {path}"
                )
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise KeyFileError(f"{path} is over {MAX_FILE_BYTES} bytes: it is no file of keys")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is not text: it is no file of keys") from error
    lines = [line.strip() for line in text.split("\n")]
    return [line for line in lines if line and not line.startswith("#")]


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _split(line: str, trouble: str) -> tuple[str, bytes, str]:
    """Split a line into its kind, the raw key, and the name. Errors never show the key."""
    words = line.split()
    if len(words) != 3:
        raise KeyFileError(f"{trouble}: a key's line has three words: kind, key, name")
    word, text, name = words
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES or encode_key(raw) != text:  # one spelling a key
        raise KeyFileError(f"{trouble}: its second word is not {KEY_BYTES} bytes in base64")
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"{trouble}: its name is not 1 to 64 letters, digits and _.@+-")
    return word, raw, name


def encode_key(raw: bytes) -> str:
    """Write a key as base64."""
    return base64.b64encode(raw).decode("ascii")


def _public_of(raw: bytes, kind: KeyKind) -> bytes:
    if kind == "link":
        return curve_public(raw)
    from scissionlite.keys.signing import public_of

    return public_of(raw)


def curve_public(secret: bytes) -> bytes:
    """Derive the public key of a link key.

    Raises
    ------
    KeyFileError
        If this machine's ZeroMQ was built without CURVE.
    """
    import zmq  # a device without an edge does not need it
    from zmq.utils import z85

    if not zmq.has("curve"):
        raise KeyFileError(
            "this machine's ZeroMQ has no CURVE encryption: install pyzmq's wheel from PyPI, or "
            "build libzmq with libsodium"
        )
    return z85.decode(zmq.curve_public(z85.encode(secret)))
