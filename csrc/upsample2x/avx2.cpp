// upsample2x_f32_f32 for AVX2: the paper's EdgeTL as a fair baseline. Numerics: docs/numerics.md.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

inline void expand8(const float* input, float* upper, float* lower) noexcept {
  const __m256 values = _mm256_loadu_ps(input);
  const __m256 first = _mm256_permutevar8x32_ps(values, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
  const __m256 second = _mm256_permutevar8x32_ps(values, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
  _mm256_storeu_ps(upper, first);
  _mm256_storeu_ps(upper + 8, second);
  _mm256_storeu_ps(lower, first);
  _mm256_storeu_ps(lower + 8, second);
}

inline void expand4(const float* input, float* upper, float* lower) noexcept {
  const __m128 values = _mm_loadu_ps(input);
  const __m128 first = _mm_unpacklo_ps(values, values);
  const __m128 second = _mm_unpackhi_ps(values, values);
  _mm_storeu_ps(upper, first);
  _mm_storeu_ps(upper + 4, second);
  _mm_storeu_ps(lower, first);
  _mm_storeu_ps(lower + 4, second);
}

// `count` floats to twice as many in each of two rows.
inline void expand_row(const float* input, float* upper, float* lower, std::size_t count) noexcept {
  std::size_t x = 0;
  if (count >= 8) {
    // The last eight end at the row's end and so may repeat some.
    while (x < count) {
      const std::size_t at = x + 8 <= count ? x : count - 8;
      expand8(input + at, upper + 2 * at, lower + 2 * at);
      x = at + 8;
    }
  } else if (count >= 4) {
    expand4(input, upper, lower);
    expand4(input + count - 4, upper + 2 * count - 8, lower + 2 * count - 8);
  } else {
    for (; x < count; ++x) {
      upper[2 * x] = input[x];
      upper[2 * x + 1] = input[x];
      lower[2 * x] = input[x];
      lower[2 * x + 1] = input[x];
    }
  }
}

}  // namespace

void upsample2x_f32_f32__avx2(const float* input, float* output,
                              const TransferParams& params) noexcept {
  const std::size_t pairs = params.width / 2;
  for (std::size_t plane = 0; plane < params.planes; ++plane) {
    for (std::size_t y = 0; y < params.height; y += 2) {
      // Without a lower row (odd height) both names mean the same row.
      float* upper = output;
      float* lower = y + 1 < params.height ? output + params.width : output;
      expand_row(input, upper, lower, pairs);
      input += pairs;
      if (params.width % 2 != 0) {
        upper[2 * pairs] = *input;
        lower[2 * pairs] = *input;
        ++input;
      }
      output = lower + params.width;
    }
  }
}

}  // namespace scissionlite
