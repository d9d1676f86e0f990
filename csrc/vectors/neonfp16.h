// The vector class of ARMv8.2-A's half-precision arithmetic: NEON, but float16 is compared without
// conversion.
//
// Only the maximum of float16 is different: a comparison of halves is exact, and has twice the
// lanes. Arithmetic stays in float32, as docs/numerics.md requires.

#ifndef SCISSIONLITE_VECTORS_NEONFP16_H_
#define SCISSIONLITE_VECTORS_NEONFP16_H_

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vectors/neon.h"

namespace scissionlite {
namespace {

// The part of a vector class that max-pooling needs, for eight float16.
struct HalfMaximum {
  static constexpr std::size_t kLanes = 8;
  static constexpr bool kLoadsApart = false;
  using Narrower = Neon;
  using F = float16x8_t;

  static F set1(float value) noexcept { return vdupq_n_f16(static_cast<float16_t>(value)); }
  static F load(const Half* from) noexcept {
    return vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const std::uint16_t*>(from)));
  }
  static void store(float* to, F value) noexcept { store_halves(to, to + 4, value); }
  static void store_halves(float* low, float* high, F value) noexcept {
    vst1q_f32(low, vcvt_f32_f16(vget_low_f16(value)));
    vst1q_f32(high, vcvt_high_f32_f16(value));
  }
  static F larger(F x, F acc) noexcept { return vbslq_f16(vcgtq_f16(x, acc), x, acc); }
  static F evens(F a, F b) noexcept { return vuzp1q_f16(a, b); }
  static F odds(F a, F b) noexcept { return vuzp2q_f16(a, b); }
  static F in_order(F x) noexcept { return x; }
};

template <class Element, bool average>
struct NeonFp16Pooler {
  using Type = Neon;
};
template <>
struct NeonFp16Pooler<Half, false> {
  using Type = HalfMaximum;
};

struct NeonFp16 : Neon {
  template <class Element, bool average>
  using Pooler = typename NeonFp16Pooler<Element, average>::Type;
};

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_VECTORS_NEONFP16_H_
