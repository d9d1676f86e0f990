// The pool_range kernels for NEON, and the pooling of encode too.

#include "vectors/neon.h"

#include "encode.h"
#include "pooling.h"

SCISSIONLITE_POOLING(neon, Neon)
SCISSIONLITE_POOL_RANGE_KERNELS(neon, Neon)
