// maxpool2x2_f32_f32 for NEON (ARMv8.0-A): the paper's DeviceTL as a fair baseline. Numerics:
// docs/numerics.md.
//
// Compare and select, because FMAX propagates NaN, FMAXNM a signalling one, and both order the
// zeros. The order of the four matters for the sign of zero.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

inline float32x4_t larger(float32x4_t x, float32x4_t acc) noexcept {
  return vbslq_f32(vcgtq_f32(x, acc), x, acc);
}

// Four whole windows.
inline float32x4_t pool4(const float* upper, const float* lower) noexcept {
  const float32x4x2_t u = vld2q_f32(upper);
  const float32x4x2_t l = vld2q_f32(lower);
  float32x4_t acc = larger(u.val[0], vdupq_n_f32(-__builtin_inff()));
  acc = larger(u.val[1], acc);
  acc = larger(l.val[0], acc);
  return larger(l.val[1], acc);
}

inline float pool_one(const float* upper, const float* lower, std::size_t right) noexcept {
  float acc = upper[0] > -__builtin_inff() ? upper[0] : -__builtin_inff();
  acc = upper[right] > acc ? upper[right] : acc;
  acc = lower[0] > acc ? lower[0] : acc;
  return lower[right] > acc ? lower[right] : acc;
}

inline void pool_row(const float* upper, const float* lower, float* output,
                     std::size_t count) noexcept {
  std::size_t x = 0;
  if (count >= 4) {
    // The last four end at the row's end and so may repeat some.
    while (x < count) {
      const std::size_t at = x + 4 <= count ? x : count - 4;
      vst1q_f32(output + at, pool4(upper + 2 * at, lower + 2 * at));
      x = at + 4;
    }
  } else {
    for (; x < count; ++x) output[x] = pool_one(upper + 2 * x, lower + 2 * x, 1);
  }
}

}  // namespace

void maxpool2x2_f32_f32__neon(const float* input, float* output,
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
