"""Bundle: the deployed folder, written by the Preprocessor, read by device and edge. No torch.

A bundle is a folder with ``manifest.json`` and the slices that it names, each with its SHA-256
digest, and perhaps ``manifest.sig``, a signature of the manifest. The same folder goes to the
device and to the edge; each opens only the slices it runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from scissionlite.errors import BundleError
from scissionlite.manifest import (
    MANIFEST_NAME,
    READABLE_VERSIONS,
    Manifest,
    Role,
    SliceFile,
)

if TYPE_CHECKING:
    from scissionlite.keys.files import PublicKey

SIGNATURE_NAME = "manifest.sig"


class _Versioned(msgspec.Struct):
    """The fields that a manifest of any version has."""

    format: Literal["scissionlite-bundle"]
    version: int


class Bundle:
    """A bundle folder, opened.

    Use :meth:`load` to open one and :meth:`write` to make one.

    Attributes
    ----------
    path : pathlib.Path
        The folder.
    manifest : Manifest
        Its manifest.
    id : str
        SHA-256 of ``manifest.json``, hexadecimal. The manifest holds the digests of all slices, so
        device and edge have the same id only if they run the same bundle.
    """

    def __init__(self, path: Path, manifest: Manifest, bundle_id: str) -> None:
        self.path = path
        self.manifest = manifest
        self.id = bundle_id

    @classmethod
    def load(cls, path: str | Path, trust: str | Path | None = None) -> Bundle:
        """Open a bundle folder and check its manifest; slices are checked when they are used.

        Parameters
        ----------
        path
            The folder.
        trust
            File of public signing keys, of which one must have signed it; None takes any bundle.

        Raises
        ------
        BundleError
            If the folder or its manifest is missing, or the manifest is not valid.
        SignatureError
            If none of the trusted keys has signed it, or it was altered afterwards.
        KeyFileError
            As :func:`.signing.check_signature`.
        """
        from hashlib import sha256  # loads OpenSSL, which takes milliseconds

        folder = Path(path)
        try:
            raw = (folder / MANIFEST_NAME).read_bytes()
        except OSError as error:
            from scissionlite.atomic_folder import replaced_folder

            earlier = replaced_folder(folder)
            hint = (
                "`scissionlite prepare` makes one"
                if earlier is None
                else f"replacing it was interrupted, and the earlier one is {earlier}: rename it"
            )
            raise BundleError(
                f"{folder} is not a bundle: {MANIFEST_NAME} cannot be read ({error.strerror}); "
                f"{hint}"
            ) from error
        if trust is not None:
            from scissionlite.keys.signing import check_signature

            check_signature(raw, folder / SIGNATURE_NAME, Path(trust))
        try:
            version = msgspec.json.decode(raw, type=_Versioned).version
            if version not in READABLE_VERSIONS:
                raise BundleError(
                    f"{folder} has bundle format {version}, this build reads up to "
                    f"{max(READABLE_VERSIONS)}: prepare it again with this version"
                )
            manifest = msgspec.json.decode(raw, type=Manifest)
        except msgspec.MsgspecError as error:
            raise BundleError(f"{folder / MANIFEST_NAME} is not valid: {error}") from error
        return cls(folder, manifest, sha256(raw).hexdigest())

    @classmethod
    def write(cls, path: str | Path, manifest: Manifest, files: dict[str, Path]) -> Bundle:
        """Write a bundle completely or not at all, even if the process or the power fails.

        Parameters
        ----------
        path
            The folder to make. An earlier bundle there stays until the complete new one replaces it
            in one step. Anything else there is an error.
        manifest
            The manifest; its ``slices`` must name the keys of ``files``.
        files
            Name in the bundle to the file that is moved there.

        Raises
        ------
        BundleError
            If something that is not a bundle is at ``path`` already.
        """
        # A device never writes a bundle: it starts faster without the modules for writing.
        import shutil

        from scissionlite.atomic_folder import atomic_folder

        folder = Path(path)
        check_bundle_place(folder)
        with atomic_folder(folder) as staging:
            for name, source in files.items():
                shutil.move(source, staging / name)
            encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
            (staging / MANIFEST_NAME).write_bytes(encoded + b"\n")
        return cls.load(folder)

    @property
    def second_hop(self) -> Bundle:
        """Of a bundle with three tiers: that of the second hop alone, with an id of its own.

        The edge is the device there, and the next edge the edge. The slices are the same files.
        """
        from hashlib import sha256  # loads OpenSSL, which takes milliseconds

        hop_id = sha256(f"second hop of {self.id}".encode()).hexdigest()
        return Bundle(self.path, self.manifest.second_hop, hop_id)

    @property
    def files(self) -> tuple[SliceFile, ...]:
        """The files of all slices."""
        return tuple(file for files in self.manifest.slices.values() for file in files)

    def runtimes(self, role: Role) -> tuple[str, ...]:
        """The runtimes that a slice was prepared for, in the order of preference.

        Raises
        ------
        BundleError
            If the bundle has no such slice.
        """
        files = self.manifest.slices.get(role, ())
        if not files:
            hint = "; prepare it with the local fallback" if role == "network" else ""
            raise BundleError(f"bundle {self.path} has no {role} slice{hint}")
        return tuple(file.runtime for file in files)

    def slice_path(
        self, role: Role, runtime: str | None = None, *, copy: int | None = None
    ) -> Path:
        """Check a slice's size and SHA-256 digest against the manifest, and return its path.

        Parameters
        ----------
        role
            The role of the slice.
        runtime
            The runtime of the slice; by default the first that it was prepared for.
        copy
            Descriptor to which the checked bytes are written.

        Raises
        ------
        BundleError
            If the bundle has no such slice, its file is missing, or it was altered.
        """
        runtimes = self.runtimes(role)
        if runtime is not None and runtime not in runtimes:
            raise BundleError(
                f"bundle {self.path} has no {role} slice for {runtime}, only for "
                f"{', '.join(runtimes)}: prepare it with --runtime {runtime} too"
            )
        entry = self.manifest.slices[role][0 if runtime is None else runtimes.index(runtime)]
        file = self.path / entry.file
        if not file.is_file():
            raise BundleError(f"{file} is missing: copy the whole bundle folder")
        if file.stat().st_size != entry.bytes or file_sha256(file, copy) != entry.sha256:
            raise BundleError(f"{file} does not match its digest in {MANIFEST_NAME}: copy it again")
        return file

    def sign(self, key: str | Path) -> PublicKey:
        """Sign the manifest with the secret key of a file; return the public key.

        Raises
        ------
        BundleError, KeyFileError
            If a slice was altered; or as :func:`.signing.write_signature`.
        """
        from scissionlite.keys.signing import write_signature

        for role, files in self.manifest.slices.items():
            for file in files:
                self.slice_path(role, file.runtime)
        manifest = self.path / MANIFEST_NAME
        if file_sha256(manifest) != self.id:
            raise BundleError(f"{manifest} has changed: load it again")
        return write_signature(manifest.read_bytes(), self.path / SIGNATURE_NAME, key)


def file_sha256(path: Path, copy: int | None = None) -> str:
    """SHA-256 of a file, hexadecimal; what is read is also written to the descriptor ``copy``."""
    from hashlib import sha256  # loads OpenSSL, which takes milliseconds

    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if copy is not None:
                os.write(copy, block)
    return digest.hexdigest()


def check_bundle_place(folder: Path) -> None:
    """Check that a bundle would replace nothing but an earlier bundle.

    Raises
    ------
    BundleError
        If something else is there.
    """
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not (folder / MANIFEST_NAME).is_file():
        raise BundleError(
            f"{folder} exists and is not a bundle: choose another folder or remove it"
        )
