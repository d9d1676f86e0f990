// The vector class of AVX-512 (F, BW, DQ, VL): sixteen lanes. Shorter runs use the class of AVX2.

#ifndef SCISSIONLITE_VECTORS_AVX512_H_
#define SCISSIONLITE_VECTORS_AVX512_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vectors/avx2.h"

namespace scissionlite {
namespace {

struct Avx512 {
  static constexpr std::size_t kLanes = 16;
  static constexpr bool kWidensFour = false;
  static constexpr bool kLoadsApart = false;
  static constexpr bool kLooksUp = false;
  using Narrower = Avx2;
  template <class Element, bool average>
  using Pooler = Avx512;

  using F = __m512;
  using I = __m512i;

  static F set1(float value) noexcept { return _mm512_set1_ps(value); }
  static I set1(std::int32_t value) noexcept { return _mm512_set1_epi32(value); }
  static F load(const float* from) noexcept { return _mm512_loadu_ps(from); }
  static F load(const Half* from) noexcept {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static I load(const std::int32_t* from) noexcept { return _mm512_loadu_si512(from); }
  static void store(float* to, F value) noexcept { _mm512_storeu_ps(to, value); }
  static void store(Half* to, F value) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_halves(float* low, float* high, F value) noexcept {
    _mm256_storeu_ps(low, _mm512_castps512_ps256(value));
    _mm256_storeu_ps(high, _mm512_extractf32x8_ps(value, 1));
  }

  static F larger(F x, F acc) noexcept { return _mm512_max_ps(x, acc); }
  static F smaller(F x, F acc) noexcept { return _mm512_min_ps(x, acc); }
  static F add(F a, F b) noexcept { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) noexcept { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) noexcept { return _mm512_div_ps(a, b); }
  static F one_nan(F x) noexcept {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x,
                                set1(__builtin_nanf("")));
  }
  static F finite_or(F x, F otherwise) noexcept {
    const F magnitude = _mm512_abs_ps(x);
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(magnitude, set1(__builtin_inff()), _CMP_LT_OQ),
                                otherwise, x);
  }

  static F evens(F a, F b) noexcept {
    return _mm512_permutex2var_ps(
        a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
  }
  static F odds(F a, F b) noexcept {
    return _mm512_permutex2var_ps(
        a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
  }
  static F in_order(F x) noexcept { return x; }

  // As in avx2.h: the next steps saturate, so neither low values nor NaN need a bound.
  static I steps(F value, F factor) noexcept {
    return _mm512_cvtps_epi32(_mm512_min_ps(set1(512.0F), _mm512_mul_ps(value, factor)));
  }
  static void store_codes(std::int8_t* to, I steps, I zero_points, std::int8_t low,
                          std::int8_t high) noexcept {
    const __m256i words =
        _mm256_adds_epi16(_mm512_cvtsepi32_epi16(steps), _mm512_cvtsepi32_epi16(zero_points));
    const __m128i codes = _mm256_cvtsepi16_epi8(words);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_max_epi8(_mm_min_epi8(codes, _mm_set1_epi8(high)), _mm_set1_epi8(low)));
  }
  static void store_codes(std::int8_t* to, const I (&steps)[4], const I (&zero_points)[4],
                          std::int8_t low, std::int8_t high) noexcept {
    // The packs stay inside lanes of 128 bits; one permutation at the end puts all in order.
    const I first = _mm512_adds_epi16(_mm512_packs_epi32(steps[0], steps[1]),
                                      _mm512_packs_epi32(zero_points[0], zero_points[1]));
    const I second = _mm512_adds_epi16(_mm512_packs_epi32(steps[2], steps[3]),
                                       _mm512_packs_epi32(zero_points[2], zero_points[3]));
    const I packed = _mm512_packs_epi16(first, second);
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const I codes = _mm512_permutexvar_epi32(order, packed);
    _mm512_storeu_si512(
        to, _mm512_max_epi8(_mm512_min_epi8(codes, _mm512_set1_epi8(high)), _mm512_set1_epi8(low)));
  }
  static F dequantize(const std::int8_t* from, F scale, I zero_point) noexcept {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const I steps = _mm512_sub_epi32(_mm512_cvtepi8_epi32(codes), zero_point);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(steps), scale);
  }

  template <class Element>
  using Raw = __m512i;
  template <class Element>
  static __m512i load_raw(const Element* from) noexcept {
    return _mm512_loadu_si512(from);
  }
  template <class Element>
  static void store_raw(Element* to, __m512i value) noexcept {
    _mm512_storeu_si512(to, value);
  }
  template <class Element>
  static void twice(__m512i value, __m512i& first, __m512i& second) noexcept {
    if constexpr (kSame<Element, f32>) {
      first = _mm512_permutexvar_epi32(
          _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), value);
      second = _mm512_permutexvar_epi32(
          _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15), value);
    } else {
      const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
      const __m512i spaced = _mm512_permutexvar_epi64(order, value);
      first = _mm512_unpacklo_epi16(spaced, spaced);
      second = _mm512_unpackhi_epi16(spaced, spaced);
    }
  }
};

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_VECTORS_AVX512_H_
