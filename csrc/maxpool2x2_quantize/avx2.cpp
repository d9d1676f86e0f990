// maxpool2x2_quantize_f32_i8 for AVX2. Numerics: docs/numerics.md.
//
// max_ps(x, acc) is exactly "x > acc ? x : acc": it answers its second operand where one is NaN or
// both are zero. The lower clamp of t is left to the saturating packs: below the range cvtps gives
// a large negative number (or INT_MIN), and that saturates to -128 as the clamp would.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

struct Quantizer {
  __m256 inv_scale;
  __m256 hi;
  __m256i zero_point;  // 16 x int16
};

// Pools four windows at `offset` and four at `second`. The results come as two halves, windows
// 0 1 | 4 5 in the low lane and 2 3 | 6 7 in the high one, because shuffles do not cross lanes.
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
  return acc;
}

inline __m256i round_steps(__m256 acc, const Quantizer& q) noexcept {
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(acc, q.inv_scale), q.hi));
}

// Quantizes two results of pool8 and puts the 16 bytes in order.
inline __m128i quantize16(__m256 a, __m256 b, const Quantizer& q) noexcept {
  const __m256i steps = _mm256_packs_epi32(round_steps(a, q), round_steps(b, q));
  const __m256i words = _mm256_adds_epi16(steps, q.zero_point);
  const __m256i bytes = _mm256_packs_epi16(words, words);
  return _mm_unpacklo_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
}

inline void pool_row(const float* upper, const float* lower, std::int8_t* output, std::size_t count,
                     const Quantizer& q) noexcept {
  std::size_t x = 0;
  for (; x + 16 <= count; x += 16) {
    const __m256 a = pool8(upper + 2 * x, lower + 2 * x, 8);
    const __m256 b = pool8(upper + 2 * x + 16, lower + 2 * x + 16, 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(output + x), quantize16(a, b, q));
  }
  // What is left is done in eights; the last one ends at the row's end and so may repeat some.
  while (x < count) {
    const std::size_t at = x + 8 <= count ? x : count - 8;
    const __m256 a = pool8(upper + 2 * at, lower + 2 * at, 8);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(output + at), quantize16(a, a, q));
    x = at + 8;
  }
}

// 4 to 7 whole windows: two overlapping fours.
inline void pool_narrow_row(const float* upper, const float* lower, std::int8_t* output,
                            std::size_t count, const Quantizer& q) noexcept {
  const __m256 acc = pool8(upper, lower, 2 * count - 8);
  const __m128i bytes = quantize16(acc, acc, q);
  const std::int32_t first = _mm_cvtsi128_si32(bytes);
  const std::int32_t last = _mm_extract_epi32(bytes, 1);
  __builtin_memcpy(output, &first, 4);
  __builtin_memcpy(output + count - 4, &last, 4);
}

// The windows that fill no vector: up to three, or the partial one at an odd width's border.
inline std::int8_t pool_one(const float* upper, const float* lower, std::size_t right,
                            const Quantizer& q) noexcept {
  __m128 acc = _mm_set_ss(-__builtin_inff());
  acc = _mm_max_ss(_mm_load_ss(upper), acc);
  acc = _mm_max_ss(_mm_load_ss(upper + right), acc);
  acc = _mm_max_ss(_mm_load_ss(lower), acc);
  acc = _mm_max_ss(_mm_load_ss(lower + right), acc);
  const __m256 wide = _mm256_castps128_ps256(acc);
  return static_cast<std::int8_t>(_mm_cvtsi128_si32(quantize16(wide, wide, q)));
}

}  // namespace

void maxpool2x2_quantize_f32_i8__avx2(const float* input, std::int8_t* output,
                                      const TransferParams& params) noexcept {
  const Quantizer q = {
      _mm256_set1_ps(1.0F / params.scale),
      _mm256_set1_ps(static_cast<float>(127 - params.zero_point)),
      _mm256_set1_epi16(static_cast<std::int16_t>(params.zero_point)),
  };
  const std::size_t whole = params.width / 2;
  for (std::size_t plane = 0; plane < params.planes; ++plane) {
    for (std::size_t y = 0; y < params.height; y += 2) {
      // A partial window repeats its elements: a repeated element never changes acc.
      const float* upper = input;
      const float* lower = y + 1 < params.height ? input + params.width : input;
      if (whole >= 8) {
        pool_row(upper, lower, output, whole, q);
      } else if (whole >= 4) {
        pool_narrow_row(upper, lower, output, whole, q);
      } else {
        for (std::size_t x = 0; x < whole; ++x) {
          output[x] = pool_one(upper + 2 * x, lower + 2 * x, 1, q);
        }
      }
      output += whole;
      if (params.width % 2 != 0) {
        *output++ = pool_one(upper + 2 * whole, lower + 2 * whole, 0, q);
      }
      input = lower + params.width;
    }
  }
}

}  // namespace scissionlite
