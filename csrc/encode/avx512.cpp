// The encode kernels for AVX-512.

#include "vectors/avx512.h"

#include "encode.h"

SCISSIONLITE_ENCODE_KERNELS(avx512, Avx512)
