// The vector class of AVX2 with F16C: eight lanes. FMA is never used: it rounds once instead of
// twice.
//
// max_ps(x, acc) is exactly "x > acc ? x : acc": it returns its second operand if one is NaN or
// both are zero.

#ifndef SCISSIONLITE_VECTORS_AVX2_H_
#define SCISSIONLITE_VECTORS_AVX2_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vectors/scalar.h"

namespace scissionlite {
namespace {

struct Avx2 {
  static constexpr std::size_t kLanes = 8;
  static constexpr bool kWidensFour = false;
  static constexpr bool kLoadsApart = false;
  static constexpr bool kLooksUp = false;
  using Narrower = Scalar;
  template <class Element, bool average>
  using Pooler = Avx2;

  using F = __m256;
  using I = __m256i;

  static F set1(float value) noexcept { return _mm256_set1_ps(value); }
  static I set1(std::int32_t value) noexcept { return _mm256_set1_epi32(value); }
  static F load(const float* from) noexcept { return _mm256_loadu_ps(from); }
  static F load(const Half* from) noexcept {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static I load(const std::int32_t* from) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void store(float* to, F value) noexcept { _mm256_storeu_ps(to, value); }
  static void store(Half* to, F value) noexcept {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_halves(float* low, float* high, F value) noexcept {
    _mm_storeu_ps(low, _mm256_castps256_ps128(value));
    _mm_storeu_ps(high, _mm256_extractf128_ps(value, 1));
  }

  static F larger(F x, F acc) noexcept { return _mm256_max_ps(x, acc); }
  static F smaller(F x, F acc) noexcept { return _mm256_min_ps(x, acc); }
  static F add(F a, F b) noexcept { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) noexcept { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) noexcept { return _mm256_div_ps(a, b); }
  static F one_nan(F x) noexcept {
    return _mm256_blendv_ps(x, set1(__builtin_nanf("")), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  static F finite_or(F x, F otherwise) noexcept {
    const F magnitude = _mm256_andnot_ps(set1(-0.0F), x);
    return _mm256_blendv_ps(otherwise, x,
                            _mm256_cmp_ps(magnitude, set1(__builtin_inff()), _CMP_LT_OQ));
  }

  // These shuffles stay inside lanes of 128 bits, which leaves pairs of columns as 0 2 1 3.
  static F evens(F a, F b) noexcept { return _mm256_shuffle_ps(a, b, 0x88); }
  static F odds(F a, F b) noexcept { return _mm256_shuffle_ps(a, b, 0xDD); }
  static F in_order(F x) noexcept {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xD8));
  }

  // NaN and values that are too low become the lowest integer, and the saturating packs and sums
  // keep them lowest. So only values that are too high need a bound. min_ps returns its second
  // operand if that is NaN.
  static I steps(F value, F factor) noexcept {
    return _mm256_cvtps_epi32(_mm256_min_ps(set1(512.0F), _mm256_mul_ps(value, factor)));
  }
  static void store_codes(std::int8_t* to, const I (&steps)[4], const I (&zero_points)[4],
                          std::int8_t low, std::int8_t high) noexcept {
    // The packs stay inside lanes of 128 bits; one permutation at the end puts all in order.
    const I first = _mm256_adds_epi16(_mm256_packs_epi32(steps[0], steps[1]),
                                      _mm256_packs_epi32(zero_points[0], zero_points[1]));
    const I second = _mm256_adds_epi16(_mm256_packs_epi32(steps[2], steps[3]),
                                       _mm256_packs_epi32(zero_points[2], zero_points[3]));
    const I packed = _mm256_packs_epi16(first, second);
    const I order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const I codes = clamp(_mm256_permutevar8x32_epi32(packed, order), low, high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes);
  }
  static void store_codes(std::int8_t* to, I steps, I zero_points, std::int8_t low,
                          std::int8_t high) noexcept {
    const __m128i words = _mm_adds_epi16(to_words(steps), to_words(zero_points));
    const __m128i codes = _mm_max_epi8(
        _mm_min_epi8(_mm_packs_epi16(words, words), _mm_set1_epi8(high)), _mm_set1_epi8(low));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), codes);
  }
  static F dequantize(const std::int8_t* from, F scale, I zero_point) noexcept {
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    const I steps = _mm256_sub_epi32(_mm256_cvtepi8_epi32(codes), zero_point);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(steps), scale);
  }

  template <class Element>
  using Raw = __m256i;
  template <class Element>
  static __m256i load_raw(const Element* from) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  template <class Element>
  static void store_raw(Element* to, __m256i value) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  }
  template <class Element>
  static void twice(__m256i value, __m256i& first, __m256i& second) noexcept {
    if constexpr (kSame<Element, f32>) {
      first = _mm256_permutevar8x32_epi32(value, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
      second = _mm256_permutevar8x32_epi32(value, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
    } else {
      const __m256i spaced = _mm256_permute4x64_epi64(value, 0xD8);
      first = _mm256_unpacklo_epi16(spaced, spaced);
      second = _mm256_unpackhi_epi16(spaced, spaced);
    }
  }

 private:
  static __m128i to_words(I values) noexcept {
    return _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
  }
  static I clamp(I codes, std::int8_t low, std::int8_t high) noexcept {
    return _mm256_max_epi8(_mm256_min_epi8(codes, _mm256_set1_epi8(high)), _mm256_set1_epi8(low));
  }
};

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_VECTORS_AVX2_H_
