// The encode kernels in portable C++: the reference of the others.

#include "vectors/scalar.h"

#include "encode.h"

SCISSIONLITE_ENCODE_KERNELS(scalar, Scalar)
