// The kernels' header: what every kernel takes, and the declaration of each.
//
// It is included by files compiled for newer CPUs, so it must stay free of standard-library code:
// an inline function compiled with -mavx2 could be the copy that the linker keeps for everybody.

#ifndef SCISSIONLITE_KERNELS_H_
#define SCISSIONLITE_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace scissionlite {

// An IEEE 754 binary16, only stored; arithmetic is in float32.
struct Half {
  std::uint16_t bits;
};

// Two int4 codes, the earlier one in the lower four bits.
struct Int4Pair {
  std::uint8_t codes;
};

enum class Pooling : std::uint32_t { kMax, kAverage };
enum class Upsampling : std::uint32_t { kNearest, kBilinear };
enum class Layout : std::uint32_t { kNchw, kNhwc };

// One call's parameters; docs/numerics.md says what they mean and which values they may have.
struct TransferParams {
  // The feature map at full resolution: the input of encode and pool_range, the output of decode.
  // The other side has height and width divided by the window and rounded up. None is zero.
  std::size_t images;
  std::size_t channels;
  std::size_t height;
  std::size_t width;
  std::uint32_t window;  // side and stride of the pooling: 1, 2 or 4
  Pooling pooling;
  Upsampling upsampling;
  Layout layout;
  // Whether scales, zero points and ranges are one a channel, or one for the tensor.
  bool per_channel;
  // What a value is multiplied with: 1 / scale to encode, scale to decode. Only for int8 and int4.
  const float* factors;
  const std::int32_t* zero_points;
  // pool_range only: where the ranges go.
  float* lows;
  float* highs;
};

// Input and output are dense, aligned to their element type only, and do not overlap.
// A kernel neither reads nor writes outside them, allocates nothing and cannot fail.
// pool_range without pooling takes a null output and then only finds the range.
#define KERNEL(operation, isa, needs, Input, Output)          \
  void operation##__##isa(const Input* input, Output* output, \
                          const TransferParams& params) noexcept;
#include "kernels.inc"
#undef KERNEL

}  // namespace scissionlite

#endif  // SCISSIONLITE_KERNELS_H_
