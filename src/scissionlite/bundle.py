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
from scissionlite.graph.tensors import OutputKind, TensorInfo, tensor_nbytes
from scissionlite.images import ImageFormat, Preprocessing
from scissionlite.transfer_layer import Quantization, TransferSpec
from scissionlite.transfer_layer.shaped_codec import check_quantization

if TYPE_CHECKING:
    from scissionlite.keys.files import PublicKey

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
FORMAT_VERSION = 4

Kind = Literal["split", "image", "local"]
"""Kind of a plan or bundle: packed feature maps cross the link, an image does, or nothing."""

Role = Literal["device", "edge", "network"]
"""Role of a slice: the first part, the rest, or the uncut network (for the kinds "local" and
"image", and as the fallback)."""


MAX_BATCH = 1024
"""Most inputs that one request may hold."""


class CrossingTensor(TensorInfo, frozen=True, kw_only=True):
    """A tensor that crosses the link, and how it is packed.

    ``shape`` is the shape of the device slice's output. With a learned Transfer Layer it is the
    output of the bottleneck, whose input has the shape ``feature_shape``; otherwise that is None.
    """

    transfer: TransferSpec
    quantization: Quantization | None = None
    feature_shape: tuple[int, ...] | None = None

    @property
    def feature_nbytes(self) -> int:
        """Bytes of the feature map without any Transfer Layer."""
        return tensor_nbytes(self.feature_shape or self.shape, self.dtype)


class SliceFile(msgspec.Struct, frozen=True):
    """A slice's file: name in the bundle, runtime that runs it, digest, and size in bytes."""

    file: str
    runtime: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        # A manifest may come from anywhere: it must not name a file outside its own folder.
        if Path(self.file).name != self.file or self.file in ("", ".", "..", MANIFEST_NAME):
            raise ValueError(f"a slice is a file in the bundle's own folder, not {self.file!r}")


class SlicingPointInfo(msgspec.Struct, frozen=True):
    """Where the network was cut: between the modules ``after`` and ``before``."""

    index: int
    after: str
    before: str


class Accuracy(msgspec.Struct, frozen=True):
    """The task's metric (0 to 1; for classes the share of right answers) on validation samples.

    ``before`` is the metric of the uncut network. ``after`` is the metric of this bundle's exported
    slices, with the real codec between them. ``sent_bytes`` is the mean payload of a sample, in
    bytes.
    """

    before: float
    after: float
    samples: int
    metric: str = "accuracy"
    sent_bytes: float = 0.0


class Training(msgspec.Struct, frozen=True):
    """How the slices were retrained.

    ``labels`` says whether labels were used. ``distillation`` is the share of the loss that
    compared with the uncut network. ``processor`` is "cpu" or "cuda".
    """

    epochs: int
    seconds: float
    seed: int
    learning_rate: float
    device_slice_trained: bool
    labels: bool = True
    distillation: float = 0.0
    processor: str = "cpu"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a bundle except the weights; ``manifest.json`` is its JSON form.

    ``transfer`` is the Transfer Layer of the plan. Each tensor of ``crossing`` has it adapted to
    its shape, and without the bottleneck of a learned one, which is part of the slices. No packed
    tensor crosses for the kinds "image" and "local". With ``max_batch`` over 1 a request may hold
    any number of inputs up to it. ``slices`` holds each slice for one or more runtimes, in the
    order of preference.
    """

    # More than 12 attributes: the fields of the file format, all in one place.

    format: Literal["scissionlite-bundle"] = "scissionlite-bundle"
    version: int = FORMAT_VERSION
    kind: Kind
    model: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    output_kind: OutputKind = "tensor"
    max_batch: int = 1
    slices: dict[Role, tuple[SliceFile, ...]]
    slicing_point: SlicingPointInfo | None = None
    crossing: tuple[CrossingTensor, ...] = ()
    transfer: TransferSpec | None = None
    image_format: ImageFormat | None = None
    jpeg_quality: int | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    accuracy: Accuracy | None = None
    training: Training | None = None
    created: str = ""
    versions: dict[str, str] = {}

    def __post_init__(self) -> None:
        needed: dict[Kind, tuple[str, ...]] = {
            "split": ("slicing_point", "crossing", "transfer"),
            "image": ("image_format", "preprocessing"),
            "local": (),
        }
        missing = [field for field in needed[self.kind] if getattr(self, field) in (None, ())]
        roles: tuple[Role, ...] = ("device", "edge") if self.kind == "split" else ("network",)
        missing += [
            f"slices.{role}"
            for role in dict.fromkeys((*roles, *self.slices))
            if not self.slices.get(role)
        ]
        missing += [field for field in ("inputs", "outputs") if not getattr(self, field)]
        if self.image_format == "jpeg" and self.jpeg_quality is None:
            missing.append("jpeg_quality")
        if missing:
            raise ValueError(f"a bundle of kind {self.kind!r} needs {', '.join(missing)}")
        for role, files in self.slices.items():
            if len({file.runtime for file in files}) < len(files):
                raise ValueError(f"more than one {role} slice for the same runtime")
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise ValueError(f"max_batch must be 1 to {MAX_BATCH}, got {self.max_batch}")
        if self.output_kind == "tensor" and len(self.outputs) != 1:
            raise ValueError(f"{len(self.outputs)} outputs, but the network answers one tensor")
        for tensor in self.crossing:
            check_quantization(tensor.transfer, tensor.shape, tensor.quantization)

    @property
    def sent_bytes(self) -> int:
        """Most bytes of payload of a request with the example's batch; 0 for an image."""
        return sum(t.transfer.packed_nbytes(t.shape) for t in self.crossing)

    @property
    def crossing_bytes(self) -> int:
        """Bytes that would cross without a Transfer Layer."""
        return sum(tensor.feature_nbytes for tensor in self.crossing)

    def takes_batch(self, batch: int) -> bool:
        """Whether a request may hold ``batch`` inputs."""
        return batch == self.inputs[0].shape[0] or 1 <= batch <= self.max_batch


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
            if version != FORMAT_VERSION:
                raise BundleError(
                    f"{folder} has bundle format {version}, this build reads {FORMAT_VERSION}: "
                    "prepare it again with this version"
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
