// The vector class with one lane: the portable ISA, and the remainders of all other ISAs.
//
// The algorithms in pooling.h, packing.h and upsampling.h are templates over a vector class V. It
// has:
//
// - kLanes, Narrower: the number of float32 lanes; the class for runs that are shorter
// - F, I: the types of kLanes float32, and of kLanes int32
// - load, store: from and to float or Half, unaligned; Half is converted
// - store_halves: store the lower and the upper half to two places
// - larger(x, acc), smaller(x, acc): x if it compares so, else acc; NaN and equal zeros give acc
// - evens, odds, in_order: columns of two neighbouring vectors, used as in_order(f(evens, odds))
// - steps: values in steps, rounded
// - store_codes: add the zero points to steps (four vectors, or one), saturate, store as int8
// - dequantize: kLanes codes to float32
// - kWidensFour, and if so widen: the codes of four vectors to int32, which dequantize takes too;
//   dequantize_eight: eight vectors of codes with one factor and zero point
// - kLoadsApart, and if so load_apart: the columns of kLanes windows, each in its vector
// - kLooksUp, and if so look_up: 32 int4 codes to float32 by a table
// - Raw<T>, load_raw, store_raw, twice: elements as bits; twice doubles each element
// - Pooler<Element, average>: the class that pools elements of this type
//
// docs/numerics.md says what each must compute. Everything in this folder is in an unnamed
// namespace, so that the linker cannot keep a copy that was compiled for a newer CPU for the whole
// program.

#ifndef SCISSIONLITE_VECTORS_SCALAR_H_
#define SCISSIONLITE_VECTORS_SCALAR_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

struct Scalar {
  static constexpr std::size_t kLanes = 1;
  static constexpr bool kWidensFour = false;
  static constexpr bool kLoadsApart = false;
  static constexpr bool kLooksUp = false;
  using Narrower = Scalar;
  template <class Element, bool average>
  using Pooler = Scalar;

  using F = float;
  using I = std::int32_t;

  static F set1(float value) noexcept { return value; }
  static I set1(std::int32_t value) noexcept { return value; }
  static F load(const float* from) noexcept { return *from; }
  static F load(const Half* from) noexcept { return widen(*from); }
  static I load(const std::int32_t* from) noexcept { return *from; }
  static void store(float* to, F value) noexcept { *to = value; }
  static void store(Half* to, F value) noexcept { *to = narrow(value); }
  static void store_halves(float* to, float*, F value) noexcept { *to = value; }

  static F larger(F x, F acc) noexcept { return x > acc ? x : acc; }
  static F smaller(F x, F acc) noexcept { return x < acc ? x : acc; }
  static F add(F a, F b) noexcept { return a + b; }
  static F mul(F a, F b) noexcept { return a * b; }
  static F div(F a, F b) noexcept { return a / b; }
  static F one_nan(F x) noexcept { return x == x ? x : __builtin_nanf(""); }
  static F finite_or(F x, F otherwise) noexcept {
    return __builtin_fabsf(x) < __builtin_inff() ? x : otherwise;
  }

  static F evens(F a, F) noexcept { return a; }
  static F odds(F, F b) noexcept { return b; }
  static F in_order(F x) noexcept { return x; }

  static I steps(F value, F factor) noexcept {
    float t = value * factor;
    t = t > -512.0F ? t : -512.0F;
    t = t < 512.0F ? t : 512.0F;
    constexpr float kRounds = 12582912.0F;  // 1.5 * 2^23: the sum has no bits below one
    return static_cast<std::int32_t>((t + kRounds) - kRounds);
  }
  static void store_codes(std::int8_t* to, I steps, I zero_point, std::int8_t low,
                          std::int8_t high) noexcept {
    const std::int32_t code = steps + zero_point;
    const std::int32_t raised = code > low ? code : low;
    *to = static_cast<std::int8_t>(raised < high ? raised : high);
  }
  static void store_codes(std::int8_t* to, const I (&steps)[4], const I (&zero_points)[4],
                          std::int8_t low, std::int8_t high) noexcept {
    for (int i = 0; i < 4; ++i) store_codes(to + i, steps[i], zero_points[i], low, high);
  }
  static F dequantize(const std::int8_t* from, F scale, I zero_point) noexcept {
    return static_cast<float>(*from - zero_point) * scale;
  }

  template <class Element>
  using Raw = Element;
  template <class Element>
  static Element load_raw(const Element* from) noexcept {
    return *from;
  }
  template <class Element>
  static void store_raw(Element* to, Element value) noexcept {
    *to = value;
  }
  template <class Element>
  static void twice(Element value, Element& first, Element& second) noexcept {
    first = value;
    second = value;
  }

 private:
  static std::uint32_t bits_of(float value) noexcept {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
  }
  static float float_of(std::uint32_t bits) noexcept {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  }

  static float widen(Half half) noexcept {
    const std::uint32_t sign = (half.bits & 0x8000U) << 16;
    const std::uint32_t rest = half.bits & 0x7FFFU;
    if (rest > 0x7C00U) return float_of(sign | 0x7FC00000U | (rest & 0x03FFU) << 13);
    if (rest == 0x7C00U) return float_of(sign | 0x7F800000U);
    // The exponent's bias is smaller by 112. Multiplying by 2^112 is exact, and normalises
    // denormals.
    const float magnitude = float_of(rest << 13) * 0x1p112F;
    return float_of(sign | bits_of(magnitude));
  }

  static Half narrow(float value) noexcept {
    const std::uint32_t sign = bits_of(value) >> 16 & 0x8000U;
    const std::uint32_t rest = bits_of(value) & 0x7FFFFFFFU;
    if (rest > 0x7F800000U) return half_of(sign | 0x7E00U | (rest >> 13 & 0x03FFU));
    if (rest >= 0x477FF000U) return half_of(sign | 0x7C00U);  // rounds to 2^16 or more
    if (rest < 0x38800000U) {
      // A denormal half is a multiple of 2^-24, which is the spacing of floats around 0.5.
      const float rounded = float_of(rest) + 0.5F;
      return half_of(sign | (bits_of(rounded) - bits_of(0.5F)));
    }
    const std::uint32_t half_even = 0x0FFFU + (rest >> 13 & 1U);
    return half_of(sign | (rest - 0x38000000U + half_even) >> 13);
  }
  static Half half_of(std::uint32_t bits) noexcept { return {static_cast<std::uint16_t>(bits)}; }
};

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_VECTORS_SCALAR_H_
