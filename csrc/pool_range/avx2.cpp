// The pool_range kernels for AVX2, and the pooling of encode too.

#include "vectors/avx2.h"

#include "encode.h"
#include "pooling.h"

SCISSIONLITE_POOLING(avx2, Avx2)
SCISSIONLITE_POOL_RANGE_KERNELS(avx2, Avx2)
