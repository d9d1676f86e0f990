// Checks of the NumPy arrays that Python passes: dtype, shape, layout, alignment, overlap.
//
// A wrong type is a TypeError, everything else is a ValueError. `name` is the name of the argument.

#ifndef SCISSIONLITE_ARRAYS_H_
#define SCISSIONLITE_ARRAYS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "transfer.h"

namespace scissionlite {

namespace py = pybind11;

// NumPy's number of a dtype. Comparing it costs less than comparing descriptors.
inline int type_number(const py::array& array) {
  return py::detail::array_descriptor_proxy(py::detail::array_proxy(array.ptr())->descr)->type_num;
}
constexpr int kFloat32 = 11;  // NPY_FLOAT
constexpr int kFloat16 = 23;  // NPY_HALF
constexpr int kUint8 = 2;     // NPY_UBYTE

inline bool is_native(const py::array& array) {
  const char order =
      py::detail::array_descriptor_proxy(py::detail::array_proxy(array.ptr())->descr)->byteorder;
  return order == '=' || order == '|';
}

inline bool is_aligned(const py::array& array) {
  return (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
}

// 0 for float32, 1 for float16: the index of the kernels in Transfer.
inline std::size_t float_kind(const py::array& array, const char* name) {
  const int number = type_number(array);
  if ((number != kFloat32 && number != kFloat16) || !is_native(array)) {
    throw py::type_error(std::string(name) + " must be float32 or float16, not " +
                         std::string(py::str(array.dtype())));
  }
  return number == kFloat16 ? 1 : 0;
}

// Whether the elements lie in the order of the layout without gaps. The shape of the array is
// (..., channels, height, width) in NHWC too, as in PyTorch's channels_last.
inline bool is_dense(const py::array& array, const Transfer& transfer) {
  if (static_cast<std::size_t>(array.size()) != transfer.elements) return false;
  if (transfer.params.layout == Layout::kNchw) {
    return (array.flags() & py::array::c_style) != 0;
  }
  const py::ssize_t dimensions = array.ndim();
  if (dimensions < 3) return false;
  const auto size_is = [&](py::ssize_t axis, std::size_t size) {
    return static_cast<std::size_t>(array.shape(axis)) == size;
  };
  if (!size_is(dimensions - 3, transfer.params.channels) ||
      !size_is(dimensions - 2, transfer.params.height) ||
      !size_is(dimensions - 1, transfer.params.width)) {
    return false;
  }
  py::ssize_t expected = array.itemsize();
  const auto follows = [&](py::ssize_t axis) {
    const bool right = array.shape(axis) == 1 || array.strides(axis) == expected;
    expected *= array.shape(axis);
    return right;
  };
  if (!follows(dimensions - 3) || !follows(dimensions - 1) || !follows(dimensions - 2)) {
    return false;
  }
  for (py::ssize_t axis = dimensions - 4; axis >= 0; --axis) {
    if (!follows(axis)) return false;
  }
  return true;
}

// Whether a call takes this feature map without a copy.
inline bool accepts(const Transfer& transfer, const py::array& array) {
  return is_dense(array, transfer) && is_aligned(array);
}

inline void check_map(const py::array& array, const Transfer& transfer, const char* name) {
  if (!accepts(transfer, array)) {
    const bool nchw = transfer.params.layout == Layout::kNchw;
    throw py::value_error(std::string(name) + " must be dense in " + (nchw ? "nchw" : "nhwc") +
                          ", aligned, and of " + std::to_string(transfer.elements) + " elements");
  }
}

// `item` is the size of an element of the payload, to which the array must be aligned.
inline void check_payload(const py::array& array, std::size_t bytes, std::size_t item,
                          const char* name) {
  if (type_number(array) != kUint8) {
    throw py::type_error(std::string(name) + " must be uint8, not " +
                         std::string(py::str(array.dtype())));
  }
  if (array.ndim() != 1 || static_cast<std::size_t>(array.size()) != bytes ||
      (array.flags() & py::array::c_style) == 0) {
    throw py::value_error(std::string(name) + " must be 1-D, contiguous and of exactly " +
                          std::to_string(bytes) + " bytes");
  }
  if (reinterpret_cast<std::uintptr_t>(array.data()) % item != 0) {
    throw py::value_error(std::string(name) + " must be aligned: it must start at a multiple of " +
                          std::to_string(item) + " bytes");
  }
}

inline void check_output(const py::array& input, const py::array& output) {
  if (!output.writeable()) throw py::value_error("out must be writable");
  const auto* in = static_cast<const char*>(input.data());
  const auto* out = static_cast<const char*>(output.data());
  if (in < out + output.nbytes() && out < in + input.nbytes()) {
    throw py::value_error("out must not overlap the input");
  }
}

// The buffer for a pooled map. Without pooling it may be missing.
inline void check_pooled(const py::array& array, std::optional<py::array>& pooled,
                         const Transfer& transfer, const std::string& what) {
  if (!pooled) {
    if (transfer.params.window == 1) return;
    throw py::value_error(what + " may be None only with pool=1");
  }
  if (type_number(*pooled) != kFloat32 || !is_native(*pooled)) {
    throw py::type_error(what + " must be float32, not " + std::string(py::str(pooled->dtype())));
  }
  if (pooled->ndim() != 1 || static_cast<std::size_t>(pooled->size()) != transfer.pooled ||
      (pooled->flags() & py::array::c_style) == 0 || !is_aligned(*pooled)) {
    throw py::value_error(what + " must be 1-D, contiguous, aligned and of exactly " +
                          std::to_string(transfer.pooled) + " elements");
  }
  check_output(array, *pooled);
}

}  // namespace scissionlite

#endif  // SCISSIONLITE_ARRAYS_H_
