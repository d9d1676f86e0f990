// The checks and the arithmetic that are done once, before any kernel runs.

#include "transfer.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace scissionlite {
namespace {

std::size_t product(std::size_t a, std::size_t b) {
  // A quarter, so that bytes of float32 fit as well.
  constexpr std::size_t kMost = std::numeric_limits<std::ptrdiff_t>::max() / 4;
  if (a == 0 || b == 0) throw std::invalid_argument("every size must be at least 1");
  if (a > kMost / b) throw std::invalid_argument("the sizes together are too large");
  return a * b;
}

const char* payload_name(PayloadType type) {
  switch (type) {
    case PayloadType::kFloat32:
      return "f32";
    case PayloadType::kFloat16:
      return "f16";
    case PayloadType::kInt8:
      return "i8";
    case PayloadType::kInt4:
      return "i4";
  }
  return "";
}

std::size_t bits_of(PayloadType type) {
  switch (type) {
    case PayloadType::kFloat32:
      return 32;
    case PayloadType::kFloat16:
      return 16;
    case PayloadType::kInt8:
      return 8;
    case PayloadType::kInt4:
      return 4;
  }
  return 0;
}

}  // namespace

Quantizer::Quantizer(const float* scales, const std::int32_t* zero_points, std::size_t groups)
    : scales_(scales, scales + groups),
      zero_points_(zero_points, zero_points + groups),
      fits_int4_(true) {
  if (groups == 0) throw std::invalid_argument("a quantizer needs at least one scale");
  inverse_scales_.reserve(groups);
  for (const float scale : scales_) {
    const float inverse = 1.0F / scale;
    if (!(scale > 0.0F) || !std::isfinite(scale) || !std::isfinite(inverse)) {
      throw std::invalid_argument(
          "a scale must be finite and positive, with a finite reciprocal in float32");
    }
    inverse_scales_.push_back(inverse);
  }
  for (const std::int32_t zero_point : zero_points_) {
    if (zero_point < -128 || zero_point > 127) {
      throw std::invalid_argument("a zero point must be within [-128, 127]");
    }
    fits_int4_ = fits_int4_ && zero_point >= -8 && zero_point <= 7;
  }
}

Transfer::Transfer(const TransferParams& checked, PayloadType payload_type, std::string_view isa)
    : params(checked), payload(payload_type) {
  const std::size_t planes = product(params.images, params.channels);
  elements = product(product(planes, params.height), params.width);
  const std::size_t window = params.window;
  if (window != 1 && window != 2 && window != 4) {
    throw std::invalid_argument("pool must be 1, 2 or 4");
  }
  pooled = planes * ((params.height - 1) / window + 1) * ((params.width - 1) / window + 1);
  const std::size_t bits = bits_of(payload);
  bytes = bits >= 8 ? pooled * (bits / 8) : pooled / 2 + pooled % 2;

  const std::string type = payload_name(payload);
  for (const std::size_t half : {std::size_t{0}, std::size_t{1}}) {
    const std::string map = half == 1 ? "f16" : "f32";
    encode[half] = &find_kernel("encode_" + map + "_" + type, isa);
    pool_range[half] = &find_kernel("pool_range_" + map + "_f32", isa);
    decode[half] = &find_kernel("decode_" + type + "_" + map, isa);
  }
}

}  // namespace scissionlite
