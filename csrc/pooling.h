// Pooling into float32, one band of the pooled map at a time. Numerics: docs/numerics.md.
//
// The paper's DeviceTL (arXiv 2105.02019) is the 2x2 maximum; average and 4x4 are ours. A band has
// as many pooled values as fit into the caller's block. So the next step (quantization, the range)
// finds them in the first-level cache, and in long runs even if the map is narrow.

#ifndef SCISSIONLITE_POOLING_H_
#define SCISSIONLITE_POOLING_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vectors/scalar.h"

namespace scissionlite {
namespace {

// The maximum starts from its identity, -inf, because comparing with it ignores a NaN.
struct Maximum {
  static constexpr bool kAverage = false;
  template <class V>
  static typename V::F start(typename V::F x) noexcept {
    return V::larger(x, V::set1(-__builtin_inff()));
  }
  template <class V>
  static typename V::F combine(typename V::F acc, typename V::F x) noexcept {
    return V::larger(x, acc);
  }
  template <class V>
  static typename V::F finish(typename V::F acc, std::size_t) noexcept {
    return acc;
  }
};

struct Average {
  static constexpr bool kAverage = true;
  template <class V>
  static typename V::F start(typename V::F x) noexcept {
    return x;
  }
  template <class V>
  static typename V::F combine(typename V::F acc, typename V::F x) noexcept {
    return V::add(acc, x);
  }
  template <class V>
  static typename V::F finish(typename V::F sum, std::size_t count) noexcept {
    const float divisor = static_cast<float>(count);
    // A power of two has an exact reciprocal, and a product is many times cheaper than a division.
    const bool exact = (count & (count - 1)) == 0;
    return V::one_nan(exact ? V::mul(sum, V::set1(1.0F / divisor)) : V::div(sum, V::set1(divisor)));
  }
};

// Pools one vector of columns over `rows` rows, `stride` apart. `rows` is a constant except at the
// lower border.
template <class V, class Kind, class Input>
inline typename V::F pool_column(const Input* from, std::size_t stride, std::size_t rows) noexcept {
  typename V::F acc = Kind::template start<V>(V::load(from));
  for (std::size_t row = 1; row < rows; ++row) {
    acc = Kind::template combine<V>(acc, V::load(from + row * stride));
  }
  return acc;
}

// Combines neighbouring columns of two vectors.
template <class V, class Kind>
inline typename V::F pool_pairs(typename V::F a, typename V::F b) noexcept {
  return V::in_order(Kind::template combine<V>(V::evens(a, b), V::odds(a, b)));
}

// Pools kLanes whole windows of one row of windows: half of them at `first`, half at `second`.
template <class V, class Kind, std::size_t window, class Input>
inline typename V::F pool_windows(const Input* first, const Input* second, std::size_t stride,
                                  std::size_t rows) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  static_assert(window == 2 || window == 4, "the tree below is for these");
  typename V::F acc;
  if constexpr (kLanes == 1) {
    typename V::F column[window];
    for (std::size_t x = 0; x < window; ++x) {
      column[x] = pool_column<V, Kind>(first + x, stride, rows);
    }
    acc = Kind::template combine<V>(column[0], column[1]);
    if constexpr (window == 4) {
      acc = Kind::template combine<V>(acc, Kind::template combine<V>(column[2], column[3]));
    }
  } else if constexpr (window == 2) {
    acc = pool_pairs<V, Kind>(pool_column<V, Kind>(first, stride, rows),
                              pool_column<V, Kind>(second, stride, rows));
  } else {
    acc = pool_pairs<V, Kind>(
        pool_pairs<V, Kind>(pool_column<V, Kind>(first, stride, rows),
                            pool_column<V, Kind>(first + kLanes, stride, rows)),
        pool_pairs<V, Kind>(pool_column<V, Kind>(second, stride, rows),
                            pool_column<V, Kind>(second + kLanes, stride, rows)));
  }
  return Kind::template finish<V>(acc, window * rows);
}

// Pools kLanes whole windows from window x on.
template <class V, class Kind, std::size_t window, class Input>
inline void pool_vector(const Input* from, std::size_t x, std::size_t stride, std::size_t rows,
                        float* to) noexcept {
  const Input* first = from + x * window;
  const Input* second = first + V::kLanes / 2 * window;
  V::store(to + x, pool_windows<V, Kind, window>(first, second, stride, rows));
}

// Whether kLanes windows are loaded with their columns apart, so that one start from -inf is enough
// for a window. Sums have another order: column by column, then the columns as a tree.
template <class V, class Kind, class Input>
constexpr bool kPoolsApart = V::kLoadsApart && !Kind::kAverage && kSame<Input, f32>;

// The maximum of kLanes whole windows: of equal zeros it keeps the first one in column-major order.
template <class V, class Kind, std::size_t window>
[[gnu::always_inline]] inline typename V::F pool_apart(const float* from,
                                                       std::size_t stride) noexcept {
  const auto first = V::template load_apart<window>(from);
  const auto second = V::template load_apart<window>(from + stride);
  typename V::F acc = Kind::template start<V>(first.val[0]);
  acc = Kind::template combine<V>(acc, second.val[0]);
  if constexpr (window == 2) {
    acc = Kind::template combine<V>(acc, first.val[1]);
    acc = Kind::template combine<V>(acc, second.val[1]);
  } else {
    const auto third = V::template load_apart<window>(from + 2 * stride);
    const auto fourth = V::template load_apart<window>(from + 3 * stride);
    acc = Kind::template combine<V>(acc, third.val[0]);
    acc = Kind::template combine<V>(acc, fourth.val[0]);
    for (std::size_t x = 1; x < window; ++x) {
      acc = Kind::template combine<V>(acc, first.val[x]);
      acc = Kind::template combine<V>(acc, second.val[x]);
      acc = Kind::template combine<V>(acc, third.val[x]);
      acc = Kind::template combine<V>(acc, fourth.val[x]);
    }
  }
  return acc;
}

// Pools kLanes whole windows from each of two windows on. Those of 2 x 2 are stored when both are
// pooled, so that their steps can take turns; for those of 4 x 4 there are not enough registers.
template <class V, class Kind, std::size_t window, class Input>
[[gnu::always_inline]] inline void pool_two(const Input* from, std::size_t first,
                                            std::size_t second, std::size_t stride,
                                            float* to) noexcept {
  if constexpr (kPoolsApart<V, Kind, Input>) {
    const typename V::F a = pool_apart<V, Kind, window>(from + first * window, stride);
    if constexpr (window == 4) V::store(to + first, a);
    const typename V::F b = pool_apart<V, Kind, window>(from + second * window, stride);
    if constexpr (window == 2) V::store(to + first, a);
    V::store(to + second, b);
  } else {
    pool_vector<V, Kind, window>(from, first, stride, window, to);
    pool_vector<V, Kind, window>(from, second, stride, window, to);
  }
}

// Pools `count` whole windows of one row of windows, at least a vector of them.
template <class V, class Kind, std::size_t window, class Input>
inline void pool_row(const Input* from, std::size_t stride, std::size_t rows, float* to,
                     std::size_t count) noexcept {
  std::size_t x = 0;
  for (; x + V::kLanes <= count; x += V::kLanes) {
    pool_vector<V, Kind, window>(from, x, stride, rows, to);
  }
  // The last vector ends at the end of the row and repeats some windows.
  if (x < count) pool_vector<V, Kind, window>(from, count - V::kLanes, stride, rows, to);
}

// The same for whole windows, more than two vectors of them.
template <class V, class Kind, std::size_t window, class Input>
inline void pool_wide_row(const Input* from, std::size_t stride, std::size_t, float* to,
                          std::size_t count) noexcept {
  if constexpr (kPoolsApart<V, Kind, Input>) {
    constexpr std::size_t kLanes = V::kLanes;
    std::size_t x = 0;
    for (; x + 2 * kLanes <= count; x += 2 * kLanes) {
      pool_two<V, Kind, window>(from, x, x + kLanes, stride, to);
    }
    if (x < count) {
      pool_two<V, Kind, window>(from, count - 2 * kLanes, count - kLanes, stride, to);
    }
  } else {
    pool_row<V, Kind, window>(from, stride, window, to, count);
  }
}

// The same for one to two vectors, as maps of 28 x 28 have: no loop.
template <class V, class Kind, std::size_t window, class Input>
inline void pool_medium_row(const Input* from, std::size_t stride, std::size_t, float* to,
                            std::size_t count) noexcept {
  pool_two<V, Kind, window>(from, 0, count - V::kLanes, stride, to);
}

// The same for half a vector to one, as maps of 14 x 14 have: two overlapping halves.
template <class V, class Kind, std::size_t window, class Input>
inline void pool_narrow_row(const Input* from, std::size_t stride, std::size_t rows, float* to,
                            std::size_t count) noexcept {
  const std::size_t second = count - V::kLanes / 2;
  V::store_halves(to, to + second,
                  pool_windows<V, Kind, window>(from, from + second * window, stride, rows));
}

// The same for a row of windows at the lower border, of less than `window` rows. It is not inlined,
// so that its loops over `rows` are there once.
template <class V, class Kind, std::size_t window, class Input>
[[gnu::noinline]] void pool_border_row(const Input* from, std::size_t stride, std::size_t rows,
                                       float* to, std::size_t count) noexcept {
  if (V::kLanes == 1 || count >= V::kLanes) {
    pool_row<V, Kind, window>(from, stride, rows, to, count);
  } else {
    pool_narrow_row<V, Kind, window>(from, stride, rows, to, count);
  }
}

// Pools one partial window at the right border, of at most 4 columns.
template <class Kind, class Input>
inline float pool_partial(const Input* from, std::size_t stride, std::size_t rows,
                          std::size_t columns) noexcept {
  float column[4] = {};
  for (std::size_t x = 0; x < columns; ++x) {
    column[x] = pool_column<Scalar, Kind>(from + x, stride, rows);
  }
  float acc = column[0];
  for (std::size_t x = 1; x < columns; ++x) acc = Kind::template combine<Scalar>(acc, column[x]);
  return Kind::template finish<Scalar>(acc, columns * rows);
}

// `from` is the start of the plane.
template <class V, class Kind, std::size_t window, class Input>
void pool_nchw(const Input* from, const TransferParams& params, const Band& band,
               float* to) noexcept {
  const std::size_t width = params.width;
  const std::size_t whole_end = width / window;
  const std::size_t end = band.column + band.columns;
  const std::size_t whole = (end < whole_end ? end : whole_end) - band.column;
  if constexpr (V::kLanes > 1) {
    if (whole < V::kLanes / 2) {
      return pool_nchw<typename V::Narrower, Kind, window>(from, params, band, to);
    }
  }
  const Input* line = from + band.row * window * width + band.column * window;
  const auto pool_rows = [&line, &to, width, whole, columns = band.columns](
                             std::size_t count, std::size_t rows, auto pool_row) {
    // In registers: through the references, each row would load them again.
    const Input* at = line;
    float* pooled = to;
    const std::size_t stride = width;
    const std::size_t inner = whole;
    const std::size_t outer = columns;
    for (; count > 0; --count) {
      pool_row(at, stride, rows, pooled, inner);
      if (inner < outer) {
        pooled[inner] = pool_partial<Kind>(at + inner * window, stride, rows, stride % window);
      }
      at += rows * stride;
      pooled += outer;
    }
    line = at;
    to = pooled;
  };
  const auto pool_all = [&](auto pool_row) {
    const std::size_t whole_rows = params.height / window;
    const std::size_t row_end = band.row + band.rows;
    if (row_end <= whole_rows) {
      pool_rows(band.rows, window, pool_row);
    } else {
      pool_rows(band.rows - 1, window, pool_row);
      pool_rows(1, params.height % window,
                [](auto... arguments) { pool_border_row<V, Kind, window>(arguments...); });
    }
  };
  if (V::kLanes == 1 || whole > 2 * V::kLanes) {
    pool_all([](auto... arguments) { pool_wide_row<V, Kind, window>(arguments...); });
  } else if (whole >= V::kLanes) {
    pool_all([](auto... arguments) { pool_medium_row<V, Kind, window>(arguments...); });
  } else {
    pool_all([](auto... arguments) { pool_narrow_row<V, Kind, window>(arguments...); });
  }
}

// Pools the channels of one pixel: the pixels of its window are `pixel` apart, its rows `line`.
template <class V, class Kind, class Input>
inline void pool_pixel(const Input* from, std::size_t pixel, std::size_t line, std::size_t columns,
                       std::size_t rows, float* to, std::size_t channels) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  if (channels >= kLanes) {
    for (std::size_t c = 0; c < channels; c += kLanes) {
      const std::size_t at = c + kLanes <= channels ? c : channels - kLanes;
      const Input* first = from + at;
      typename V::F acc = pool_column<V, Kind>(first, line, rows);
      if (columns > 1) {
        acc = Kind::template combine<V>(acc, pool_column<V, Kind>(first + pixel, line, rows));
      }
      if (columns > 2) {
        typename V::F right = pool_column<V, Kind>(first + 2 * pixel, line, rows);
        if (columns > 3) {
          right =
              Kind::template combine<V>(right, pool_column<V, Kind>(first + 3 * pixel, line, rows));
        }
        acc = Kind::template combine<V>(acc, right);
      }
      V::store(to + at, Kind::template finish<V>(acc, columns * rows));
    }
  } else if constexpr (kLanes > 1) {
    pool_pixel<typename V::Narrower, Kind>(from, pixel, line, columns, rows, to, channels);
  }
}

// `from` is the start of the image.
template <class V, class Kind, std::size_t window, class Input>
void pool_nhwc(const Input* from, const TransferParams& params, const Band& band,
               float* to) noexcept {
  const std::size_t pixel = params.channels;
  const std::size_t line = params.width * pixel;
  const std::size_t y = band.row * window;
  const std::size_t rows = params.height - y < window ? params.height - y : window;
  for (std::size_t column = band.column; column < band.column + band.columns; ++column) {
    const std::size_t x = column * window;
    const std::size_t columns = params.width - x < window ? params.width - x : window;
    const Input* first = from + y * line + x * pixel + band.channel;
    if (rows == window && columns == window) {
      pool_pixel<V, Kind>(first, pixel, line, window, window, to, band.channels);
    } else {
      pool_pixel<V, Kind>(first, pixel, line, columns, rows, to, band.channels);
    }
    to += band.channels;
  }
}

template <class V, class Kind, std::size_t window, class Input>
PoolBand<Input> pool_band_of(Layout layout) noexcept {
  using Pooler = typename V::template Pooler<Input, Kind::kAverage>;
  return layout == Layout::kNchw ? pool_nchw<Pooler, Kind, window, Input>
                                 : pool_nhwc<Pooler, Kind, window, Input>;
}

// Returns the function for these parameters; the window is 2 or 4.
template <class V, class Input>
PoolBand<Input> choose_pool_band(const TransferParams& params) noexcept {
  if (params.pooling == Pooling::kMax) {
    return params.window == 2 ? pool_band_of<V, Maximum, 2, Input>(params.layout)
                              : pool_band_of<V, Maximum, 4, Input>(params.layout);
  }
  return params.window == 2 ? pool_band_of<V, Average, 2, Input>(params.layout)
                            : pool_band_of<V, Average, 4, Input>(params.layout);
}

}  // namespace
}  // namespace scissionlite

// Defines an ISA's choice of the function that pools, with its vector class V. The files of
// pool_range do it, and those of encode use it too: the functions are a fifth of the module.
#define SCISSIONLITE_POOLING(isa, V)                                          \
  namespace scissionlite {                                                    \
  PoolBand<f32> pool_band_f32__##isa(const TransferParams& params) noexcept { \
    return choose_pool_band<V, f32>(params);                                  \
  }                                                                           \
  PoolBand<f16> pool_band_f16__##isa(const TransferParams& params) noexcept { \
    return choose_pool_band<V, f16>(params);                                  \
  }                                                                           \
  }

#endif  // SCISSIONLITE_POOLING_H_
