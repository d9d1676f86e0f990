// The pool_range kernels in portable C++.

#include "vectors/scalar.h"

#include "encode.h"
#include "pooling.h"

SCISSIONLITE_POOLING(scalar, Scalar)
SCISSIONLITE_POOL_RANGE_KERNELS(scalar, Scalar)
