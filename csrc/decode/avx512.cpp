// The decode kernels for AVX-512.

#include "vectors/avx512.h"

#include "decode.h"

SCISSIONLITE_DECODE_KERNELS(avx512, Avx512)
