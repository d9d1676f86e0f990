// The Python binding: checks dtype, shape and layout, releases the GIL, calls. No arithmetic on
// data, no policy; both live elsewhere (kernels, Python). Stub: src/scissionlite/_core.pyi.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "transfer.h"

namespace py = pybind11;

namespace {

using scissionlite::Half;
using scissionlite::Kernel;
using scissionlite::Layout;
using scissionlite::PayloadType;
using scissionlite::Pooling;
using scissionlite::Quantizer;
using scissionlite::Scheme;
using scissionlite::Transfer;
using scissionlite::TransferParams;
using scissionlite::Upsampling;

// One of two or four names, as its value.
template <typename Value>
Value choose(const char* what, const std::string& name,
             const std::vector<std::pair<const char*, Value>>& choices) {
  std::string known;
  for (const auto& [choice, value] : choices) {
    if (name == choice) return value;
    known += known.empty() ? choice : std::string(" or ") + choice;
  }
  throw py::value_error(std::string(what) + "='" + name + "' must be " + known);
}

// NumPy's own number of a dtype: comparing it costs less than comparing descriptors.
int type_number(const py::array& array) {
  return py::detail::array_descriptor_proxy(py::detail::array_proxy(array.ptr())->descr)->type_num;
}
constexpr int kFloat32 = 11;  // NPY_FLOAT
constexpr int kFloat16 = 23;  // NPY_HALF
constexpr int kUint8 = 2;     // NPY_UBYTE

bool native(const py::array& array) {
  const char order =
      py::detail::array_descriptor_proxy(py::detail::array_proxy(array.ptr())->descr)->byteorder;
  return order == '=' || order == '|';
}

bool is_aligned(const py::array& array) {
  return (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
}

// 0 for float32, 1 for float16: the index into Transfer's kernels.
std::size_t float_kind(const py::array& array, const char* name) {
  const int number = type_number(array);
  if ((number != kFloat32 && number != kFloat16) || !native(array)) {
    throw py::type_error(std::string(name) + " must be float32 or float16, not " +
                         std::string(py::str(array.dtype())));
  }
  return number == kFloat16 ? 1 : 0;
}

// Whether the elements lie without gaps in the order of the layout. The array's shape is
// (..., channels, height, width) in NHWC too, as PyTorch's channels_last has it.
bool is_dense(const py::array& array, const Transfer& transfer) {
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

void check_map(const py::array& array, const Transfer& transfer, const char* name) {
  if (!is_dense(array, transfer) || !is_aligned(array)) {
    const bool nchw = transfer.params.layout == Layout::kNchw;
    throw py::value_error(std::string(name) + " must be dense in " + (nchw ? "nchw" : "nhwc") +
                          ", aligned, and of " + std::to_string(transfer.elements) + " elements");
  }
}

// `item` is the payload's own element, to whose size it has to be aligned.
void check_payload(const py::array& array, std::size_t bytes, std::size_t item, const char* name) {
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

void check_output(const py::array& input, const py::array& output) {
  if (!output.writeable()) throw py::value_error("out must be writable");
  const auto* in = static_cast<const char*>(input.data());
  const auto* out = static_cast<const char*>(output.data());
  if (in < out + output.nbytes() && out < in + input.nbytes()) {
    throw py::value_error("out must not overlap the input");
  }
}

TransferParams with_quantizer(const Transfer& transfer, const Quantizer* quantizer, bool encoding) {
  TransferParams params = transfer.params;
  if ((quantizer != nullptr) != transfer.quantizes()) {
    throw py::value_error(transfer.quantizes() ? "this payload needs a quantizer"
                                               : "a float payload takes no quantizer");
  }
  if (quantizer == nullptr) return params;
  if (quantizer->groups() != 1 && quantizer->groups() != params.channels) {
    throw py::value_error("the quantizer has " + std::to_string(quantizer->groups()) +
                          " scales; it must have 1, or one for each of " +
                          std::to_string(params.channels) + " channels");
  }
  if (transfer.payload == PayloadType::kInt4 && !quantizer->fits_int4()) {
    throw py::value_error("an int4 zero point must be within [-8, 7]");
  }
  params.per_channel = quantizer->groups() > 1;
  params.factors = encoding ? quantizer->inverse_scales() : quantizer->scales();
  params.zero_points = quantizer->zero_points();
  return params;
}

void run(const Kernel& kernel, const void* input, void* output, const TransferParams& params) {
  const py::gil_scoped_release unlocked;
  kernel.run(input, output, params);
}

void encode(const Transfer& transfer, const py::array& array, py::array out,
            const Quantizer* quantizer) {
  const Kernel& kernel = *transfer.encode[float_kind(array, "array")];
  check_map(array, transfer, "array");
  check_payload(out, transfer.bytes, kernel.output_item, "out");
  check_output(array, out);
  run(kernel, array.data(), out.mutable_data(), with_quantizer(transfer, quantizer, true));
}

// Where a pooled map goes: only without pooling is there none.
void check_pooled(const py::array& array, std::optional<py::array>& pooled,
                  const Transfer& transfer, const std::string& what) {
  if (!pooled) {
    if (transfer.params.window == 1) return;
    throw py::value_error(what + " may be None only with pool=1");
  }
  if (type_number(*pooled) != kFloat32 || !native(*pooled)) {
    throw py::type_error(what + " must be float32, not " + std::string(py::str(pooled->dtype())));
  }
  if (pooled->ndim() != 1 || static_cast<std::size_t>(pooled->size()) != transfer.pooled ||
      (pooled->flags() & py::array::c_style) == 0 || !is_aligned(*pooled)) {
    throw py::value_error(what + " must be 1-D, contiguous, aligned and of exactly " +
                          std::to_string(transfer.pooled) + " elements");
  }
  check_output(array, *pooled);
}

std::pair<py::array_t<float>, py::array_t<float>> pool_range(const Transfer& transfer,
                                                             const py::array& array,
                                                             std::optional<py::array> out,
                                                             bool per_channel) {
  const Kernel& kernel = *transfer.pool_range[float_kind(array, "array")];
  check_map(array, transfer, "array");
  check_pooled(array, out, transfer, "out");
  TransferParams params = transfer.params;
  params.per_channel = per_channel;
  const auto groups = static_cast<py::ssize_t>(per_channel ? params.channels : 1);
  py::array_t<float> lows(groups);
  py::array_t<float> highs(groups);
  params.lows = lows.mutable_data();
  params.highs = highs.mutable_data();
  run(kernel, array.data(), out ? out->mutable_data() : nullptr, params);
  return {std::move(lows), std::move(highs)};
}

Scheme scheme_of(const std::string& name) {
  return choose<Scheme>("scheme", name,
                        {{"affine", Scheme::kAffine}, {"symmetric", Scheme::kSymmetric}});
}

Quantizer encode_measured(const Transfer& transfer, const py::array& array, py::array out,
                          std::optional<py::array> pooled, bool per_channel,
                          const std::string& scheme_name, std::uint32_t levels) {
  if (!transfer.quantizes()) throw py::value_error("a float payload has no scales to be found");
  const Scheme scheme = scheme_of(scheme_name);
  const std::size_t kind = float_kind(array, "array");
  check_map(array, transfer, "array");
  check_payload(out, transfer.bytes, 1, "out");
  check_output(array, out);
  check_pooled(array, pooled, transfer, "pooled");
  if (pooled) check_output(*pooled, out);
  const void* input = array.data();
  void* between = pooled ? pooled->mutable_data() : nullptr;
  void* payload = out.mutable_data();
  const py::gil_scoped_release unlocked;
  return transfer.encode_measured(kind, input, between, payload, per_channel, scheme, levels);
}

py::object floats_of(const Quantizer& quantizer) {
  py::tuple scales(quantizer.groups());
  for (std::size_t i = 0; i < quantizer.groups(); ++i) scales[i] = quantizer.scales()[i];
  return scales;
}

py::object zero_points_of(const Quantizer& quantizer) {
  py::tuple zero_points(quantizer.groups());
  for (std::size_t i = 0; i < quantizer.groups(); ++i) zero_points[i] = quantizer.zero_points()[i];
  return zero_points;
}

Quantizer quantizer_from_range(const py::array_t<double, py::array::c_style>& lows,
                               const py::array_t<double, py::array::c_style>& highs,
                               const std::string& dtype, const std::string& scheme,
                               std::uint32_t levels) {
  if (lows.ndim() != 1 || highs.ndim() != 1 || lows.size() != highs.size()) {
    throw py::value_error("one low and one high a channel needed");
  }
  const auto payload = choose<PayloadType>(
      "dtype", dtype, {{"int8", PayloadType::kInt8}, {"int4", PayloadType::kInt4}});
  return Quantizer::from_ranges(lows.data(), highs.data(), static_cast<std::size_t>(lows.size()),
                                payload, scheme_of(scheme), levels);
}

void decode(const Transfer& transfer, const py::array& payload, py::array out,
            const Quantizer* quantizer) {
  const Kernel& kernel = *transfer.decode[float_kind(out, "out")];
  check_payload(payload, transfer.bytes, kernel.input_item, "payload");
  check_map(out, transfer, "out");
  check_output(payload, out);
  run(kernel, payload.data(), out.mutable_data(), with_quantizer(transfer, quantizer, false));
}

Quantizer make_quantizer(const py::array_t<float, py::array::c_style>& scales,
                         const py::array_t<std::int32_t, py::array::c_style>& zero_points) {
  if (!is_aligned(scales) || !is_aligned(zero_points)) {
    throw py::value_error("scales and zero_points must be aligned to their dtype");
  }
  if (scales.ndim() != 1 || zero_points.ndim() != 1 || scales.size() != zero_points.size()) {
    throw py::value_error("scales and zero_points must be 1-D and of one length");
  }
  return {scales.data(), zero_points.data(), static_cast<std::size_t>(scales.size())};
}

Transfer make_transfer(std::size_t images, std::size_t channels, std::size_t height,
                       std::size_t width, std::uint32_t pool, const std::string& pool_kind,
                       const std::string& upsample, const std::string& layout,
                       const std::string& dtype, const std::optional<std::string>& isa) {
  if (isa && isa->empty()) throw scissionlite::IsaError("isa='': no such instruction set");
  TransferParams params = {};
  params.images = images;
  params.channels = channels;
  params.height = height;
  params.width = width;
  params.window = pool;
  params.pooling = choose<Pooling>("pool_kind", pool_kind,
                                   {{"max", Pooling::kMax}, {"average", Pooling::kAverage}});
  params.upsampling =
      choose<Upsampling>("upsample", upsample,
                         {{"nearest", Upsampling::kNearest}, {"bilinear", Upsampling::kBilinear}});
  params.layout =
      choose<Layout>("layout", layout, {{"nchw", Layout::kNchw}, {"nhwc", Layout::kNhwc}});
  const auto payload = choose<PayloadType>("dtype", dtype,
                                           {{"float32", PayloadType::kFloat32},
                                            {"float16", PayloadType::kFloat16},
                                            {"int8", PayloadType::kInt8},
                                            {"int4", PayloadType::kInt4}});
  return {params, payload, isa ? std::string_view(*isa) : std::string_view()};
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

  py::class_<Quantizer>(module, "Quantizer", "Scales and zero points, checked.")
      .def(py::init(&make_quantizer), py::arg("scales").noconvert(),
           py::arg("zero_points").noconvert())
      .def(py::init([](float scale, std::int32_t zero_point) {
             return Quantizer(&scale, &zero_point, 1);
           }),
           py::arg("scale"), py::arg("zero_point"))
      .def_static("from_range", &quantizer_from_range, py::arg("lows"), py::arg("highs"),
                  py::arg("dtype") = "int8", py::arg("scheme") = "affine", py::arg("levels") = 0,
                  "The scales and zero points whose codes span ranges.")
      .def_property_readonly("scales", &floats_of)
      .def_property_readonly("zero_points", &zero_points_of)
      .def("__len__", &Quantizer::groups);

  py::class_<Transfer>(module, "Transfer", "A Transfer Layer for feature maps of one shape.")
      .def(py::init(&make_transfer), py::kw_only(), py::arg("images"), py::arg("channels"),
           py::arg("height"), py::arg("width"), py::arg("pool") = 1, py::arg("pool_kind") = "max",
           py::arg("upsample") = "nearest", py::arg("layout") = "nchw", py::arg("dtype") = "int8",
           py::arg("isa") = py::none())
      .def_readonly("pooled_size", &Transfer::pooled, "Number of elements of the pooled map.")
      .def_readonly("nbytes", &Transfer::bytes, "Bytes of payload.")
      .def(
          "accepts",
          [](const Transfer& transfer, const py::array& array) {
            return is_dense(array, transfer) && is_aligned(array);
          },
          py::arg("array").noconvert(), "Whether an array is dense in this layout.")
      .def("encode", &encode, py::arg("array").noconvert(), py::arg("out").noconvert(),
           py::arg("quantizer") = py::none(), "Pool, quantize and pack.")
      .def("encode_measured", &encode_measured, py::arg("array").noconvert(),
           py::arg("out").noconvert(), py::arg("pooled").noconvert(),
           py::arg("per_channel") = false, py::arg("scheme") = "affine", py::arg("levels") = 0,
           "Encode with scales from the map's own range, which is found first.")
      .def("pool_range", &pool_range, py::arg("array").noconvert(), py::arg("out").noconvert(),
           py::arg("per_channel") = false, "Pool into float32 and find the range.")
      .def("decode", &decode, py::arg("payload").noconvert(), py::arg("out").noconvert(),
           py::arg("quantizer") = py::none(), "Unpack, dequantize and upsample.");

  module.def(
      "kernels",
      [] {
        std::vector<std::pair<std::string, std::string>> names;
        for (const Kernel& kernel : scissionlite::all_kernels()) {
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
