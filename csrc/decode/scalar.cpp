// The decode kernels in portable C++: the reference of the others.

#include "vectors/scalar.h"

#include "decode.h"

SCISSIONLITE_DECODE_KERNELS(scalar, Scalar)
