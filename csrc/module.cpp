// The Python binding: checks dtype, shape and layout, releases the GIL, calls. No arithmetic on
// data, no policy; both live elsewhere (kernels, Python). Stub: src/scissionlite/_core.pyi.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "dispatch.h"

namespace py = pybind11;

namespace {

using scissionlite::TransferParams;

constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;

// One side of a call: an array that a kernel may read from, or write to, through a plain pointer.
template <typename Element>
void check_array(const py::array& array, const char* name) {
  const std::string label(name);
  if (!py::dtype::of<Element>().equal(array.dtype())) {
    throw py::type_error(label + " must have dtype " +
                         std::string(py::str(py::dtype::of<Element>())) + ", not " +
                         std::string(py::str(array.dtype())));
  }
  if (array.ndim() != 3) {
    throw py::value_error(label + " must be 3-D (planes, height, width), not " +
                          std::to_string(array.ndim()) + "-D");
  }
  if (array.size() == 0) throw py::value_error(label + " must not be empty");
  if ((array.flags() & py::array::c_style) == 0 || (array.flags() & kAligned) == 0) {
    throw py::value_error(label + " must be C-contiguous and aligned to its dtype");
  }
}

void check_half_size(const py::array& full, const py::array& half) {
  const bool fits = half.shape(0) == full.shape(0) &&
                    half.shape(1) == full.shape(1) / 2 + full.shape(1) % 2 &&
                    half.shape(2) == full.shape(2) / 2 + full.shape(2) % 2;
  if (!fits) {
    throw py::value_error(
        "the shapes do not belong together: the pooled array must have the same "
        "planes and half the height and width, rounded up");
  }
}

void check_apart(const py::array& input, const py::array& output) {
  const auto* in = static_cast<const char*>(input.data());
  const auto* out = static_cast<const char*>(output.data());
  if (in < out + output.nbytes() && out < in + input.nbytes()) {
    throw py::value_error("input and out must not overlap");
  }
}

void check_quantization(float scale, int zero_point) {
  if (!(scale > 0.0F) || !std::isfinite(scale) || !std::isfinite(1.0F / scale)) {
    throw py::value_error("scale must be finite and positive, with a finite reciprocal in float32");
  }
  if (zero_point < -128 || zero_point > 127) {
    throw py::value_error("zero_point must be within [-128, 127]");
  }
}

// `full` is whichever of the two arrays has the feature map's own resolution.
template <typename Input, typename Output>
void call(const char* operation, const py::array& input, py::array& out, bool pools, float scale,
          int zero_point, const std::optional<std::string>& isa) {
  const scissionlite::Kernel& kernel =
      scissionlite::find_kernel(operation, isa ? std::string_view(*isa) : std::string_view());
  check_array<Input>(input, "input");
  check_array<Output>(out, "out");
  if (!out.writeable()) throw py::value_error("out must be writable");
  const py::array& full = pools ? input : out;
  check_half_size(full, pools ? static_cast<const py::array&>(out) : input);
  check_apart(input, out);
  const TransferParams params = {static_cast<std::size_t>(full.shape(0)),
                                 static_cast<std::size_t>(full.shape(1)),
                                 static_cast<std::size_t>(full.shape(2)), scale, zero_point};
  const void* from = input.data();
  void* to = out.mutable_data();
  const py::gil_scoped_release unlocked;
  kernel.run(from, to, params);
}

template <typename Input, typename Output>
void bind_quantized(py::module_& module, const char* operation, bool pools, const char* doc) {
  module.def(
      operation,
      [operation, pools](const py::array& input, py::array out, float scale, int zero_point,
                         const std::optional<std::string>& isa) {
        check_quantization(scale, zero_point);
        call<Input, Output>(operation, input, out, pools, scale, zero_point, isa);
      },
      py::arg("input").noconvert(), py::arg("out").noconvert(), py::arg("scale"),
      py::arg("zero_point"), py::kw_only(), py::arg("isa") = py::none(), doc);
}

void bind_float32(py::module_& module, const char* operation, bool pools, const char* doc) {
  module.def(
      operation,
      [operation, pools](const py::array& input, py::array out,
                         const std::optional<std::string>& isa) {
        call<float, float>(operation, input, out, pools, 1.0F, 0, isa);
      },
      py::arg("input").noconvert(), py::arg("out").noconvert(), py::kw_only(),
      py::arg("isa") = py::none(), doc);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of ScissionLite: the Transfer Layer's kernels.";

  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(std::move(thrown));
    } catch (const scissionlite::IsaError& error) {
      // Python owns the hierarchy of exceptions; looked up here because it is needed only now.
      py::set_error(py::module_::import("scissionlite.errors").attr("IsaError"), error.what());
    }
  });

  bind_quantized<float, std::int8_t>(module, "maxpool2x2_quantize_f32_i8", true,
                                     "2x2 max-pooling and int8 quantization in one pass.");
  bind_quantized<std::int8_t, float>(module, "dequantize_upsample2x_i8_f32", false,
                                     "Dequantization and 2x nearest upsampling in one pass.");
  bind_float32(module, "maxpool2x2_f32_f32", true, "2x2 max-pooling in float32.");
  bind_float32(module, "upsample2x_f32_f32", false, "2x nearest upsampling in float32.");

  module.def(
      "kernels",
      [] {
        std::vector<std::pair<std::string, std::string>> names;
        for (const scissionlite::Kernel& kernel : scissionlite::all_kernels()) {
          names.emplace_back(kernel.operation, kernel.isa);
        }
        return names;
      },
      "(operation, isa) of every kernel in this build, best ISA first.");
  module.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (const std::string_view name : scissionlite::available_isas()) names.emplace_back(name);
        return names;
      },
      "The ISAs that this CPU can run, best first.");
  module.def(
      "isa", [] { return std::string(scissionlite::active_isa()); },
      "The ISA in use: SCISSIONLITE_ISA if set, else the best one.");
}
