// The pool_range kernels for NEON with ARMv8.2-A's half-precision arithmetic, and the pooling of
// encode too.

#include "vectors/neonfp16.h"

#include "encode.h"
#include "pooling.h"

SCISSIONLITE_POOLING(neonfp16, NeonFp16)
SCISSIONLITE_POOL_RANGE_KERNELS(neonfp16, NeonFp16)
