// maxpool2x2_f32_f32, portable: the paper's DeviceTL (arXiv 2105.02019), kept as a
// baseline. Numerics: docs/numerics.md.

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {
namespace {

inline float larger(float x, float acc) noexcept { return x > acc ? x : acc; }

}  // namespace

void maxpool2x2_f32_f32__scalar(const float* input, float* output,
                                const TransferParams& params) noexcept {
  constexpr float kMinusInfinity = -__builtin_inff();
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
        *output++ = larger(lower[right], acc);
      }
      input = lower + params.width;
    }
  }
}

}  // namespace scissionlite
