// maxpool2x2_quantize_f32_i8 for NEON (ARMv8.0-A). Numerics: docs/numerics.md.
//
// Compare and select, because FMAX propagates NaN and FMAXNM a signalling one. Both clamps of t are
// left to the conversions, which all saturate on ARM: FCVTNS rounds half to even and takes
// infinities to the ends of int32, SQXTN and SQADD keep the ends until they are -128 and 127.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

struct Quantizer {
  float32x4_t inv_scale;
  int16x8_t zero_point;
};

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

inline int8x8_t quantize8(float32x4_t a, float32x4_t b, const Quantizer& q) noexcept {
  const int32x4_t a_steps = vcvtnq_s32_f32(vmulq_f32(a, q.inv_scale));
  const int32x4_t b_steps = vcvtnq_s32_f32(vmulq_f32(b, q.inv_scale));
  const int16x8_t steps = vcombine_s16(vqmovn_s32(a_steps), vqmovn_s32(b_steps));
  return vqmovn_s16(vqaddq_s16(steps, q.zero_point));
}

// At least eight whole windows. The last eight end at the row's end and so may repeat some.
inline void pool_row(const float* upper, const float* lower, std::int8_t* output, std::size_t count,
                     const Quantizer& q) noexcept {
  std::size_t x = 0;
  while (x < count) {
    const std::size_t at = x + 8 <= count ? x : count - 8;
    const float32x4_t a = pool4(upper + 2 * at, lower + 2 * at);
    const float32x4_t b = pool4(upper + 2 * at + 8, lower + 2 * at + 8);
    vst1_s8(output + at, quantize8(a, b, q));
    x = at + 8;
  }
}

// 4 to 7 whole windows: two overlapping fours.
inline void pool_narrow_row(const float* upper, const float* lower, std::int8_t* output,
                            std::size_t count, const Quantizer& q) noexcept {
  const std::size_t second = count - 4;
  const float32x4_t a = pool4(upper, lower);
  const float32x4_t b = pool4(upper + 2 * second, lower + 2 * second);
  const int32x2_t fours = vreinterpret_s32_s8(quantize8(a, b, q));
  const std::int32_t first = vget_lane_s32(fours, 0);
  const std::int32_t last = vget_lane_s32(fours, 1);
  __builtin_memcpy(output, &first, 4);
  __builtin_memcpy(output + second, &last, 4);
}

// The windows that fill no vector: up to three, or the partial one at an odd width's border.
inline std::int8_t pool_one(const float* upper, const float* lower, std::size_t right,
                            const Quantizer& q) noexcept {
  float32x4_t acc = larger(vdupq_n_f32(upper[0]), vdupq_n_f32(-__builtin_inff()));
  acc = larger(vdupq_n_f32(upper[right]), acc);
  acc = larger(vdupq_n_f32(lower[0]), acc);
  acc = larger(vdupq_n_f32(lower[right]), acc);
  return vget_lane_s8(quantize8(acc, acc, q), 0);
}

}  // namespace

void maxpool2x2_quantize_f32_i8__neon(const float* input, std::int8_t* output,
                                      const TransferParams& params) noexcept {
  const Quantizer q = {vdupq_n_f32(1.0F / params.scale),
                       vdupq_n_s16(static_cast<std::int16_t>(params.zero_point))};
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
