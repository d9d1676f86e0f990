// libFuzzer target: every kernel that this CPU can run, on sizes, parameters and data that the
// fuzzer makes up. Each runs in blocks of exactly the right size under AddressSanitizer and
// UndefinedBehaviorSanitizer, and must write, byte for byte, what the scalar kernel writes.
// `make fuzz`; what it finds becomes an @example in tests/test_kernels.py, so its Call is printed.

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "dispatch.h"
#include "guarded_array.h"

namespace {

using scissionlite::CodeRange;
using scissionlite::GuardedArray;
using scissionlite::Kernel;
using scissionlite::kInt4Codes;
using scissionlite::kInt8Codes;
using scissionlite::Layout;
using scissionlite::Pooling;
using scissionlite::TransferParams;
using scissionlite::Upsampling;
using Bytes = std::vector<unsigned char>;

constexpr std::size_t kMostElements = 1U << 14;

struct Quantization {
  std::vector<float> scales;
  std::vector<float> factors;
  std::vector<std::int32_t> zero_points;
};

struct Answer {
  Bytes output;
  Bytes lows;
  Bytes highs;

  bool operator==(const Answer& other) const {
    return output == other.output && lows == other.lows && highs == other.highs;
  }
};

bool contains(const Kernel& kernel, const char* part) {
  return kernel.operation.find(part) != std::string_view::npos;
}

bool decodes(const Kernel& kernel) { return contains(kernel, "decode"); }
bool is_int4(const Kernel& kernel) { return contains(kernel, "_i4"); }
bool quantizes(const Kernel& kernel) { return is_int4(kernel) || contains(kernel, "_i8"); }

std::size_t bytes_of(const Kernel& kernel, const TransferParams& params, bool pooled) {
  const std::size_t window = pooled ? params.window : 1;
  const std::size_t elements = params.images * params.channels *
                               scissionlite::pooled_size(params.height, window) *
                               scissionlite::pooled_size(params.width, window);
  if (pooled && is_int4(kernel)) return (elements + 1) / 2;
  return elements * (pooled == decodes(kernel) ? kernel.input_item : kernel.output_item);
}

TransferParams make_params(FuzzedDataProvider& data) {
  TransferParams params{};
  // Mostly around the widths of vectors, sometimes longer than what kernels stage at once.
  const auto size = [&data] {
    return data.ConsumeIntegralInRange<std::size_t>(1, data.ConsumeBool() ? 9 : 80);
  };
  params.images = data.ConsumeIntegralInRange<std::size_t>(1, 3);
  params.channels = size();
  params.height = size();
  params.width = size();
  if (data.ConsumeProbability<float>() > 0.9F) {
    std::size_t& longest = data.ConsumeBool() ? params.channels : params.width;
    longest = data.ConsumeIntegralInRange<std::size_t>(1000, 5000);
  }
  while (params.images * params.channels * params.height * params.width > kMostElements) {
    std::size_t& largest = params.height > 4 ? params.height : params.images;
    largest = (largest + 1) / 2;
    if (params.images == 1 && params.height <= 4) {
      (params.channels < params.width ? params.channels : params.width) = 3;
      params.height = 1;
    }
  }
  params.window = 1U << data.ConsumeIntegralInRange<unsigned>(0, 2);
  params.pooling = data.ConsumeBool() ? Pooling::kMax : Pooling::kAverage;
  params.upsampling = data.ConsumeBool() ? Upsampling::kNearest : Upsampling::kBilinear;
  params.layout = data.ConsumeBool() ? Layout::kNchw : Layout::kNhwc;
  params.per_channel = data.ConsumeBool();
  return params;
}

Quantization make_quantization(FuzzedDataProvider& data, const Kernel& kernel, std::size_t groups) {
  Quantization made;
  for (std::size_t group = 0; group < groups; ++group) {
    float scale = 0;
    const auto bits = data.ConsumeIntegral<std::uint32_t>();
    std::memcpy(&scale, &bits, sizeof scale);
    // Callers check this; docs/numerics.md, Quantization.
    if (!(scale > 0) || !std::isfinite(scale) || !std::isfinite(1 / scale)) scale = 0.25F;
    made.scales.push_back(scale);
    made.factors.push_back(decodes(kernel) ? scale : 1 / scale);
    const CodeRange codes = is_int4(kernel) ? kInt4Codes : kInt8Codes;
    made.zero_points.push_back(data.ConsumeIntegralInRange<std::int32_t>(codes.low, codes.high));
  }
  return made;
}

// What is left of the data, over and over.
Bytes make_input(FuzzedDataProvider& data, std::size_t size) {
  Bytes bytes = data.ConsumeRemainingBytes<unsigned char>();
  if (bytes.empty()) bytes.push_back(0);
  const std::size_t given = bytes.size();
  bytes.resize(size);
  for (std::size_t i = given; i < size; ++i) bytes[i] = bytes[i - given];
  return bytes;
}

Bytes content(const GuardedArray& array) {
  const auto* begin = static_cast<const unsigned char*>(array.data());
  return Bytes(begin, begin + array.size());
}

template <typename Element>
Bytes as_bytes(const std::vector<Element>& elements) {
  Bytes bytes(elements.size() * sizeof(Element));
  if (!bytes.empty()) std::memcpy(bytes.data(), elements.data(), bytes.size());
  return bytes;
}

[[noreturn]] void report(const char* what, const Kernel& kernel, const TransferParams& params,
                         const Quantization& quantization) {
  std::fprintf(stderr, "\n%s: %s__%s\n", what, std::string(kernel.operation).c_str(),
               std::string(kernel.isa).c_str());
  std::fprintf(stderr,
               "Call(%zu, %zu, %zu, %zu, window=%u, pooling='%s', upsampling='%s', layout='%s', "
               "per_channel=%s)\n",
               params.images, params.channels, params.height, params.width, params.window,
               params.pooling == Pooling::kMax ? "max" : "average",
               params.upsampling == Upsampling::kNearest ? "nearest" : "bilinear",
               params.layout == Layout::kNchw ? "nchw" : "nhwc",
               params.per_channel ? "True" : "False");
  for (std::size_t i = 0; i < std::min<std::size_t>(quantization.scales.size(), 8); ++i) {
    std::fprintf(stderr, "  scale %a, zero point %d\n", static_cast<double>(quantization.scales[i]),
                 quantization.zero_points[i]);
  }
  std::abort();
}

Answer run(const Kernel& kernel, TransferParams params, const Quantization& quantization,
           const Bytes& input, std::size_t shift) {
  const bool ranges = contains(kernel, "pool_range");
  const std::size_t ranges_size =
      ranges ? sizeof(float) * (params.per_channel ? params.channels : 1) : 0;
  const GuardedArray from(input, shift * kernel.input_item);
  const GuardedArray to(bytes_of(kernel, params, !decodes(kernel)), shift * kernel.output_item);
  const GuardedArray factors(as_bytes(quantization.factors), 0);
  const GuardedArray zero_points(as_bytes(quantization.zero_points), 0);
  const GuardedArray lows(ranges_size, 0);
  const GuardedArray highs(ranges_size, 0);
  params.factors = static_cast<const float*>(factors.data());
  params.zero_points = static_cast<const std::int32_t*>(zero_points.data());
  params.lows = static_cast<float*>(lows.data());
  params.highs = static_cast<float*>(highs.data());
  kernel.run(from.data(), to.data(), params);
  if (content(from) != input) report("wrote to its input", kernel, params, quantization);
  for (const GuardedArray* array : {&from, &to, &factors, &zero_points, &lows, &highs}) {
    if (!array->canaries_alive()) report("wrote outside", kernel, params, quantization);
  }
  Answer answer{content(to), content(lows), content(highs)};
  if (ranges && params.window == 1) {
    kernel.run(from.data(), nullptr, params);
    if (content(lows) != answer.lows || content(highs) != answer.highs) {
      report("another range without output", kernel, params, quantization);
    }
  }
  return answer;
}

const std::vector<Kernel>& scalar_kernels() {
  static const std::vector<Kernel> found = [] {
    std::vector<Kernel> kernels;
    for (const Kernel& kernel : scissionlite::all_kernels()) {
      if (kernel.isa == "scalar") kernels.push_back(kernel);
    }
    return kernels;
  }();
  return found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  FuzzedDataProvider data(bytes, size);
  const Kernel& scalar =
      scalar_kernels()[data.ConsumeIntegralInRange<std::size_t>(0, scalar_kernels().size() - 1)];
  TransferParams params = make_params(data);
  // Without scales, only pool_range knows channels.
  params.per_channel = params.per_channel && (quantizes(scalar) || contains(scalar, "pool_range"));
  const std::size_t shift = data.ConsumeIntegralInRange<std::size_t>(0, 3);
  Quantization quantization;
  if (quantizes(scalar)) {
    quantization = make_quantization(data, scalar, params.per_channel ? params.channels : 1);
  }
  const Bytes input = make_input(data, bytes_of(scalar, params, decodes(scalar)));
  const Answer expected = run(scalar, params, quantization, input, 0);
  for (const Kernel& kernel : scissionlite::all_kernels()) {
    if (kernel.operation != scalar.operation || !kernel.cpu_can_run()) continue;
    if (!(run(kernel, params, quantization, input, shift) == expected)) {
      report("not what the scalar kernel writes", kernel, params, quantization);
    }
  }
  return 0;
}
