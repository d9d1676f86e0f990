// The pool_range kernels for AVX-512.

#include "vectors/avx512.h"

#include "encode.h"

SCISSIONLITE_POOL_RANGE_KERNELS(avx512, Avx512)
