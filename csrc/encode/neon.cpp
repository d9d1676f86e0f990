// The encode kernels for NEON.

#include "vectors/neon.h"

#include "encode.h"

SCISSIONLITE_ENCODE_KERNELS(neon, Neon)
