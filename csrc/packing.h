// Quantization and packing, and their inverses: runs of values in the order of the payload.
// Numerics: docs/numerics.md. The int8 and int4 packing is ours, the paper's TL sends float32.

#ifndef SCISSIONLITE_PACKING_H_
#define SCISSIONLITE_PACKING_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vectors/scalar.h"

namespace scissionlite {
namespace {

// Elements of a block, which pass through each step together: 4 KiB of float32, so that a block,
// its codes and the rows that it is made from stay in the smallest first-level cache.
constexpr std::size_t kBlock = 1024;
// Elements that may be read after the last one of a block: the widest vector.
constexpr std::size_t kPadding = 64;

// The factor and zero point of each element of a run: the same for all, or those of its channel.
template <class V>
struct OneGroup {
  typename V::F factor_;
  typename V::I zero_point_;
  OneGroup(const float* factor, const std::int32_t* zero_point) noexcept
      : factor_(V::set1(*factor)), zero_point_(V::set1(*zero_point)) {}
  typename V::F factor(std::size_t) const noexcept { return factor_; }
  typename V::I zero_point(std::size_t) const noexcept { return zero_point_; }
};

template <class V>
struct EachChannel {
  const float* factors_;
  const std::int32_t* zero_points_;
  EachChannel(const float* factors, const std::int32_t* zero_points) noexcept
      : factors_(factors), zero_points_(zero_points) {}
  typename V::F factor(std::size_t i) const noexcept { return V::load(factors_ + i); }
  typename V::I zero_point(std::size_t i) const noexcept { return V::load(zero_points_ + i); }
};

// Calls body(i) for every kLanes elements of a run, which has at least kLanes. The last call ends
// at the end of the run, so it may repeat some elements.
template <std::size_t lanes, class Body>
inline void for_each_vector(std::size_t count, Body body) noexcept {
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i);
  if (i < count) body(count - lanes);
}

template <class V, template <class> class Groups>
void quantize(const float* from, std::int8_t* to, std::size_t count, const float* factors,
              const std::int32_t* zero_points, CodeRange codes) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  const Groups<V> groups(factors, zero_points);
  const auto steps = [&](std::size_t i) { return V::steps(V::load(from + i), groups.factor(i)); };
  const auto store_one = [&](std::size_t i) {
    V::store_codes(to + i, steps(i), groups.zero_point(i), codes.low, codes.high);
  };
  std::size_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    const typename V::I all[4] = {steps(i), steps(i + kLanes), steps(i + 2 * kLanes),
                                  steps(i + 3 * kLanes)};
    const typename V::I zeros[4] = {groups.zero_point(i), groups.zero_point(i + kLanes),
                                    groups.zero_point(i + 2 * kLanes),
                                    groups.zero_point(i + 3 * kLanes)};
    V::store_codes(to + i, all, zeros, codes.low, codes.high);
  }
  for (; i + kLanes <= count; i += kLanes) store_one(i);
  if constexpr (kLanes > 1) {
    if (i == count) return;
    if (count >= kLanes) {
      // This vector ends at the end of the run and repeats some elements.
      store_one(count - kLanes);
    } else {
      quantize<typename V::Narrower, Groups>(from, to, count, factors, zero_points, codes);
    }
  }
}

template <class V, template <class> class Groups>
void dequantize(const std::int8_t* from, float* to, std::size_t count, const float* factors,
                const std::int32_t* zero_points) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  const Groups<V> groups(factors, zero_points);
  std::size_t done = 0;
  if constexpr (V::kWidensFour) {
    if constexpr (kSame<Groups<V>, OneGroup<V>>) {
      for (; count - done >= 8 * kLanes; done += 8 * kLanes) {
        V::dequantize_eight(from + done, to + done, groups.factor(0), groups.zero_point(0));
      }
    }
    for (; count - done >= 4 * kLanes; done += 4 * kLanes) {
      typename V::I codes[4];
      V::widen(from + done, codes);
      for (std::size_t j = 0; j < 4; ++j) {
        const std::size_t i = done + j * kLanes;
        V::store(to + i, V::dequantize(codes[j], groups.factor(i), groups.zero_point(i)));
      }
    }
  }
  if (count - done >= kLanes) {
    for_each_vector<kLanes>(count - done, [&](std::size_t rest) {
      const std::size_t i = done + rest;
      V::store(to + i, V::dequantize(from + i, groups.factor(i), groups.zero_point(i)));
    });
  } else if constexpr (kLanes > 1) {
    if (done > 0 && done < count) {  // the last vector again, as far as it is not done
      const std::size_t i = count - kLanes;
      V::store(to + i, V::dequantize(from + i, groups.factor(i), groups.zero_point(i)));
    } else if (done < count) {
      dequantize<typename V::Narrower, Groups>(from, to, count, factors, zero_points);
    }
  }
}

// Converts between float32 and float16; with equal types the bits are copied.
template <class V, class From, class To>
[[gnu::noinline]] void convert(const From* from, To* to, std::size_t count) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  if (count >= kLanes) {
    for_each_vector<kLanes>(count, [&](std::size_t i) { V::store(to + i, V::load(from + i)); });
  } else if constexpr (kLanes > 1) {
    convert<typename V::Narrower>(from, to, count);
  }
}

template <class Element>
void copy(const Element* from, Element* to, std::size_t count) noexcept {
  __builtin_memcpy(to, from, count * sizeof(Element));
}

// 2 * pairs codes into half as many bytes, and back. Plain loops, which compilers vectorise. A
// call is for a block: not inlined, since many callers would have a copy each.
[[gnu::noinline]] inline void pack_int4(const std::int8_t* from, Int4Pair* to,
                                        std::size_t pairs) noexcept {
  for (std::size_t i = 0; i < pairs; ++i) {
    const unsigned low = static_cast<unsigned>(from[2 * i]) & 15U;
    const unsigned high = static_cast<unsigned>(from[2 * i + 1]) & 15U;
    to[i].codes = static_cast<std::uint8_t>(low | high << 4);
  }
}

[[gnu::noinline]] inline void unpack_int4(const Int4Pair* from, std::int8_t* to,
                                          std::size_t pairs) noexcept {
  for (std::size_t i = 0; i < pairs; ++i) {
    // Extends the sign: it is flipped, and its weight is subtracted.
    to[2 * i] = static_cast<std::int8_t>(((from[i].codes & 15) ^ 8) - 8);
    to[2 * i + 1] = static_cast<std::int8_t>(((from[i].codes >> 4) ^ 8) - 8);
  }
}

// Calls body(offset, count, channel, interleaved) for the parts of a run. A part belongs to one
// group (a channel, or the tensor), or, interleaved, goes through the channels up to the last one.
template <class Body>
inline void for_each_group(std::size_t count, std::size_t channel, const TransferParams& params,
                           Body body) noexcept {
  if (!params.per_channel) {
    body(std::size_t{0}, count, std::size_t{0}, false);
  } else if (params.layout == Layout::kNchw) {
    body(std::size_t{0}, count, channel, false);
  } else {
    for (std::size_t i = 0; i < count;) {
      const std::size_t rest = params.channels - channel;
      const std::size_t part = count - i < rest ? count - i : rest;
      body(i, part, channel, true);
      i += part;
      channel = 0;
    }
  }
}

template <class V>
void quantize_run(const float* from, std::int8_t* to, std::size_t count, std::size_t channel,
                  const TransferParams& params, CodeRange codes) noexcept {
  for_each_group(count, channel, params,
                 [&](std::size_t at, std::size_t part, std::size_t first, bool interleaved) {
                   const auto run = interleaved ? quantize<V, EachChannel> : quantize<V, OneGroup>;
                   run(from + at, to + at, part, params.factors + first, params.zero_points + first,
                       codes);
                 });
}

template <class V>
void dequantize_run(const std::int8_t* from, float* to, std::size_t count, std::size_t channel,
                    const TransferParams& params) noexcept {
  for_each_group(
      count, channel, params,
      [&](std::size_t at, std::size_t part, std::size_t first, bool interleaved) {
        const auto run = interleaved ? dequantize<V, EachChannel> : dequantize<V, OneGroup>;
        run(from + at, to + at, part, params.factors + first, params.zero_points + first);
      });
}

// Widens the range in *low and *high by the values of a run of at least kLanes. `Bounds` says what
// a value counts as for the lower bound and for the upper one.
template <class V, class Bounds>
inline void widen_range_by(const float* from, std::size_t count, Bounds bounds, float* low,
                           float* high) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  // Four of each: with fewer, a comparison would wait for the result of the one before.
  typename V::F lows[4] = {V::set1(*low), V::set1(*low), V::set1(*low), V::set1(*low)};
  typename V::F highs[4] = {V::set1(*high), V::set1(*high), V::set1(*high), V::set1(*high)};
  const auto widen_at = [&](std::size_t i, std::size_t which) {
    const typename V::F x = V::load(from + i);
    lows[which] = V::smaller(bounds.low(x), lows[which]);
    highs[which] = V::larger(bounds.high(x), highs[which]);
  };
  std::size_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (std::size_t which = 0; which < 4; ++which) widen_at(i + which * kLanes, which);
  }
  for (; i + kLanes <= count; i += kLanes) widen_at(i, 0);
  // This vector ends at the end of the run and may repeat some values.
  widen_at(count - kLanes, 1);
  for (std::size_t which = 1; which < 4; ++which) {
    lows[0] = V::smaller(lows[which], lows[0]);
    highs[0] = V::larger(highs[which], highs[0]);
  }
  float each_low[kLanes];
  float each_high[kLanes];
  V::store(each_low, lows[0]);
  V::store(each_high, highs[0]);
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    *low = Scalar::smaller(each_low[lane], *low);
    *high = Scalar::larger(each_high[lane], *high);
  }
}

template <class V>
struct AnyValue {
  typename V::F low(typename V::F x) const noexcept { return x; }
  typename V::F high(typename V::F x) const noexcept { return x; }
};

template <class V>
struct FiniteValue {
  typename V::F low(typename V::F x) const noexcept {
    return V::finite_or(x, V::set1(__builtin_inff()));
  }
  typename V::F high(typename V::F x) const noexcept {
    return V::finite_or(x, V::set1(-__builtin_inff()));
  }
};

// Widens the range in *low and *high by the finite values of a run.
template <class V>
void widen_range(const float* from, std::size_t count, float* low, float* high) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  if (count >= kLanes) {
    // The comparisons ignore NaN. Infinities are rare: only if there is one, a second pass over the
    // run leaves them out.
    float any_low = *low;
    float any_high = *high;
    widen_range_by<V>(from, count, AnyValue<V>(), &any_low, &any_high);
    if (any_low > -__builtin_inff() && any_high < __builtin_inff()) {
      *low = any_low;
      *high = any_high;
    } else {
      widen_range_by<V>(from, count, FiniteValue<V>(), low, high);
    }
  } else if constexpr (kLanes > 1) {
    widen_range<typename V::Narrower>(from, count, low, high);
  }
}

// The same for a run of channels; each has its own range.
template <class V>
void widen_ranges(const float* from, std::size_t count, float* lows, float* highs) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  if (count >= kLanes) {
    for_each_vector<kLanes>(count, [&](std::size_t i) {
      const typename V::F x = V::load(from + i);
      const typename V::F low = V::finite_or(x, V::set1(__builtin_inff()));
      const typename V::F high = V::finite_or(x, V::set1(-__builtin_inff()));
      V::store(lows + i, V::smaller(low, V::load(lows + i)));
      V::store(highs + i, V::larger(high, V::load(highs + i)));
    });
  } else if constexpr (kLanes > 1) {
    widen_ranges<typename V::Narrower>(from, count, lows, highs);
  }
}

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_PACKING_H_
