// The pool_range kernels in portable C++.

#include "vectors/scalar.h"

#include "encode.h"

SCISSIONLITE_POOL_RANGE_KERNELS(scalar, Scalar)
