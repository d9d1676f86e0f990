// Unpacks any part of a payload into values of the output's type. Numerics: docs/numerics.md.

#ifndef SCISSIONLITE_UNPACKING_H_
#define SCISSIONLITE_UNPACKING_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "packing.h"

namespace scissionlite {
namespace {

// Unpacks `count` values, at most kBlock, from the value `at` on; `channel` is that of the first.
template <class V, class Input, class Output>
class Unpacker {
 public:
  Unpacker(const Input* input, const TransferParams& params) noexcept
      : input_(input), params_(params) {}

  void operator()(std::size_t at, std::size_t count, std::size_t channel, Output* to) noexcept {
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
