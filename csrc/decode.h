// The decode kernels, for any vector class: EdgeTL (arXiv 2105.02019).
//
// Blocks of the payload are unpacked and dequantized into a buffer of the output's type, and
// upsampled from there. So unpacking works on full vectors even if the rows are narrow.

#ifndef SCISSIONLITE_DECODE_H_
#define SCISSIONLITE_DECODE_H_

#include <cstddef>
#include <cstdint>

#include "bilinear.h"
#include "kernels.h"
#include "unpacking.h"
#include "upsampling.h"

namespace scissionlite {
namespace {

// Without upsampling the values are unpacked into the output directly.
template <class V, class Input, class Output>
void decode_unpooled(const Input* input, Output* output, const TransferParams& params) noexcept {
  Unpacker<V, Input, Output> unpack(input, params);
  const std::size_t pixels = params.height * params.width;
  const bool planes = params.per_channel && params.layout == Layout::kNchw;
  const std::size_t parts = planes ? params.images * params.channels : 1;
  const std::size_t part = planes ? pixels : params.images * params.channels * pixels;
  for (std::size_t i = 0; i < parts; ++i) {
    for (std::size_t at = 0; at < part; at += kBlock) {
      const std::size_t count = part - at < kBlock ? part - at : kBlock;
      unpack(i * part + at, count, (planes ? i : at) % params.channels, output + i * part + at);
    }
  }
}

template <class V, class Input, class Output>
void decode_nchw(const Input* input, Output* output, const TransferParams& params) noexcept {
  const SpreadPatch<Output> spread = choose_spread<V, Output>(params);
  Unpacker<V, Input, Output> unpack(input, params);
  Output stage[kBlock + kPadding];
  const std::size_t height = pooled_size(params.height, params.window);
  const std::size_t width = pooled_size(params.width, params.window);
  const std::size_t all_rows = params.images * params.channels * height;
  for (std::size_t row = 0; row < all_rows;) {
    const std::size_t channel = row / height % params.channels;
    if (width <= kBlock) {
      // With one scale per channel a block ends where its plane ends.
      const std::size_t rest = params.per_channel ? height - row % height : all_rows - row;
      const std::size_t fit = kBlock / width;
      const std::size_t rows = fit < rest ? fit : rest;
      unpack(row * width, rows * width, channel, stage);
      spread(stage, params, {row, rows, 0, width, 0, 1}, output);
      row += rows;
    } else {
      for (std::size_t x = 0; x < width; x += kBlock) {
        const std::size_t columns = width - x < kBlock ? width - x : kBlock;
        unpack(row * width + x, columns, channel, stage);
        spread(stage, params, {row, 1, x, columns, 0, 1}, output);
      }
      ++row;
    }
  }
}

template <class V, class Input, class Output>
void decode_nhwc(const Input* input, Output* output, const TransferParams& params) noexcept {
  const SpreadPatch<Output> spread = choose_spread<V, Output>(params);
  Unpacker<V, Input, Output> unpack(input, params);
  Output stage[kBlock + kPadding];
  const std::size_t channels = params.channels;
  const std::size_t width = pooled_size(params.width, params.window);
  const std::size_t all_rows = params.images * pooled_size(params.height, params.window);
  for (std::size_t row = 0; row < all_rows; ++row) {
    for (std::size_t x = 0; x < width;) {
      const std::size_t at = (row * width + x) * channels;
      if (channels <= kBlock) {
        const std::size_t fit = kBlock / channels;
        const std::size_t columns = fit < width - x ? fit : width - x;
        unpack(at, columns * channels, 0, stage);
        spread(stage, params, {row, 1, x, columns, 0, channels}, output);
        x += columns;
      } else {
        for (std::size_t c = 0; c < channels; c += kBlock) {
          const std::size_t part = channels - c < kBlock ? channels - c : kBlock;
          unpack(at + c, part, c, stage);
          spread(stage, params, {row, 1, x, 1, c, part}, output);
        }
        ++x;
      }
    }
  }
}

template <class V, class Input, class Output>
void decode(const Input* input, Output* output, const TransferParams& params) noexcept {
  const bool nchw = params.layout == Layout::kNchw;
  if (params.window == 1) {
    decode_unpooled<V>(input, output, params);
  } else if (params.upsampling == Upsampling::kBilinear) {
    const auto in_nchw =
        params.window == 2 ? bilinear_nchw<V, 2, Output> : bilinear_nchw<V, 4, Output>;
    const auto bilinear = nchw ? in_nchw : bilinear_nhwc<V, Output>;
    bilinear(input, unpack_floats<V, Input>, output, params);
  } else {
    const auto nearest = nchw ? decode_nchw<V, Input, Output> : decode_nhwc<V, Input, Output>;
    nearest(input, output, params);
  }
}

}  // namespace
}  // namespace scissionlite

// Defines the decode kernels of an ISA, with its vector class V.
#define SCISSIONLITE_DEFINE_DECODE(operation, input, output, isa, V)          \
  void SCISSIONLITE_KERNEL_NAME(operation, input, output, isa)(               \
      const input* from, output* to, const TransferParams& params) noexcept { \
    operation<V>(from, to, params);                                           \
  }
#define SCISSIONLITE_DECODE_KERNELS(isa, V)                    \
  namespace scissionlite {                                     \
  SCISSIONLITE_DECODE_LIST(SCISSIONLITE_DEFINE_DECODE, isa, V) \
  }

#endif  // SCISSIONLITE_DECODE_H_
