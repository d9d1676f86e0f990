// dequantize_upsample2x_i8_f32 for NEON (ARMv8.0-A). Numerics: docs/numerics.md.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

struct Dequantizer {
  float32x4_t scale;
  int16x8_t zero_point;
};

// Doubles four steps and writes the eight floats to both rows.
inline void expand4(int16x4_t steps, float* upper, float* lower, const Dequantizer& d) noexcept {
  const float32x4_t values = vmulq_f32(vcvtq_f32_s32(vmovl_s16(steps)), d.scale);
  const float32x4_t first = vzip1q_f32(values, values);
  const float32x4_t second = vzip2q_f32(values, values);
  vst1q_f32(upper, first);
  vst1q_f32(upper + 4, second);
  vst1q_f32(lower, first);
  vst1q_f32(lower + 4, second);
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
      const int16x8_t steps = vsubq_s16(vmovl_s8(vld1_s8(input + at)), d.zero_point);
      expand4(vget_low_s16(steps), upper + 2 * at, lower + 2 * at, d);
      expand4(vget_high_s16(steps), upper + 2 * at + 8, lower + 2 * at + 8, d);
      x = at + 8;
    }
  } else if (count >= 4) {
    const std::size_t second = count - 4;
    std::uint64_t fours[2] = {0, 0};
    __builtin_memcpy(&fours[0], input, 4);
    __builtin_memcpy(&fours[1], input + second, 4);
    const int8x8_t bytes = vcreate_s8(fours[0] | (fours[1] << 32));
    const int16x8_t steps = vsubq_s16(vmovl_s8(bytes), d.zero_point);
    expand4(vget_low_s16(steps), upper, lower, d);
    expand4(vget_high_s16(steps), upper + 2 * second, lower + 2 * second, d);
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

void dequantize_upsample2x_i8_f32__neon(const std::int8_t* input, float* output,
                                        const TransferParams& params) noexcept {
  const Dequantizer d = {vdupq_n_f32(params.scale),
                         vdupq_n_s16(static_cast<std::int16_t>(params.zero_point))};
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
