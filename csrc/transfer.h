// The objects that a caller holds: a Transfer Layer for feature maps of one shape, checked and with
// its kernels chosen, and the scales that it quantizes with.

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

// Scales and zero points, per tensor or per channel. docs/numerics.md says which are allowed;
// others are a std::invalid_argument.
class Quantizer {
 public:
  Quantizer(const float* scales, const std::int32_t* zero_points, std::size_t groups);
  // The quantizer whose codes span the ranges; [+inf, -inf] stands for the range 0 to 0. Each range
  // uses `levels` of the codes; 0 means all.
  static Quantizer from_ranges(const double* lows, const double* highs, std::size_t groups,
                               PayloadType payload, Scheme scheme, std::uint32_t levels);

  std::size_t groups() const noexcept { return scales_.size(); }
  const float* scales() const noexcept { return scales_.data(); }
  const float* inverse_scales() const noexcept { return inverse_scales_.data(); }
  const std::int32_t* zero_points() const noexcept { return zero_points_.data(); }
  // True if every zero point is an int4 code.
  bool fits_int4() const noexcept { return fits_int4_; }

 private:
  std::vector<float> scales_;
  std::vector<float> inverse_scales_;
  std::vector<std::int32_t> zero_points_;
  bool fits_int4_;
};

struct Transfer {
  // With the sizes, the window and the choices of `params`. A size that is zero, sizes that
  // overflow and an unknown window are a std::invalid_argument; an unusable ISA is an IsaError.
  Transfer(const TransferParams& params, PayloadType payload, std::string_view isa);

  TransferParams params;  // without scales
  PayloadType payload;
  std::size_t elements;  // elements of the feature map
  std::size_t pooled;    // elements of the pooled map
  std::size_t bytes;     // bytes of the payload
  // The kernels for a float32 feature map and for a float16 one.
  const Kernel* encode[2];
  const Kernel* pool_range[2];
  const Kernel* decode[2];

  // The parameters of a call with these scales. A quantizer that is missing, superfluous or does
  // not match channels and payload is a std::invalid_argument.
  TransferParams encoding_with(const Quantizer* quantizer) const;
  TransferParams decoding_with(const Quantizer* quantizer) const;

  // Encodes an integer payload with scales from the range of the map: pools into `pooled_map` (null
  // without pooling) and finds the range, then quantizes the pooled map. `half` is 1 for a float16
  // map, else 0.
  Quantizer encode_measured(std::size_t half, const void* input, void* pooled_map, void* output,
                            bool per_channel, Scheme scheme, std::uint32_t levels) const;

  bool quantizes() const noexcept {
    return payload == PayloadType::kInt8 || payload == PayloadType::kInt4;
  }

 private:
  TransferParams with_groups_of(const Quantizer* quantizer) const;
};

}  // namespace scissionlite

#endif  // SCISSIONLITE_TRANSFER_H_
