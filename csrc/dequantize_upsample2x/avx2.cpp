// dequantize_upsample2x_i8_f32 for AVX2. Numerics: docs/numerics.md.
//
// The bytes are doubled before they are converted: that costs one unpack for eight of them, and
// every float comes out in its place.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

struct Dequantizer {
  __m256 scale;
  __m256i zero_point;  // 8 x int32
};

// The low eight bytes as float32.
inline __m256 dequantize8(__m128i bytes, const Dequantizer& d) noexcept {
  const __m256i steps = _mm256_sub_epi32(_mm256_cvtepi8_epi32(bytes), d.zero_point);
  return _mm256_mul_ps(_mm256_cvtepi32_ps(steps), d.scale);
}

inline void expand8(const std::int8_t* input, float* upper, float* lower,
                    const Dequantizer& d) noexcept {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(input));
  const __m128i doubled = _mm_unpacklo_epi8(bytes, bytes);
  const __m256 first = dequantize8(doubled, d);
  const __m256 second = dequantize8(_mm_unpackhi_epi64(doubled, doubled), d);
  _mm256_storeu_ps(upper, first);
  _mm256_storeu_ps(upper + 8, second);
  _mm256_storeu_ps(lower, first);
  _mm256_storeu_ps(lower + 8, second);
}

inline void expand4(const std::int8_t* input, float* upper, float* lower,
                    const Dequantizer& d) noexcept {
  std::int32_t four;
  __builtin_memcpy(&four, input, 4);
  const __m128i bytes = _mm_cvtsi32_si128(four);
  const __m256 values = dequantize8(_mm_unpacklo_epi8(bytes, bytes), d);
  _mm256_storeu_ps(upper, values);
  _mm256_storeu_ps(lower, values);
}

inline float dequantize_one(std::int8_t value, const TransferParams& params) noexcept {
  return static_cast<float>(value - params.zero_point) * params.scale;
}

// `count` bytes to twice as many floats in each of two rows.
inline void expand_row(const std::int8_t* input, float* upper, float* lower, std::size_t count,
                       const Dequantizer& d, const TransferParams& params) noexcept {
  std::size_t x = 0;
  if (count >= 8) {
    // The last eight end at the row's end and so may repeat some.
    while (x < count) {
      const std::size_t at = x + 8 <= count ? x : count - 8;
      expand8(input + at, upper + 2 * at, lower + 2 * at, d);
      x = at + 8;
    }
  } else if (count >= 4) {
    expand4(input, upper, lower, d);
    expand4(input + count - 4, upper + 2 * count - 8, lower + 2 * count - 8, d);
  } else {
    for (; x < count; ++x) {
      const float value = dequantize_one(input[x], params);
      upper[2 * x] = value;
      upper[2 * x + 1] = value;
      lower[2 * x] = value;
      lower[2 * x + 1] = value;
    }
  }
}

}  // namespace

void dequantize_upsample2x_i8_f32__avx2(const std::int8_t* input, float* output,
                                        const TransferParams& params) noexcept {
  const Dequantizer d = {_mm256_set1_ps(params.scale), _mm256_set1_epi32(params.zero_point)};
  const std::size_t pairs = params.width / 2;
  for (std::size_t plane = 0; plane < params.planes; ++plane) {
    for (std::size_t y = 0; y < params.height; y += 2) {
      // Without a lower row (odd height) both names mean the same row.
      float* upper = output;
      float* lower = y + 1 < params.height ? output + params.width : output;
      expand_row(input, upper, lower, pairs, d, params);
      input += pairs;
      if (params.width % 2 != 0) {
        const float value = dequantize_one(*input++, params);
        upper[2 * pairs] = value;
        lower[2 * pairs] = value;
      }
      output = lower + params.width;
    }
  }
}

}  // namespace scissionlite
