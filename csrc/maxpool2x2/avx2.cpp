// maxpool2x2_f32_f32 for AVX2: the paper's DeviceTL as a fair baseline. Numerics: docs/numerics.md.
//
// max_ps(x, acc) is exactly "x > acc ? x : acc": it answers its second operand where one is NaN or
// both are zero. The order of the four matters for the sign of zero.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

// Pools four windows at the pointers into the low half and four at `second` into the high one.
inline __m256 pool8(const float* upper, const float* lower, std::size_t second) noexcept {
  const __m256 u0 = _mm256_loadu_ps(upper);
  const __m256 u1 = _mm256_loadu_ps(upper + second);
  const __m256 l0 = _mm256_loadu_ps(lower);
  const __m256 l1 = _mm256_loadu_ps(lower + second);
  __m256 acc = _mm256_set1_ps(-__builtin_inff());
  acc = _mm256_max_ps(_mm256_shuffle_ps(u0, u1, 0x88), acc);
  acc = _mm256_max_ps(_mm256_shuffle_ps(u0, u1, 0xDD), acc);
  acc = _mm256_max_ps(_mm256_shuffle_ps(l0, l1, 0x88), acc);
  acc = _mm256_max_ps(_mm256_shuffle_ps(l0, l1, 0xDD), acc);
  // The shuffles stay inside lanes, which leaves the pairs in the order 0 2 1 3.
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(acc), 0xD8));
}

inline float pool_one(const float* upper, const float* lower, std::size_t right) noexcept {
  __m128 acc = _mm_set_ss(-__builtin_inff());
  acc = _mm_max_ss(_mm_load_ss(upper), acc);
  acc = _mm_max_ss(_mm_load_ss(upper + right), acc);
  acc = _mm_max_ss(_mm_load_ss(lower), acc);
  acc = _mm_max_ss(_mm_load_ss(lower + right), acc);
  return _mm_cvtss_f32(acc);
}

inline void pool_row(const float* upper, const float* lower, float* output,
                     std::size_t count) noexcept {
  std::size_t x = 0;
  if (count >= 8) {
    // The last eight end at the row's end and so may repeat some.
    while (x < count) {
      const std::size_t at = x + 8 <= count ? x : count - 8;
      _mm256_storeu_ps(output + at, pool8(upper + 2 * at, lower + 2 * at, 8));
      x = at + 8;
    }
  } else if (count >= 4) {
    const __m256 acc = pool8(upper, lower, 2 * count - 8);
    _mm_storeu_ps(output, _mm256_castps256_ps128(acc));
    _mm_storeu_ps(output + count - 4, _mm256_extractf128_ps(acc, 1));
  } else {
    for (; x < count; ++x) output[x] = pool_one(upper + 2 * x, lower + 2 * x, 1);
  }
}

}  // namespace

void maxpool2x2_f32_f32__avx2(const float* input, float* output,
                              const TransferParams& params) noexcept {
  const std::size_t whole = params.width / 2;
  for (std::size_t plane = 0; plane < params.planes; ++plane) {
    for (std::size_t y = 0; y < params.height; y += 2) {
      // A partial window repeats its elements: a repeated element never changes acc.
      const float* upper = input;
      const float* lower = y + 1 < params.height ? input + params.width : input;
      pool_row(upper, lower, output, whole);
      output += whole;
      if (params.width % 2 != 0) *output++ = pool_one(upper + 2 * whole, lower + 2 * whole, 0);
      input = lower + params.width;
    }
  }
}

}  // namespace scissionlite
