// The kernels' header: what every kernel takes, and the declaration of each.
//
// It is included by files compiled for newer CPUs, so it must stay free of standard-library code:
// an inline function compiled with -mavx2 could be the copy that the linker keeps for everybody.

#ifndef SCISSIONLITE_KERNELS_H_
#define SCISSIONLITE_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace scissionlite {

// One call's parameters. The sizes are those of the feature map at full resolution, which is the
// input of the pooling and the output of the upsampling; the other side has half of each, rounded
// up. None is zero. Only the int8 kernels read scale and zero_point; docs/numerics.md says which
// values they may have.
struct TransferParams {
  std::size_t planes;
  std::size_t height;
  std::size_t width;
  float scale;
  std::int32_t zero_point;
};

// Input and output are contiguous, aligned to their element type only, and do not overlap.
// A kernel neither reads nor writes outside them, allocates nothing and cannot fail.
#define KERNEL(operation, isa, needs, Input, Output)          \
  void operation##__##isa(const Input* input, Output* output, \
                          const TransferParams& params) noexcept;
#include "kernels.inc"
#undef KERNEL

}  // namespace scissionlite

#endif  // SCISSIONLITE_KERNELS_H_
