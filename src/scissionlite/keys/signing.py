"""Signatures of bundles: Ed25519 (RFC 8032), by PyNaCl, the extra ``sign``.

PyNaCl is libsodium, which also does CURVE's cryptography inside pyzmq. Its wheel has 1.4 MB, and
``cryptography``'s 4.8 MB.
"""

from __future__ import annotations

import base64
from pathlib import Path
from types import ModuleType

from scissionlite.errors import KeyFileError, SignatureError
from scissionlite.keys.authorized import read_keys
from scissionlite.keys.files import PublicKey, read_secret

_PURPOSE = b"scissionlite bundle manifest\0"
"""Goes before what is signed, so that no signature for another purpose is one of a bundle."""

_WORD = "scissionlite-signature"
_MAX_BYTES = 1024  # of a signature file


def public_of(secret: bytes) -> bytes:
    """Derive the public key of a signing key."""
    return bytes(_nacl().SigningKey(secret).verify_key)


def write_signature(data: bytes, path: Path, key: str | Path) -> PublicKey:
    """Sign data, and write the signature to a file in one step: the signer's key, the signature.

    Parameters
    ----------
    data
        What is signed.
    path
        The file to write.
    key
        File of the secret key.

    Raises
    ------
    KeyFileError
        If the key cannot be read, others can read it, or PyNaCl is not installed; or if the file
        cannot be written.
    """
    secret = read_secret(key, "signing")
    signature = _nacl().SigningKey(secret.raw).sign(_PURPOSE + data).signature
    encoded = base64.b64encode(signature).decode("ascii")
    unfinished = path.with_name(f".{path.name}")
    try:
        unfinished.write_text(f"{_WORD} {secret.public.key} {encoded}\n")
        unfinished.replace(path)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error
    return secret.public


def check_signature(data: bytes, path: Path, trust: Path) -> None:
    """Check that a trusted key has signed data.

    Parameters
    ----------
    data
        What must be signed.
    path
        The file of the signature.
    trust
        File of the public keys of which one must have signed it.

    Raises
    ------
    SignatureError
        If there is no signature, it is by another key, or it is of other data.
    KeyFileError
        If the file of keys cannot be read, or PyNaCl is not installed.
    """
    trusted = {key.key.encode(): key for key in read_keys(trust, "signing")}
    nacl = _nacl()
    try:
        with path.open("rb") as file:
            words = file.read(_MAX_BYTES).split()
    except OSError as error:
        raise SignatureError(
            f"{path.parent} is not signed: {path.name} cannot be read ({error.strerror}); "
            "`scissionlite sign` makes it"
        ) from error
    if len(words) != 3 or words[0] != _WORD.encode():
        raise SignatureError(f"{path} is not a signature: sign the bundle again")
    signer = trusted.get(words[1])
    if signer is None:
        shown = words[1].decode("ascii", "replace")
        raise SignatureError(f"{path.parent} is signed by {shown}, which is no key of {trust}")
    try:
        proof = base64.b64decode(words[2], validate=True)
        nacl.VerifyKey(signer.raw).verify(_PURPOSE + data, proof)
    except (nacl.exc.CryptoError, ValueError) as error:
        raise SignatureError(f"{path.parent} was altered after {signer.name} signed it") from error


def _nacl() -> ModuleType:
    try:
        import nacl.signing
    except ImportError as error:
        raise KeyFileError(
            "signatures need PyNaCl, which is not installed: pip install 'scissionlite[sign]'"
        ) from error
    signing: ModuleType = nacl.signing
    return signing
