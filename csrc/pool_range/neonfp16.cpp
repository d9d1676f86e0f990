// The pool_range kernels for NEON with ARMv8.2-A's half-precision arithmetic.

#include "vectors/neonfp16.h"

#include "encode.h"

SCISSIONLITE_POOL_RANGE_KERNELS(neonfp16, NeonFp16)
