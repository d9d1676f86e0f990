// The checks and the arithmetic that come once per shape or per call, before a kernel runs.

#include "transfer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace scissionlite {
namespace {

std::size_t product(std::size_t a, std::size_t b) {
  // A quarter of the largest size, so that the bytes of float32 fit too.
  constexpr std::size_t kMost = std::numeric_limits<std::ptrdiff_t>::max() / 4;
  if (a == 0 || b == 0) throw std::invalid_argument("every size must be at least 1");
  if (a > kMost / b) throw std::invalid_argument("the sizes together are too large");
  return a * b;
}

struct PayloadFacts {
  const char* element;  // as in the names of the kernels
  std::size_t bits;
};

PayloadFacts facts_of(PayloadType type) {
  switch (type) {
    case PayloadType::kFloat32:
      return {"f32", 32};
    case PayloadType::kFloat16:
      return {"f16", 16};
    case PayloadType::kInt8:
      return {"i8", 8};
    case PayloadType::kInt4:
      return {"i4", 4};
  }
  throw std::invalid_argument("unknown type of payload");
}

bool contains(CodeRange codes, std::int32_t code) {
  return code >= codes.low && code <= codes.high;
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
    if (!contains(kInt8Codes, zero_point)) {
      throw std::invalid_argument("a zero point must be within [-128, 127]");
    }
    fits_int4_ = fits_int4_ && contains(kInt4Codes, zero_point);
  }
}

Quantizer Quantizer::from_ranges(const double* lows, const double* highs, std::size_t groups,
                                 PayloadType payload, Scheme scheme, std::uint32_t levels) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const CodeRange codes = payload == PayloadType::kInt4 ? kInt4Codes : kInt8Codes;
  const double low_code = codes.low;
  const double high_code = codes.high;
  const double all_steps = high_code - low_code;
  if (levels == 1 || levels > all_steps + 1) {
    throw std::invalid_argument("levels must be 2 or more, and no more than there are codes");
  }
  const double wider = levels == 0 ? 1.0 : all_steps / (levels - 1);
  std::vector<float> scales(groups);
  std::vector<std::int32_t> zero_points(groups);
  for (std::size_t group = 0; group < groups; ++group) {
    double low = lows[group];
    double high = highs[group];
    if (low == kInfinity && high == -kInfinity) low = high = 0.0;
    if (!std::isfinite(low) || !std::isfinite(high) || low > high) {
      throw std::invalid_argument("a range must be finite and not reversed, not [" +
                                  std::to_string(low) + ", " + std::to_string(high) + "]");
    }
    low = std::min(low, 0.0) * wider;
    high = std::max(high, 0.0) * wider;
    const bool affine = scheme == Scheme::kAffine;
    const double span = affine ? high - low : std::max(-low, high);
    const double steps = affine ? all_steps : high_code;
    // The least scale: its reciprocal is finite.
    const float least = std::numeric_limits<float>::min();
    const float scale = span > 0.0 ? std::max(static_cast<float>(span / steps), least) : 1.0F;
    scales[group] = scale;
    if (affine) {
      // nearbyint rounds half to even in the rounding mode that docs/numerics.md requires.
      const double zero_point = std::nearbyint(low_code - low / static_cast<double>(scale));
      zero_points[group] =
          static_cast<std::int32_t>(std::min(std::max(zero_point, low_code), high_code));
    }
  }
  return {scales.data(), zero_points.data(), groups};
}

Transfer::Transfer(const TransferParams& params_, PayloadType payload_, std::string_view isa)
    : params(params_), payload(payload_) {
  const std::size_t planes = product(params.images, params.channels);
  elements = product(product(planes, params.height), params.width);
  const std::size_t window = params.window;
  if (window != 1 && window != 2 && window != 4) {
    throw std::invalid_argument("pool must be 1, 2 or 4");
  }
  pooled = planes * pooled_size(params.height, window) * pooled_size(params.width, window);
  const PayloadFacts facts = facts_of(payload);
  bytes = facts.bits >= 8 ? pooled * (facts.bits / 8) : pooled / 2 + pooled % 2;

  const std::string type = facts.element;
  for (const std::size_t half : {std::size_t{0}, std::size_t{1}}) {
    const std::string map = half == 1 ? "f16" : "f32";
    encode[half] = &find_kernel("encode_" + map + "_" + type, isa);
    pool_range[half] = &find_kernel("pool_range_" + map + "_f32", isa);
    decode[half] = &find_kernel("decode_" + type + "_" + map, isa);
  }
}

TransferParams Transfer::with_groups_of(const Quantizer* quantizer) const {
  if ((quantizer != nullptr) != quantizes()) {
    throw std::invalid_argument(quantizes() ? "this payload needs a quantizer"
                                            : "a float payload takes no quantizer");
  }
  TransferParams call = params;
  if (quantizer == nullptr) return call;
  if (quantizer->groups() != 1 && quantizer->groups() != params.channels) {
    throw std::invalid_argument("the quantizer has " + std::to_string(quantizer->groups()) +
                                " scales; it must have 1, or one for each of " +
                                std::to_string(params.channels) + " channels");
  }
  if (payload == PayloadType::kInt4 && !quantizer->fits_int4()) {
    throw std::invalid_argument("an int4 zero point must be within [-8, 7]");
  }
  call.per_channel = quantizer->groups() > 1;
  call.zero_points = quantizer->zero_points();
  return call;
}

TransferParams Transfer::encoding_with(const Quantizer* quantizer) const {
  TransferParams call = with_groups_of(quantizer);
  if (quantizer != nullptr) call.factors = quantizer->inverse_scales();
  return call;
}

TransferParams Transfer::decoding_with(const Quantizer* quantizer) const {
  TransferParams call = with_groups_of(quantizer);
  if (quantizer != nullptr) call.factors = quantizer->scales();
  return call;
}

Quantizer Transfer::encode_measured(std::size_t half, const void* input, void* pooled_map,
                                    void* output, bool per_channel, Scheme scheme,
                                    std::uint32_t levels) const {
  const std::size_t groups = per_channel ? params.channels : 1;
  std::vector<float> lows(groups);
  std::vector<float> highs(groups);
  TransferParams call = params;
  call.per_channel = per_channel;
  call.lows = lows.data();
  call.highs = highs.data();
  pool_range[half]->run(input, pooled_map, call);

  const std::vector<double> exact_lows(lows.begin(), lows.end());
  const std::vector<double> exact_highs(highs.begin(), highs.end());
  Quantizer quantizer = Quantizer::from_ranges(exact_lows.data(), exact_highs.data(), groups,
                                               payload, scheme, levels);
  call.factors = quantizer.inverse_scales();
  call.zero_points = quantizer.zero_points();
  if (params.window == 1) {
    encode[half]->run(input, output, call);
  } else {
    call.height = pooled_size(params.height, params.window);
    call.width = pooled_size(params.width, params.window);
    call.window = 1;
    encode[0]->run(pooled_map, output, call);
  }
  return quantizer;
}

}  // namespace scissionlite
