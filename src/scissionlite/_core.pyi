"""Typed stub of the compiled core (csrc/README.md). It checks its arguments and has no policy."""

from collections.abc import Callable
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]

class Quantizer:
    """Checked scales and zero points: one of each per tensor, or one per channel.

    Parameters
    ----------
    scales : float, or ndarray of float32, shape (groups,)
        Finite, positive, with a finite reciprocal in float32.
    zero_points : int, or ndarray of int32, shape (groups,)
        Within [-128, 127].

    Raises
    ------
    ValueError
        A value is not one of those.
    """

    @overload
    def __init__(self, scale: float, zero_point: int) -> None: ...
    @overload
    def __init__(self, scales: _Floats, zero_points: npt.NDArray[np.int32]) -> None: ...
    @staticmethod
    def from_range(
        lows: _Doubles,
        highs: _Doubles,
        dtype: str = "int8",
        scheme: str = "affine",
        levels: int = 0,
    ) -> Quantizer:
        """Make the scales and zero points whose codes span ranges, as docs/numerics.md says.

        Parameters
        ----------
        lows, highs : ndarray of float64, shape (groups,)
            Bounds of the ranges. ``+inf`` with ``-inf`` stands for the range 0 to 0.
        dtype : str
            ``"int8"`` or ``"int4"``.
        scheme : str
            ``"affine"`` or ``"symmetric"``.
        levels : int
            How many of the codes each range uses, at least 2; 0 for all.

        Raises
        ------
        ValueError
            A range is not finite, reversed, or too wide for a float32 scale; or `levels` is 1 or
            more than the number of codes.
        """

    @property
    def scales(self) -> tuple[float, ...]:
        """Scales, in float32 as the kernels use them."""

    @property
    def zero_points(self) -> tuple[int, ...]:
        """Zero points."""

    def __len__(self) -> int: ...

class Transfer:
    """A Transfer Layer for feature maps of one shape, with its kernels chosen (docs/numerics.md).

    Parameters
    ----------
    images, channels, height, width : int
        The feature map at full resolution.
    pool : int
        Window and stride: 1, 2 or 4.
    pool_kind : str
        "max" or "average".
    upsample : str
        "nearest" or "bilinear".
    layout : str
        Order in memory, of the feature map and of the payload: "nchw" or "nhwc".
    dtype : str
        Type of the payload: "float32", "float16", "int8" or "int4".
    isa : str, optional
        The instruction set, instead of :func:`isa`.

    Raises
    ------
    ValueError
        A size is zero, together they overflow, or a name is unknown.
    scissionlite.errors.IsaError
        The instruction set is unknown or cannot be used here.
    """

    def __init__(
        self,
        *,
        images: int,
        channels: int,
        height: int,
        width: int,
        pool: int = 1,
        pool_kind: str = "max",
        upsample: str = "nearest",
        layout: str = "nchw",
        dtype: str = "int8",
        isa: str | None = None,
    ) -> None: ...
    @property
    def pooled_size(self) -> int:
        """Number of elements of the pooled map."""

    @property
    def nbytes(self) -> int:
        """Bytes of payload."""

    def accepts(self, array: npt.NDArray[Any]) -> bool:
        """Tell whether an array is dense in this layout, aligned, and of the right size."""

    def encode(
        self,
        array: _Floats | npt.NDArray[np.float16],
        out: _Bytes,
        quantizer: Quantizer | None = None,
    ) -> None:
        """Pool, quantize and pack.

        Parameters
        ----------
        array : ndarray of float32 or float16
            A feature map that :meth:`accepts` takes.
        out : ndarray of uint8, shape (nbytes,)
            Contiguous, writable, aligned to the payload's type; it does not overlap `array`.
        quantizer : Quantizer, optional
            Required for int8 and int4, None otherwise: one group, or one per channel.

        Raises
        ------
        TypeError, ValueError
            An array or the quantizer does not fit.
        """

    def encode_measured(
        self,
        array: _Floats | npt.NDArray[np.float16],
        out: _Bytes,
        pooled: _Floats | None,
        per_channel: bool = False,
        scheme: str = "affine",
        levels: int = 0,
    ) -> Quantizer:
        """Encode with scales from the range of the map, in two passes.

        Parameters
        ----------
        array, out
            As in :meth:`encode`.
        pooled : ndarray of float32, shape (pooled_size,), or None
            Buffer for the pooled map; None only with ``pool=1``.
        per_channel : bool
            One scale per channel instead of one per tensor.
        scheme : str
            ``"affine"`` or ``"symmetric"``.
        levels : int
            How many of the codes the range uses, at least 2; 0 for all.

        Returns
        -------
        Quantizer
            The scales and zero points of the payload.

        Raises
        ------
        TypeError, ValueError
            An array does not fit, or the payload is not int8 or int4.
        """

    def pool_range(
        self,
        array: _Floats | npt.NDArray[np.float16],
        out: _Floats | None,
        per_channel: bool = False,
    ) -> tuple[_Floats, _Floats]:
        """Pool into float32 and find the smallest and largest finite value.

        Parameters
        ----------
        array : ndarray of float32 or float16
            A feature map that :meth:`accepts` takes.
        out : ndarray of float32, shape (pooled_size,), or None
            Where the pooled map is written. With ``pool=1`` it may be None, to find the range only.
        per_channel : bool
            One range per channel instead of one per tensor.

        Returns
        -------
        lows, highs : ndarray of float32, shape (groups,)
            ``+inf`` and ``-inf`` where no value was finite.
        """

    def decode(
        self,
        payload: _Bytes,
        out: _Floats | npt.NDArray[np.float16],
        quantizer: Quantizer | None = None,
    ) -> None:
        """Unpack, dequantize and upsample.

        Parameters
        ----------
        payload : ndarray of uint8, shape (nbytes,)
            Contiguous and aligned to its type.
        out : ndarray of float32 or float16
            Where the feature map is written: a writable array that :meth:`accepts` takes and that
            does not overlap `payload`.
        quantizer : Quantizer, optional
            As in :meth:`encode`.

        Raises
        ------
        TypeError, ValueError
            An array or the quantizer does not fit.
        """

class Frame:
    """A frame that a socket received, in libzmq's memory: a buffer of bytes."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def property(self, name: str) -> str:
        """Return a property of the connection that it came by; empty if it has none."""

class MessageSocket:
    """Whole messages of an open socket of pyzmq, read and sent in one call each; of one thread.

    Parameters
    ----------
    address_of : callable
        Returns the address of a function of libzmq.
    socket : int
        Address of the socket.
    most : int
        Frames of a message that are returned; what is over that is thrown away.
    property : str
        The property of a connection that :meth:`receive` returns (``zmq_msg_gets``).
    """

    def __init__(
        self, address_of: Callable[[str], int], socket: int, most: int, property: str = ""
    ) -> None: ...
    @property
    def busy(self) -> bool:
        """Whether frames or messages are still to be thrown away."""

    @property
    def descriptor(self) -> int:
        """The descriptor that tells of changes (``ZMQ_FD``)."""

    @property
    def events(self) -> int:
        """What can be done now (``ZMQ_EVENTS``)."""

    def close(self) -> None:
        """Use the socket no longer; any use from then on is a zmq.ZMQError."""

    def mute(self, descriptor: int) -> None:
        """Throw the messages of a connection away, and count them, until :meth:`unmute`."""

    def unmute(self) -> None:
        """Read every connection again; call :meth:`thrown` before."""

    def thrown(self) -> list[tuple[int, int, int, int]]:
        """Return the descriptors, messages, frames and bytes thrown away since the last call."""

    def receive(self) -> tuple[list[memoryview], int, str]:
        """Read a message, without copying or waiting.

        A message of too many frames keeps the socket busy for some calls after its first frames:
        each takes a few milliseconds, and returns nothing. So does a flood of a muted connection.

        Returns
        -------
        frames : list of memoryview
            None if there is no message yet.
        descriptor : int
            Of the connection that it came by; -1 if that has ended.
        property : str
            Of that connection; empty if it has none.

        Raises
        ------
        zmq.ZMQError
            If the socket cannot be read.
        """

    def send(self, frames: list[bytes | bytearray | memoryview]) -> bool:
        """Send a message (from 64 KiB without a copy); False without room in the socket's time.

        Raises
        ------
        zmq.ZMQError
            If it cannot be sent.
        """

class AnsTables:
    """Static tables of the entropy coder, checked (docs/numerics.md, "Entropy coding").

    Parameters
    ----------
    dtype : str
        "int8" or "int4".
    id : int
        The number that a payload begins with, 0 to 65535.
    table_of_channel : ndarray of uint8, shape (channels,)
        For each channel the number of its table. One channel stands for all of any tensor.
    frequencies : ndarray of uint16, shape (tables, 257), or (tables, 17) for int4
        Of each code, by the bits of its two's complement, and of the escape. A table sums to 4096.
    bounds : ndarray of int16, shape (channels, 8), optional
        The tables depend on neighbours: then `table_of_channel` has nine numbers for each channel.

    Raises
    ------
    ValueError
        They are no such tables. In calls, TypeError or ValueError: an array does not fit, or
        `count` is no whole number of images.
    """

    def __init__(
        self,
        dtype: str,
        id: int,
        table_of_channel: _Bytes,
        frequencies: npt.NDArray[np.uint16],
        bounds: npt.NDArray[np.int16] | None = None,
    ) -> None: ...
    def encode(
        self, payload: _Bytes, out: _Bytes, count: int, plane: int, nhwc: bool = ..., row: int = ...
    ) -> int:
        """Code a payload into the end of a buffer.

        Parameters
        ----------
        payload : ndarray of uint8, shape (count,), or (ceil(count / 2),) for int4
            Codes as :meth:`Transfer.encode` packs them.
        out : ndarray of uint8, shape (n,)
            The buffer. It needs 64 bytes more than the result may have.
        count, plane, row : int
            Number of codes; of one channel of one image; of a row, for tables with `bounds`.
        nhwc : bool
            Whether that is the payload's layout.

        Returns
        -------
        int
            Where the result starts in `out`; it goes to the end. `n` if it does not fit.
        """

    def decode(
        self, coded: _Bytes, out: _Bytes, count: int, plane: int, nhwc: bool = ..., row: int = ...
    ) -> str:
        """Decode a payload of exactly `count` codes; the bytes need not be trusted.

        Parameters
        ----------
        coded, out : ndarray of uint8
            Any bytes; and where the payload is written, of the size that :meth:`encode` takes.
        count, plane, nhwc, row
            As in :meth:`encode`.

        Returns
        -------
        str
            "done"; or why it is refused: "other-tables", "truncated", "trailing" or "altered".
            Then the content of `out` means nothing.
        """

def normalize_frame(frame: _Bytes, tables: _Floats, out: _Floats) -> None:
    """Look the values of a frame (height, width, channels) up in tables (channels, 256).

    Writes a plane for each channel to `out`. TypeError or ValueError: an array is of another dtype
    or shape or not C-contiguous, or `out` overlaps another.
    """

def kernels() -> list[tuple[str, str]]:
    """List (operation, isa) of every kernel in this build, best ISA first."""

def available_isas() -> list[str]:
    """List the ISAs that this build has and this CPU can run, best first."""

def isa() -> str:
    """Return the ISA in use: SCISSIONLITE_ISA if set, else the best one.

    Raises
    ------
    scissionlite.errors.IsaError
        SCISSIONLITE_ISA names an instruction set that is unknown or cannot be used here.
    """
