// The encode and pool_range kernels, for any vector class: DeviceTL (arXiv 2105.02019).
//
// The feature map is pooled block by block into a buffer of float32 in the payload's order, and
// each block is packed from there. So packing works on full vectors even if the rows are narrow,
// and pooling and packing are not written once for each of their combinations.

#ifndef SCISSIONLITE_ENCODE_H_
#define SCISSIONLITE_ENCODE_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "packing.h"

namespace scissionlite {
namespace {

// A sink consumes the pooled values in the payload's order. They are written to room(), which has
// place for kBlock elements, and then consumed with flush(). take() consumes values that lie
// elsewhere. `channel` is the channel of the first value. A call does much, and each kernel has
// many calls: so what they do is not inlined.

// Packs the values into a payload of type Output.
template <class V, class Output>
class PayloadSink;

template <class V>
class PayloadSink<V, i8> {
 public:
  PayloadSink(i8* to, const TransferParams& params) noexcept : to_(to), params_(params) {}
  float* room() noexcept { return stage_; }
  void flush(std::size_t count, std::size_t channel) noexcept { take(stage_, count, channel); }
  [[gnu::noinline]] void take(const float* from, std::size_t count, std::size_t channel) noexcept {
    quantize_run<V>(from, to_, count, channel, params_, kInt8Codes);
    to_ += count;
  }
  void finish() noexcept {}

 private:
  i8* to_;
  const TransferParams& params_;
  float stage_[kBlock];
};

template <class V>
class PayloadSink<V, i4> {
 public:
  PayloadSink(i4* to, const TransferParams& params) noexcept : to_(to), params_(params) {}
  float* room() noexcept { return stage_; }
  void flush(std::size_t count, std::size_t channel) noexcept { take(stage_, count, channel); }
  [[gnu::noinline]] void take(const float* from, std::size_t count, std::size_t channel) noexcept {
    quantize_run<V>(from, codes_ + waiting_, count, channel, params_, kInt4Codes);
    const std::size_t pairs = (waiting_ + count) / 2;
    pack_int4(codes_, to_, pairs);
    to_ += pairs;
    // A block may end between the two codes of a byte.
    waiting_ = (waiting_ + count) % 2;
    if (waiting_ != 0) codes_[0] = codes_[2 * pairs];
  }
  void finish() noexcept {
    if (waiting_ == 0) return;
    codes_[1] = 0;
    pack_int4(codes_, to_, 1);
  }

 private:
  i4* to_;
  const TransferParams& params_;
  std::size_t waiting_ = 0;  // codes that wait for their pair, at the start of codes_
  float stage_[kBlock];
  std::int8_t codes_[kBlock + 2];
};

template <class V>
class PayloadSink<V, f16> {
 public:
  PayloadSink(f16* to, const TransferParams&) noexcept : to_(to) {}
  float* room() noexcept { return stage_; }
  void flush(std::size_t count, std::size_t channel) noexcept { take(stage_, count, channel); }
  void take(const float* from, std::size_t count, std::size_t) noexcept {
    convert<V>(from, to_, count);
    to_ += count;
  }
  void finish() noexcept {}

 private:
  f16* to_;
  float stage_[kBlock];
};

template <class V>
class PayloadSink<V, f32> {
 public:
  PayloadSink(f32* to, const TransferParams&) noexcept : to_(to) {}
  float* room() noexcept { return to_; }
  void flush(std::size_t count, std::size_t) noexcept { to_ += count; }
  void take(const float* from, std::size_t count, std::size_t) noexcept {
    copy(from, to_, count);
    to_ += count;
  }
  void finish() noexcept {}

 private:
  f32* to_;
};

// Finds the range of the values, and writes them if `to` is not null.
template <class V>
class RangeSink {
 public:
  RangeSink(float* to, const TransferParams& params) noexcept : to_(to), params_(params) {
    for (std::size_t group = 0; group < groups(); ++group) {
      params_.lows[group] = __builtin_inff();
      params_.highs[group] = -__builtin_inff();
    }
  }
  float* room() noexcept { return to_ == nullptr ? stage_ : to_; }
  void flush(std::size_t count, std::size_t channel) noexcept {
    widen(room(), count, channel);
    if (to_ != nullptr) to_ += count;
  }
  void take(const float* from, std::size_t count, std::size_t channel) noexcept {
    widen(from, count, channel);
    if (to_ == nullptr) return;
    copy(from, to_, count);
    to_ += count;
  }
  void finish() noexcept {
    for (std::size_t group = 0; group < groups(); ++group) {
      params_.lows[group] += 0.0F;  // -0.0 becomes 0.0
      params_.highs[group] += 0.0F;
    }
  }

 private:
  std::size_t groups() const noexcept { return params_.per_channel ? params_.channels : 1; }
  [[gnu::noinline]] void widen(const float* from, std::size_t count, std::size_t channel) noexcept {
    for_each_group(count, channel, params_,
                   [&](std::size_t at, std::size_t part, std::size_t first, bool interleaved) {
                     const auto run = interleaved ? widen_ranges<V> : widen_range<V>;
                     run(from + at, part, params_.lows + first, params_.highs + first);
                   });
  }

  float* to_;
  const TransferParams& params_;
  float stage_[kBlock];
};

// Without pooling the values are consumed in the order of the feature map.
template <class V, class Input, class Sink>
void encode_unpooled(const Input* input, const TransferParams& params, Sink& sink) noexcept {
  const std::size_t pixels = params.height * params.width;
  const bool planes = params.per_channel && params.layout == Layout::kNchw;
  // With ranges or scales per channel in NCHW a part is a plane, otherwise it is the whole map.
  const std::size_t parts = planes ? params.images * params.channels : 1;
  const std::size_t part = planes ? pixels : params.images * params.channels * pixels;
  for (std::size_t i = 0; i < parts; ++i) {
    for (std::size_t at = 0; at < part; at += kBlock) {
      const std::size_t count = part - at < kBlock ? part - at : kBlock;
      const std::size_t channel = (planes ? i : at) % params.channels;
      if constexpr (kSame<Input, f32>) {
        sink.take(input, count, channel);
      } else {
        convert<V>(input, sink.room(), count);
        sink.flush(count, channel);
      }
      input += count;
    }
  }
}

// An ISA's choice of the function that pools: pool_band_<input>__<isa> of kernels.h.
template <class Input>
using ChoosePoolBand = PoolBand<Input> (*)(const TransferParams&) noexcept;

template <class Input, class Sink>
void encode_nchw(const Input* input, TransferParams params, ChoosePoolBand<Input> choose_pool_band,
                 Sink& sink) noexcept {
  if (!params.per_channel && params.height % params.window == 0) {
    // No window ends at the border of a plane, so all planes can be one, with longer bands.
    params.height *= params.images * params.channels;
    params.images = params.channels = 1;
  }
  const PoolBand<Input> pool = choose_pool_band(params);
  const std::size_t height = pooled_size(params.height, params.window);
  const std::size_t width = pooled_size(params.width, params.window);
  const std::size_t planes = params.images * params.channels;
  std::size_t filled = 0;
  std::size_t channel = 0;
  for (std::size_t plane = 0; plane < planes; ++plane) {
    if (params.per_channel || filled == 0) channel = plane % params.channels;
    for (std::size_t row = 0; row < height;) {
      const std::size_t room = kBlock - filled;
      if (width <= room) {
        const std::size_t fit = room / width;
        const std::size_t rows = fit < height - row ? fit : height - row;
        pool(input, params, {row, rows, 0, width, 0, 1}, sink.room() + filled);
        filled += rows * width;
        row += rows;
      } else if (filled > 0) {
        sink.flush(filled, channel);
        filled = 0;
      } else {
        for (std::size_t x = 0; x < width; x += kBlock) {
          const std::size_t columns = width - x < kBlock ? width - x : kBlock;
          pool(input, params, {row, 1, x, columns, 0, 1}, sink.room());
          sink.flush(columns, channel);
        }
        ++row;
      }
    }
    // The next plane has its own scale.
    if (params.per_channel && filled > 0) {
      sink.flush(filled, channel);
      filled = 0;
    }
    input += params.height * params.width;
  }
  if (filled > 0) sink.flush(filled, channel);
}

template <class Input, class Sink>
void encode_nhwc(const Input* input, const TransferParams& params,
                 ChoosePoolBand<Input> choose_pool_band, Sink& sink) noexcept {
  const PoolBand<Input> pool = choose_pool_band(params);
  const std::size_t height = pooled_size(params.height, params.window);
  const std::size_t width = pooled_size(params.width, params.window);
  const std::size_t channels = params.channels;
  std::size_t filled = 0;  // whole pixels
  for (std::size_t image = 0; image < params.images; ++image) {
    for (std::size_t row = 0; row < height; ++row) {
      for (std::size_t x = 0; x < width;) {
        const std::size_t room = kBlock - filled;
        if (channels <= room) {
          const std::size_t fit = room / channels;
          const std::size_t columns = fit < width - x ? fit : width - x;
          pool(input, params, {row, 1, x, columns, 0, channels}, sink.room() + filled);
          filled += columns * channels;
          x += columns;
        } else if (filled > 0) {
          sink.flush(filled, 0);
          filled = 0;
        } else {
          for (std::size_t c = 0; c < channels; c += kBlock) {
            const std::size_t part = channels - c < kBlock ? channels - c : kBlock;
            pool(input, params, {row, 1, x, 1, c, part}, sink.room());
            sink.flush(part, c);
          }
          ++x;
        }
      }
    }
    input += params.height * params.width * channels;
  }
  if (filled > 0) sink.flush(filled, 0);
}

template <class V, class Sink, class Input, class Output>
void encode_into(const Input* input, Output* output, const TransferParams& params,
                 ChoosePoolBand<Input> choose_pool_band) noexcept {
  Sink sink(output, params);
  if (params.window == 1) {
    encode_unpooled<V>(input, params, sink);
  } else if (params.layout == Layout::kNchw) {
    encode_nchw(input, params, choose_pool_band, sink);
  } else {
    encode_nhwc(input, params, choose_pool_band, sink);
  }
  sink.finish();
}

template <class V, class Input, class Output>
void encode(const Input* input, Output* output, const TransferParams& params,
            ChoosePoolBand<Input> choose_pool_band) noexcept {
  if constexpr (kSame<Input, f16> && kSame<Output, f16>) {
    // Nothing to compute without pooling: converting there and back would quieten a signalling NaN.
    if (params.window == 1) {
      return copy(input, output, params.images * params.channels * params.height * params.width);
    }
  }
  encode_into<V, PayloadSink<V, Output>>(input, output, params, choose_pool_band);
}

template <class V, class Input>
void pool_range(const Input* input, f32* output, const TransferParams& params,
                ChoosePoolBand<Input> choose_pool_band) noexcept {
  encode_into<V, RangeSink<V>>(input, output, params, choose_pool_band);
}

}  // namespace
}  // namespace scissionlite

// Defines the encode kernels of an ISA, or its pool_range kernels, with its vector class V.
#define SCISSIONLITE_DEFINE_ENCODE(operation, input, output, isa, V)          \
  void SCISSIONLITE_KERNEL_NAME(operation, input, output, isa)(               \
      const input* from, output* to, const TransferParams& params) noexcept { \
    operation<V>(from, to, params, pool_band_##input##__##isa);               \
  }
#define SCISSIONLITE_ENCODE_KERNELS(isa, V)                    \
  namespace scissionlite {                                     \
  SCISSIONLITE_ENCODE_LIST(SCISSIONLITE_DEFINE_ENCODE, isa, V) \
  }
#define SCISSIONLITE_POOL_RANGE_KERNELS(isa, V)                    \
  namespace scissionlite {                                         \
  SCISSIONLITE_POOL_RANGE_LIST(SCISSIONLITE_DEFINE_ENCODE, isa, V) \
  }

#endif  // SCISSIONLITE_ENCODE_H_
