// The parameters of every kernel, and the declaration of each.
//
// Files compiled for newer CPUs include it, so it must stay free of standard-library code: the
// linker may keep one copy of an inline function for the whole program, and that copy could be the
// one compiled with -mavx2.

#ifndef SCISSIONLITE_KERNELS_H_
#define SCISSIONLITE_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "elements.h"
#include "kernel_list.h"

namespace scissionlite {

enum class Pooling : std::uint32_t { kMax, kAverage };
enum class Upsampling : std::uint32_t { kNearest, kBilinear };
enum class Layout : std::uint32_t { kNchw, kNhwc };

// The parameters of one call. docs/numerics.md says what they mean and which values they may have.
struct TransferParams {
  // The feature map at full resolution: the input of encode and pool_range, the output of decode.
  // The pooled map has height and width divided by the window and rounded up. No size is zero.
  std::size_t images;
  std::size_t channels;
  std::size_t height;
  std::size_t width;
  std::uint32_t window;  // side and stride of the pooling: 1, 2 or 4
  Pooling pooling;
  Upsampling upsampling;
  Layout layout;
  // Whether there is one scale, zero point and range per channel, or one for the tensor.
  bool per_channel;
  // For int8 and int4: the factor of every value, which is 1 / scale to encode, scale to decode.
  const float* factors;
  const std::int32_t* zero_points;
  // For pool_range: the ranges that it writes.
  float* lows;
  float* highs;
};

// The part of a pooled map to make. In NCHW it has no channels; in NHWC it is in one row.
struct Band {
  std::size_t row, rows;
  std::size_t column, columns;
  std::size_t channel, channels;
};

// Pools a band of the plane (NCHW) or of the image (NHWC) that the first argument points to.
template <class Input>
using PoolBand = void (*)(const Input*, const TransferParams&, const Band&, float*) noexcept;

// An ISA's function for these parameters, whose window is 2 or 4.
#define SCISSIONLITE_DECLARE_POOLING(isa, architecture, flags)               \
  PoolBand<f32> pool_band_f32__##isa(const TransferParams& params) noexcept; \
  PoolBand<f16> pool_band_f16__##isa(const TransferParams& params) noexcept;

SCISSIONLITE_ISAS(SCISSIONLITE_DECLARE_POOLING)

#undef SCISSIONLITE_DECLARE_POOLING

namespace {

// Height or width of the pooled map: windows at the border may be partial.
constexpr std::size_t pooled_size(std::size_t size, std::size_t window) noexcept {
  return (size + window - 1) / window;
}

}  // namespace

// Input and output are dense, aligned to their element type only, and do not overlap.
// A kernel neither reads nor writes outside them, allocates nothing and cannot fail.
// pool_range without pooling accepts a null output, and then only finds the range.
#define SCISSIONLITE_DECLARE_KERNEL(operation, input, output, isa) \
  void SCISSIONLITE_KERNEL_NAME(operation, input, output, isa)(    \
      const input* from, output* to, const TransferParams& params) noexcept;
#define SCISSIONLITE_DECLARE_ISA(isa, architecture, flags) \
  SCISSIONLITE_KERNELS(SCISSIONLITE_DECLARE_KERNEL, isa)

SCISSIONLITE_ISAS(SCISSIONLITE_DECLARE_ISA)

#undef SCISSIONLITE_DECLARE_ISA
#undef SCISSIONLITE_DECLARE_KERNEL

}  // namespace scissionlite

#endif  // SCISSIONLITE_KERNELS_H_
