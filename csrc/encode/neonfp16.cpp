// The encode kernels for NEON with ARMv8.2-A's half-precision arithmetic.

#include "vectors/neonfp16.h"

#include "encode.h"

SCISSIONLITE_ENCODE_KERNELS(neonfp16, NeonFp16)
