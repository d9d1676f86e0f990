// Bilinear upsampling (ours; the paper has nearest-neighbour only). Numerics: docs/numerics.md.
// In NCHW they are plain loops without dependence from one pass to the next; the compiler
// vectorises them for each ISA.
//
// A cell lies between four neighbouring pooled values. At the border, where some of them do not
// exist, the border's values are repeated. Cell i lies between the values i - 1 and i. Its `window`
// output columns start at i * window - window / 2; those outside the feature map are left out.

#ifndef SCISSIONLITE_BILINEAR_H_
#define SCISSIONLITE_BILINEAR_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "packing.h"
#include "unpacking.h"

namespace scissionlite {
namespace {

constexpr std::size_t kMaxWindow = 4;

// Unpacks `count` values from the value `at` on. The type of the payload is behind this pointer, so
// that the interpolation is there once and not for each type: it was a third of the module's code.
using Unpack = void (*)(const void* input, const TransferParams& params, std::size_t at,
                        std::size_t count, std::size_t channel, float* to) noexcept;

template <class V, class Input>
void unpack_floats(const void* input, const TransferParams& params, std::size_t at,
                   std::size_t count, std::size_t channel, float* to) noexcept {
  Unpacker<V, Input, float>(static_cast<const Input*>(input), params)(at, count, channel, to);
}

// The weight of the second value in column or row i of a cell.
inline float bilinear_weight(std::size_t i, std::size_t window) noexcept {
  return static_cast<float>(2 * i + 1) / static_cast<float>(2 * window);
}

inline void interpolate(const float* a, const float* b, float weight, float* to,
                        std::size_t count) noexcept {
  const float rest = 1.0F - weight;
  for (std::size_t i = 0; i < count; ++i) to[i] = a[i] * rest + b[i] * weight;
}

inline void one_nan(float* values, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) values[i] = Scalar::one_nan(values[i]);
}

// The same with one_nan, for values of any type and few at a time: channels of a pixel.
template <class V, class Output>
inline void blend(const float* a, const float* b, float weight, Output* to,
                  std::size_t count) noexcept {
  constexpr std::size_t kLanes = V::kLanes;
  if (count >= kLanes) {
    const typename V::F first = V::set1(1.0F - weight);
    const typename V::F second = V::set1(weight);
    for_each_vector<kLanes>(count, [&](std::size_t i) {
      const typename V::F sum =
          V::add(V::mul(V::load(a + i), first), V::mul(V::load(b + i), second));
      V::store(to + i, V::one_nan(sum));
    });
  } else if constexpr (kLanes > 1) {
    blend<typename V::Narrower>(a, b, weight, to, count);
  }
}

// The rows or columns of a cell that are inside the feature map.
struct Inside {
  std::size_t skip;   // rows or columns of the cell before the first one inside
  std::size_t start;  // position of the first one inside, in the feature map
  std::size_t count;
};
inline Inside inside(std::size_t cell, std::size_t window, std::size_t size) noexcept {
  const std::size_t begin = cell * window;  // + window / 2 in the feature map
  const std::size_t skip = begin < window / 2 ? window / 2 - begin : 0;
  const std::size_t start = begin + skip - window / 2;
  const std::size_t room = size > start ? size - start : 0;
  return {skip, start, room < window - skip ? room : window - skip};
}

// Merges the first columns of the cells, their second columns and so on into one row.
template <std::size_t window, std::size_t strip>
void interleave(const float (&columns)[window][strip], float* line, std::size_t cells) noexcept {
  for (std::size_t x = 0; x < cells; ++x) {
    for (std::size_t i = 0; i < window; ++i) line[x * window + i] = columns[i][x];
  }
}

template <class V, std::size_t window, class Output>
void bilinear_nchw(const void* input, Unpack unpack, Output* output,
                   const TransferParams& params) noexcept {
  // A strip of cells, side by side. Each of its rows is interpolated horizontally once.
  constexpr std::size_t kStrip = kBlock / kMaxWindow;
  const std::size_t height = pooled_size(params.height, window);
  const std::size_t width = pooled_size(params.width, window);
  const std::size_t planes = params.images * params.channels;
  float values[kStrip + 1];
  float rows[2][window][kStrip];
  float columns[window][kStrip];
  float line[kStrip * window];

  for (std::size_t plane = 0; plane < planes; ++plane) {
    for (std::size_t strip = 0; strip <= width; strip += kStrip) {
      const std::size_t cells = width + 1 - strip < kStrip ? width + 1 - strip : kStrip;
      const auto load_row = [&](std::size_t y, float (&to)[window][kStrip]) {
        // The values strip - 1 to strip + cells - 1; the border is repeated.
        const std::size_t first = strip == 0 ? 0 : strip - 1;
        const std::size_t last = strip + cells - 1 < width ? strip + cells - 1 : width - 1;
        float* inner = strip == 0 ? values + 1 : values;
        unpack(input, params, (plane * height + y) * width + first, last - first + 1,
               plane % params.channels, inner);
        if (strip == 0) values[0] = values[1];
        if (strip + cells > width) values[cells] = values[cells - 1];
        for (std::size_t i = 0; i < window; ++i) {
          interpolate(values, values + 1, bilinear_weight(i, window), to[i], cells);
        }
      };
      load_row(0, rows[0]);
      for (std::size_t cell = 0; cell <= height; ++cell) {
        // Row cell - 1 is above, row cell is below; the rows at the border are repeated.
        const bool repeats = cell == 0 || cell == height;
        float (&above)[window][kStrip] = rows[cell == 0 ? 0 : (cell - 1) % 2];
        float (&below)[window][kStrip] = repeats ? above : rows[cell % 2];
        if (!repeats) load_row(cell, below);
        const Inside y = inside(cell, window, params.height);
        for (std::size_t row = 0; row < y.count; ++row) {
          const float weight = bilinear_weight(y.skip + row, window);
          for (std::size_t i = 0; i < window; ++i) {
            interpolate(above[i], below[i], weight, columns[i], cells);
            one_nan(columns[i], cells);
          }
          interleave(columns, line, cells);
          const Inside x = inside(strip, window, params.width);
          const std::size_t room = params.width > x.start ? params.width - x.start : 0;
          const std::size_t made = cells * window - x.skip;
          const std::size_t at = (plane * params.height + y.start + row) * params.width + x.start;
          convert<V>(line + x.skip, output + at, made < room ? made : room);
        }
      }
    }
  }
}

template <class V, class Output>
void bilinear_nhwc(const void* input, Unpack unpack, Output* output,
                   const TransferParams& params) noexcept {
  constexpr std::size_t kPart = kBlock / kMaxWindow;  // channels at a time
  const std::size_t window = params.window;
  const std::size_t height = pooled_size(params.height, window);
  const std::size_t width = pooled_size(params.width, window);
  const std::size_t channels = params.channels;
  float corner[2][2][kPart];  // left or right by column's parity, above or below
  float across[2][kPart];

  for (std::size_t image = 0; image < params.images; ++image) {
    for (std::size_t cell_y = 0; cell_y <= height; ++cell_y) {
      const std::size_t above = cell_y == 0 ? 0 : cell_y - 1;
      const std::size_t below = cell_y == height ? height - 1 : cell_y;
      const Inside y = inside(cell_y, window, params.height);
      for (std::size_t c = 0; c < channels; c += kPart) {
        const std::size_t part = channels - c < kPart ? channels - c : kPart;
        const auto load_column = [&](std::size_t x) {
          const std::size_t upper = ((image * height + above) * width + x) * channels + c;
          const std::size_t lower = ((image * height + below) * width + x) * channels + c;
          unpack(input, params, upper, part, c, corner[x % 2][0]);
          unpack(input, params, lower, part, c, corner[x % 2][1]);
        };
        load_column(0);
        for (std::size_t cell_x = 0; cell_x <= width; ++cell_x) {
          const std::size_t left = (cell_x == 0 ? 0 : cell_x - 1) % 2;
          const bool repeats = cell_x == 0 || cell_x == width;
          const std::size_t right = repeats ? left : cell_x % 2;
          if (!repeats) load_column(cell_x);
          const Inside x = inside(cell_x, window, params.width);
          for (std::size_t column = 0; column < x.count; ++column) {
            const float weight = bilinear_weight(x.skip + column, window);
            blend<V>(corner[left][0], corner[right][0], weight, across[0], part);
            blend<V>(corner[left][1], corner[right][1], weight, across[1], part);
            for (std::size_t row = 0; row < y.count; ++row) {
              const std::size_t to = image * params.height + y.start + row;
              blend<V>(across[0], across[1], bilinear_weight(y.skip + row, window),
                       output + ((to * params.width + x.start + column) * channels + c), part);
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_BILINEAR_H_
