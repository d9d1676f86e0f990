// The decode kernels for NEON with ARMv8.2-A's half-precision arithmetic.

#include "vectors/neonfp16.h"

#include "decode.h"

SCISSIONLITE_DECODE_KERNELS(neonfp16, NeonFp16)
