// Unpacks any part of a payload into values of the output's type. Numerics: docs/numerics.md.

#ifndef SCISSIONLITE_UNPACKING_H_
#define SCISSIONLITE_UNPACKING_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "packing.h"

namespace scissionlite {
namespace {

// Looks up each of at least 32 codes of a group in a table of what the 16 codes stand for. The
// first code is the lower one of its byte.
template <class V>
void look_up_int4(const Int4Pair* from, float* to, std::size_t count, std::size_t group,
                  const TransferParams& params) noexcept {
  constexpr std::int8_t kCodes[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
  float values[16];
  dequantize<V, OneGroup>(kCodes, values, 16, params.factors + group, params.zero_points + group);
  const typename V::Table table = V::make_table(values);
  const std::size_t even = count / 2 * 2;
  for_each_vector<32>(even, [&](std::size_t i) { V::look_up(from + i / 2, to + i, table); });
  if (even < count) to[even] = values[from[even / 2].codes & 15U];
}

// Unpacks `count` values, at most kBlock, from the value `at` on; `channel` is that of the first.
template <class V, class Input, class Output>
class Unpacker {
 public:
  Unpacker(const Input* input, const TransferParams& params) noexcept
      : input_(input), params_(params) {}

  void operator()(std::size_t at, std::size_t count, std::size_t channel, Output* to) noexcept {
    if constexpr (V::kLooksUp && kSame<Input, i4>) {
      const bool interleaved = params_.per_channel && params_.layout == Layout::kNhwc;
      if (!interleaved && at % 2 == 0 && count >= 32) {
        const std::size_t group = params_.per_channel ? channel : 0;
        if constexpr (kSame<Output, f32>) {
          look_up_int4<V>(input_ + at / 2, to, count, group, params_);
        } else {
          look_up_int4<V>(input_ + at / 2, values_, count, group, params_);
          convert<V>(values_, to, count);
        }
        return;
      }
    }
    if constexpr (kHoldsCodes<Input>) {
      const std::int8_t* codes = codes_at(at, count);
      if constexpr (kSame<Output, f32>) {
        dequantize_run<V>(codes, to, count, channel, params_);
      } else {
        dequantize_run<V>(codes, values_, count, channel, params_);
        convert<V>(values_, to, count);
      }
    } else if constexpr (kSame<Input, Output>) {
      copy(input_ + at, to, count);
    } else {
      convert<V>(input_ + at, to, count);
    }
  }

 private:
  const std::int8_t* codes_at(std::size_t at, std::size_t count) noexcept {
    if constexpr (kSame<Input, i4>) {
      // From the byte of the first value to the byte of the last one.
      const std::size_t first = at / 2;
      unpack_int4(input_ + first, codes_, (at + count + 1) / 2 - first);
      return codes_ + at % 2;
    } else {
      return input_ + at;
    }
  }

  const Input* input_;
  const TransferParams& params_;
  std::int8_t codes_[kSame<Input, i4> ? kBlock + 2 : 1];
  float values_[kHoldsCodes<Input> && !kSame<Output, f32> ? kBlock : 1];
};

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_UNPACKING_H_
