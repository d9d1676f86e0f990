"""Typed stub of the compiled core. Its policy-free functions check their arguments and run."""

import numpy as np
import numpy.typing as npt

def maxpool2x2_quantize_f32_i8(
    input: npt.NDArray[np.float32],
    out: npt.NDArray[np.int8],
    scale: float,
    zero_point: int,
    *,
    isa: str | None = None,
) -> None:
    """2x2 max-pooling and int8 quantization: (P, H, W) to (P, ceil(H/2), ceil(W/2))."""

def dequantize_upsample2x_i8_f32(
    input: npt.NDArray[np.int8],
    out: npt.NDArray[np.float32],
    scale: float,
    zero_point: int,
    *,
    isa: str | None = None,
) -> None:
    """Dequantization and 2x nearest upsampling: (P, ceil(H/2), ceil(W/2)) to (P, H, W)."""

def maxpool2x2_f32_f32(
    input: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    *,
    isa: str | None = None,
) -> None:
    """2x2 max-pooling in float32: (P, H, W) to (P, ceil(H/2), ceil(W/2))."""

def upsample2x_f32_f32(
    input: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    *,
    isa: str | None = None,
) -> None:
    """2x nearest upsampling in float32: (P, ceil(H/2), ceil(W/2)) to (P, H, W)."""

def kernels() -> list[tuple[str, str]]:
    """Name (operation, isa) of every kernel in this build, best ISA first."""

def available_isas() -> list[str]:
    """List the ISAs that this build has and this CPU can run, best first."""

def isa() -> str:
    """Return the ISA in use: SCISSIONLITE_ISA if set, else the best one.

    Raises
    ------
    scissionlite.errors.IsaError
        SCISSIONLITE_ISA names an instruction set that is unknown or cannot be used here.
    """
