// upsample2x_f32_f32 for NEON (ARMv8.0-A): the paper's EdgeTL as a fair baseline. Numerics:
// docs/numerics.md.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

inline void expand4(const float* input, float* upper, float* lower) noexcept {
  const float32x4_t values = vld1q_f32(input);
  const float32x4_t first = vzip1q_f32(values, values);
  const float32x4_t second = vzip2q_f32(values, values);
  vst1q_f32(upper, first);
  vst1q_f32(upper + 4, second);
  vst1q_f32(lower, first);
  vst1q_f32(lower + 4, second);
}

// `count` floats to twice as many in each of two rows.
inline void expand_row(const float* input, float* upper, float* lower, std::size_t count) noexcept {
  std::size_t x = 0;
  if (count >= 4) {
    // The last four end at the row's end and so may repeat some.
    while (x < count) {
      const std::size_t at = x + 4 <= count ? x : count - 4;
      expand4(input + at, upper + 2 * at, lower + 2 * at);
      x = at + 4;
    }
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

void upsample2x_f32_f32__neon(const float* input, float* output,
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
