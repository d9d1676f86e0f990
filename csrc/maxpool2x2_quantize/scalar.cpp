// maxpool2x2_quantize_f32_i8, portable: 2x2 max-pooling and int8 quantization in one pass.
// Numerics: docs/numerics.md. This file is its plainest reading in C++.

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

inline float larger(float x, float acc) noexcept { return x > acc ? x : acc; }

}  // namespace

void maxpool2x2_quantize_f32_i8__scalar(const float* input, std::int8_t* output,
                                        const TransferParams& params) noexcept {
  // Adding and taking away 1.5 * 2^23 rounds to an integer, half to even, where |t| < 2^22.
  constexpr float kRound = 12582912.0F;
  constexpr float kMinusInfinity = -__builtin_inff();
  const float inv_scale = 1.0F / params.scale;
  const float lo = static_cast<float>(-128 - params.zero_point);
  const float hi = static_cast<float>(127 - params.zero_point);

  for (std::size_t plane = 0; plane < params.planes; ++plane) {
    for (std::size_t y = 0; y < params.height; y += 2) {
      // A partial window repeats its elements: a repeated element never changes acc.
      const float* upper = input;
      const float* lower = y + 1 < params.height ? input + params.width : input;
      for (std::size_t x = 0; x < params.width; x += 2) {
        const std::size_t right = x + 1 < params.width ? x + 1 : x;
        float acc = larger(upper[x], kMinusInfinity);
        acc = larger(upper[right], acc);
        acc = larger(lower[x], acc);
        acc = larger(lower[right], acc);
        float t = acc * inv_scale;
        t = t < lo ? lo : t;
        t = t > hi ? hi : t;
        const float rounded = (t + kRound) - kRound;
        *output++ =
            static_cast<std::int8_t>(static_cast<std::int32_t>(rounded) + params.zero_point);
      }
      input = lower + params.width;
    }
  }
}

}  // namespace scissionlite
