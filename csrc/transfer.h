// What a caller holds: a Transfer Layer for feature maps of one shape, checked and with its kernels
// chosen, and the scales that it quantizes with.

#ifndef SCISSIONLITE_TRANSFER_H_
#define SCISSIONLITE_TRANSFER_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "dispatch.h"
#include "kernels.h"

namespace scissionlite {

enum class PayloadType { kFloat32, kFloat16, kInt8, kInt4 };

// How a range becomes scale and zero point.
enum class Scheme { kAffine, kSymmetric };

// Scales and zero points, one of each for a tensor or for each channel. docs/numerics.md says which
// are allowed; others are a std::invalid_argument.
class Quantizer {
 public:
  Quantizer(const float* scales, const std::int32_t* zero_points, std::size_t groups);
  // Those whose codes span the ranges; [+inf, -inf] stands for a range of only zero. With `levels`
  // each range takes that many of the codes, 0 being all.
  static Quantizer from_ranges(const double* lows, const double* highs, std::size_t groups,
                               PayloadType payload, Scheme scheme, std::uint32_t levels);

  std::size_t groups() const noexcept { return scales_.size(); }
  const float* scales() const noexcept { return scales_.data(); }
  const float* inverse_scales() const noexcept { return inverse_scales_.data(); }
  const std::int32_t* zero_points() const noexcept { return zero_points_.data(); }
  // True if every zero point is an int4 code too.
  bool fits_int4() const noexcept { return fits_int4_; }

 private:
  std::vector<float> scales_;
  std::vector<float> inverse_scales_;
  std::vector<std::int32_t> zero_points_;
  bool fits_int4_;
};

struct Transfer {
  // Sizes, window and choices of `checked`; unknown names and sizes that are zero or overflow are a
  // std::invalid_argument.
  Transfer(const TransferParams& checked, PayloadType payload_type, std::string_view isa);

  TransferParams params;  // without scales
  PayloadType payload;
  std::size_t elements;  // of the feature map
  std::size_t pooled;    // elements of the pooled map
  std::size_t bytes;     // of the payload
  // Of a float32 feature map and of a float16 one.
  const Kernel* encode[2];
  const Kernel* pool_range[2];
  const Kernel* decode[2];

  // Encodes an integer payload with scales from the map's own range: pools into `pooled_map` (null
  // where there is no pooling) and finds the range, then quantizes from there. `half` is 1 for a
  // float16 map, else 0.
  Quantizer encode_measured(std::size_t half, const void* input, void* pooled_map, void* output,
                            bool per_channel, Scheme scheme, std::uint32_t levels) const;

  bool quantizes() const noexcept {
    return payload == PayloadType::kInt8 || payload == PayloadType::kInt4;
  }
};

}  // namespace scissionlite

#endif  // SCISSIONLITE_TRANSFER_H_
