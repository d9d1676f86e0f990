// The encode kernels for AVX2.

#include "vectors/avx2.h"

#include "encode.h"

SCISSIONLITE_ENCODE_KERNELS(avx2, Avx2)
