// Frames: from the pixels of a camera to a network's input.

#ifndef SCISSIONLITE_FRAMES_H_
#define SCISSIONLITE_FRAMES_H_

#include <cstddef>
#include <cstdint>

namespace scissionlite {

// Looks the values of a frame, (pixels, channels), up in the table of their channel, and writes a
// plane for each channel. A channel's table has an entry for each of the 256 values, so nothing is
// rounded here, and any instruction set gives the same bits.
void normalize_frame(const std::uint8_t* frame, std::size_t pixels, std::size_t channels,
                     const float* tables, float* planes) noexcept;

}  // namespace scissionlite

#endif  // SCISSIONLITE_FRAMES_H_
