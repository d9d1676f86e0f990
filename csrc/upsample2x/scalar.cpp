// upsample2x_f32_f32, portable: the paper's EdgeTL (arXiv 2105.02019), kept as a
// baseline. Numerics: docs/numerics.md.

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace scissionlite {

void upsample2x_f32_f32__scalar(const float* input, float* output,
                                const TransferParams& params) noexcept {
  const std::size_t pairs = params.width / 2;
  for (std::size_t plane = 0; plane < params.planes; ++plane) {
    for (std::size_t y = 0; y < params.height; y += 2) {
      // Without a lower row (odd height) both names mean the same row.
      float* upper = output;
      float* lower = y + 1 < params.height ? output + params.width : output;
      for (std::size_t x = 0; x < pairs; ++x) {
        const float value = *input++;
        upper[2 * x] = value;
        upper[2 * x + 1] = value;
        lower[2 * x] = value;
        lower[2 * x + 1] = value;
      }
      if (params.width % 2 != 0) {
        const float value = *input++;
        upper[2 * pairs] = value;
        lower[2 * pairs] = value;
      }
      output = lower + params.width;
    }
  }
}

}  // namespace scissionlite
