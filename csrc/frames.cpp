// Frames: each value is looked up, which takes about a cycle and no conversion of integers.

#include "frames.h"

namespace scissionlite {

namespace {

constexpr std::size_t kValues = 256;

}  // namespace

void normalize_frame(const std::uint8_t* frame, std::size_t pixels, std::size_t channels,
                     const float* tables, float* planes) noexcept {
  if (channels == 3) {  // in one pass: a frame's bytes are read once
    const float* const tables1 = tables + kValues;
    const float* const tables2 = tables + 2 * kValues;
    float* const planes1 = planes + pixels;
    float* const planes2 = planes + 2 * pixels;
    for (std::size_t i = 0; i < pixels; ++i) {
      planes[i] = tables[frame[3 * i]];
      planes1[i] = tables1[frame[3 * i + 1]];
      planes2[i] = tables2[frame[3 * i + 2]];
    }
    return;
  }
  for (std::size_t channel = 0; channel < channels; ++channel) {
    for (std::size_t i = 0; i < pixels; ++i) {
      planes[channel * pixels + i] = tables[channel * kValues + frame[channels * i + channel]];
    }
  }
}

}  // namespace scissionlite
