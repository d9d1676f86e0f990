// The pool_range kernels for AVX-512, and the pooling of encode too.

#include "vectors/avx512.h"

#include "encode.h"
#include "pooling.h"

SCISSIONLITE_POOLING(avx512, Avx512)
SCISSIONLITE_POOL_RANGE_KERNELS(avx512, Avx512)
