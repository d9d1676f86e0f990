// Any part of a payload as values of the output's type. Numerics: docs/numerics.md.

#ifndef SCISSIONLITE_UNPACKING_H_
#define SCISSIONLITE_UNPACKING_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "packing.h"

namespace scissionlite {
namespace {

template <class Element>
constexpr bool kIsInt8 = false;
template <>
constexpr bool kIsInt8<std::int8_t> = true;

// Unpacks `count` values, at most kBlock, from the `at`-th on; `channel` is the first one's.
template <class V, class Input, class Output>
class Unpacker {
 public:
  Unpacker(const Input* input, const TransferParams& params) noexcept
      : input_(input), params_(params) {}

  void operator()(std::size_t at, std::size_t count, std::size_t channel, Output* to) noexcept {
    if constexpr (kCodes) {
      const std::int8_t* codes = codes_at(at, count);
      if constexpr (sizeof(Output) == sizeof(float)) {
        dequantize_run<V>(codes, to, count, channel, params_);
      } else {
        dequantize_run<V>(codes, values_, count, channel, params_);
        convert<V>(values_, to, count);
      }
    } else if constexpr (sizeof(Input) == sizeof(Output)) {
      copy(input_ + at, to, count);
    } else {
      convert<V>(input_ + at, to, count);
    }
  }

 private:
  static constexpr bool kInt4Codes = sizeof(Input) == 1 && !kIsInt8<Input>;
  static constexpr bool kCodes = sizeof(Input) == 1;

  const std::int8_t* codes_at(std::size_t at, std::size_t count) noexcept {
    if constexpr (kInt4Codes) {
      // From the byte that the first is in to the byte that the last is in.
      const std::size_t first = at / 2;
      unpack_int4(input_ + first, codes_, (at + count + 1) / 2 - first);
      return codes_ + at % 2;
    } else {
      return input_ + at;
    }
  }

  const Input* input_;
  const TransferParams& params_;
  std::int8_t codes_[kInt4Codes ? kBlock + 2 : 1];
  float values_[kCodes && sizeof(Output) != sizeof(float) ? kBlock : 1];
};

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_UNPACKING_H_
