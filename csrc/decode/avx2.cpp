// The decode kernels for AVX2.

#include "vectors/avx2.h"

#include "decode.h"

SCISSIONLITE_DECODE_KERNELS(avx2, Avx2)
