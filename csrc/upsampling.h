// Nearest-neighbour upsampling (the paper's EdgeTL, arXiv 2105.02019): elements are copied as bits,
// into `window` columns and as many rows, or fewer at the lower and right border.

#ifndef SCISSIONLITE_UPSAMPLING_H_
#define SCISSIONLITE_UPSAMPLING_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vectors/scalar.h"

namespace scissionlite {
namespace {

// Elements in the widest vector of a class that is copied as bits.
template <class V, class Element>
constexpr std::size_t kRawLanes = sizeof(typename V::template Raw<Element>) / sizeof(Element);

// Writes one vector to `rows` rows, `stride` apart. `rows` is a constant except at the lower
// border.
template <class V, class Element>
inline void store_rows(Element* to, std::size_t stride, std::size_t rows,
                       typename V::template Raw<Element> value) noexcept {
  for (std::size_t row = 0; row < rows; ++row) V::store_raw(to + row * stride, value);
}

// How many elements after `to` the next aligned vector starts. A store across two cache lines costs
// as much as two stores. If all rows have the same alignment, a first vector that overlaps the
// second makes all others aligned.
template <class V, class Element>
inline std::size_t elements_to_alignment(const Element* to) noexcept {
  return -(reinterpret_cast<std::uintptr_t>(to) / sizeof(Element)) % kRawLanes<V, Element>;
}

// One vector of outputs: each element of `from` is in it `window` times.
template <class V, std::size_t window, class Element>
inline typename V::template Raw<Element> spread(const Element* from) noexcept {
  typename V::template Raw<Element> first;
  typename V::template Raw<Element> second;
  V::template twice<Element>(V::load_raw(from), first, second);
  if constexpr (window == 4) V::template twice<Element>(first, first, second);
  return first;
}

// Writes each element of `from` `window` times: `whole` outputs, at least a vector, in each of
// `rows` rows. The first `aligned` outputs, if any, are written apart. Up to kPadding elements more
// may be read at `from`.
template <class V, std::size_t window, class Element>
inline void spread_row(const Element* from, std::size_t whole, std::size_t aligned, Element* to,
                       std::size_t stride, std::size_t rows) noexcept {
  using Raw = typename V::template Raw<Element>;
  constexpr std::size_t kLanes = kRawLanes<V, Element>;
  if constexpr (kLanes == 1) {
    for (std::size_t x = 0; x < whole; ++x) store_rows<V>(to + x, stride, rows, from[x / window]);
  } else {
    std::size_t x = 0;
    if (aligned > 0) {
      store_rows<V>(to, stride, rows, spread<V, window>(from));
      x = aligned;
    }
    for (; x + window * kLanes <= whole; x += window * kLanes) {
      Raw half[2];
      V::template twice<Element>(V::load_raw(from + x / window), half[0], half[1]);
      for (std::size_t i = 0; i < 2; ++i) {
        Element* at = to + x + i * (window / 2) * kLanes;
        if constexpr (window == 2) {
          store_rows<V>(at, stride, rows, half[i]);
        } else {
          Raw quarter[2];
          V::template twice<Element>(half[i], quarter[0], quarter[1]);
          store_rows<V>(at, stride, rows, quarter[0]);
          store_rows<V>(at + kLanes, stride, rows, quarter[1]);
        }
      }
    }
    for (; x + kLanes <= whole; x += kLanes) {
      store_rows<V>(to + x, stride, rows, spread<V, window>(from + x / window));
    }
    if (x < whole) {
      // The last vector ends with the last whole window and repeats some outputs.
      x = whole - kLanes;
      store_rows<V>(to + x, stride, rows, spread<V, window>(from + x / window));
    }
  }
}

// Copies the channels of one pixel to `columns` pixels in each of `rows` lines.
template <class V, class Element>
inline void spread_pixel(const Element* from, std::size_t channels, Element* to, std::size_t pixel,
                         std::size_t columns, std::size_t line, std::size_t rows) noexcept {
  using Raw = typename V::template Raw<Element>;
  constexpr std::size_t kLanes = kRawLanes<V, Element>;
  if (channels >= kLanes) {
    const std::size_t aligned = elements_to_alignment<V>(to);
    std::size_t next = pixel % kLanes == 0 && aligned > 0 ? aligned : kLanes;
    for (std::size_t c = 0;;) {
      const Raw value = V::load_raw(from + c);
      for (std::size_t column = 0; column < columns; ++column) {
        store_rows<V>(to + column * pixel + c, line, rows, value);
      }
      if (next >= channels) break;
      // The last vector ends with the last channel and may repeat some channels.
      c = next + kLanes <= channels ? next : channels - kLanes;
      next = c + kLanes;
    }
  } else if constexpr (kLanes > 1) {
    spread_pixel<typename V::Narrower>(from, channels, to, pixel, columns, line, rows);
  }
}

// Pooled rows or pixels, one after the other. In the functions below `from` holds them, and `to` is
// the feature map.
struct Patch {
  std::size_t row, rows;        // counted through all planes (NCHW) or images (NHWC)
  std::size_t column, columns;  // of the pooled map
  std::size_t channel, channels;
};

template <class V, std::size_t window, class Element>
void spread_nchw(const Element* from, const TransferParams& params, const Patch& patch,
                 Element* to) noexcept {
  const std::size_t height = pooled_size(params.height, window);
  const std::size_t x = patch.column * window;
  const std::size_t end = x + patch.columns * window;
  const std::size_t width = (end < params.width ? end : params.width) - x;
  const std::size_t whole = width / window * window;
  constexpr std::size_t kLanes = kRawLanes<V, Element>;
  if constexpr (kLanes > 1) {
    if (whole < kLanes) {
      return spread_nchw<typename V::Narrower, window>(from, params, patch, to);
    }
  }
  // If all rows have the same alignment; it is also that of the first row of the map.
  std::size_t aligned = params.width % kLanes == 0 ? elements_to_alignment<V>(to + x) : 0;
  if (aligned % window != 0) aligned = 0;
  Element* line = to;
  const auto end_rows = [&](std::size_t rows) {
    // The columns of the partial window.
    for (std::size_t at = whole; at < width; ++at) {
      for (std::size_t row = 0; row < rows; ++row)
        line[row * params.width + at] = from[at / window];
    }
    from += patch.columns;
    line += rows * params.width;
  };
  const auto spread_wide = [&](std::size_t rows) {
    spread_row<V, window>(from, whole, aligned, line, params.width, rows);
    end_rows(rows);
  };
  const auto spread_narrow = [&](std::size_t rows) {
    // One to two vectors wide, as maps of 14 x 14 are: no loop, and each vector is made once.
    const auto first = spread<V, window>(from);
    const auto last = spread<V, window>(from + (whole - kLanes) / window);
    for (std::size_t row = 0; row < rows; ++row) {
      V::store_raw(line + row * params.width, first);
      V::store_raw(line + row * params.width + whole - kLanes, last);
    }
    end_rows(rows);
  };
  const auto spread_all = [&](auto spread_rows) {
    std::size_t row = patch.row % height;
    line += (patch.row / height * params.height + row * window) * params.width + x;
    for (std::size_t rest = patch.rows; rest > 0;) {
      // The rows of whole windows of a plane, then perhaps one of partial windows.
      for (; rest > 0 && row < params.height / window; --rest, ++row) spread_rows(window);
      if (rest > 0 && row < height) {
        spread_rows(params.height % window);
        --rest;
      }
      row = 0;
    }
  };
  if (kLanes > 1 && whole <= 2 * kLanes) {
    spread_all(spread_narrow);
  } else {
    spread_all(spread_wide);
  }
}

template <class V, std::size_t window, class Element>
void spread_nhwc(const Element* from, const TransferParams& params, const Patch& patch,
                 Element* to) noexcept {
  const std::size_t height = pooled_size(params.height, window);
  const std::size_t pixel = params.channels;
  const std::size_t line = params.width * pixel;
  const std::size_t y = patch.row % height * window;
  const std::size_t rows = params.height - y < window ? params.height - y : window;
  Element* first = to + (patch.row / height * params.height + y) * line + patch.channel;
  for (std::size_t column = patch.column; column < patch.column + patch.columns; ++column) {
    const std::size_t x = column * window;
    const std::size_t columns = params.width - x < window ? params.width - x : window;
    if (rows == window && columns == window) {
      spread_pixel<V>(from, patch.channels, first + x * pixel, pixel, window, line, window);
    } else {
      spread_pixel<V>(from, patch.channels, first + x * pixel, pixel, columns, line, rows);
    }
    from += patch.channels;
  }
}

template <class Element>
using SpreadPatch = void (*)(const Element*, const TransferParams&, const Patch&,
                             Element*) noexcept;

// Returns the function for these parameters; the window is 2 or 4.
template <class V, class Element>
SpreadPatch<Element> choose_spread(const TransferParams& params) noexcept {
  if (params.layout == Layout::kNchw) {
    return params.window == 2 ? spread_nchw<V, 2, Element> : spread_nchw<V, 4, Element>;
  }
  return params.window == 2 ? spread_nhwc<V, 2, Element> : spread_nhwc<V, 4, Element>;
}

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_UPSAMPLING_H_
