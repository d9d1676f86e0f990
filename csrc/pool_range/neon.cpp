// The pool_range kernels for NEON.

#include "vectors/neon.h"

#include "encode.h"

SCISSIONLITE_POOL_RANGE_KERNELS(neon, Neon)
