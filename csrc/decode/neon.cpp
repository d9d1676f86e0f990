// The decode kernels for NEON.

#include "vectors/neon.h"

#include "decode.h"

SCISSIONLITE_DECODE_KERNELS(neon, Neon)
