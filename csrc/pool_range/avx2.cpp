// The pool_range kernels for AVX2.

#include "vectors/avx2.h"

#include "encode.h"

SCISSIONLITE_POOL_RANGE_KERNELS(avx2, Avx2)
