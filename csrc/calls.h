// The calls that Python makes: check the arrays, release the GIL, run the kernel. No arithmetic.
//
// One function per method in module.cpp; src/scissionlite/_core.pyi documents them.

#ifndef SCISSIONLITE_CALLS_H_
#define SCISSIONLITE_CALLS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ans_tables.h"
#include "arrays.h"
#include "dispatch.h"
#include "frames.h"
#include "transfer.h"

namespace scissionlite {

// The value that a name stands for. `what` is the name of the argument, for the message.
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

inline Scheme scheme_of(const std::string& name) {
  return choose<Scheme>("scheme", name,
                        {{"affine", Scheme::kAffine}, {"symmetric", Scheme::kSymmetric}});
}

inline Quantizer make_quantizer(const py::array_t<float, py::array::c_style>& scales,
                                const py::array_t<std::int32_t, py::array::c_style>& zero_points) {
  if (!is_aligned(scales) || !is_aligned(zero_points)) {
    throw py::value_error("scales and zero_points must be aligned to their dtype");
  }
  if (scales.ndim() != 1 || zero_points.ndim() != 1 || scales.size() != zero_points.size()) {
    throw py::value_error("scales and zero_points must be 1-D and of one length");
  }
  return {scales.data(), zero_points.data(), static_cast<std::size_t>(scales.size())};
}

inline Quantizer quantizer_from_range(const py::array_t<double, py::array::c_style>& lows,
                                      const py::array_t<double, py::array::c_style>& highs,
                                      const std::string& dtype, const std::string& scheme,
                                      std::uint32_t levels) {
  if (lows.ndim() != 1 || highs.ndim() != 1 || lows.size() != highs.size()) {
    throw py::value_error("one low and one high per channel are needed");
  }
  const auto payload = choose<PayloadType>(
      "dtype", dtype, {{"int8", PayloadType::kInt8}, {"int4", PayloadType::kInt4}});
  return Quantizer::from_ranges(lows.data(), highs.data(), static_cast<std::size_t>(lows.size()),
                                payload, scheme_of(scheme), levels);
}

inline py::tuple scales_of(const Quantizer& quantizer) {
  py::tuple scales(quantizer.groups());
  for (std::size_t i = 0; i < quantizer.groups(); ++i) scales[i] = quantizer.scales()[i];
  return scales;
}

inline py::tuple zero_points_of(const Quantizer& quantizer) {
  py::tuple zero_points(quantizer.groups());
  for (std::size_t i = 0; i < quantizer.groups(); ++i) zero_points[i] = quantizer.zero_points()[i];
  return zero_points;
}

inline Transfer make_transfer(std::size_t images, std::size_t channels, std::size_t height,
                              std::size_t width, std::uint32_t pool, const std::string& pool_kind,
                              const std::string& upsample, const std::string& layout,
                              const std::string& dtype, const std::optional<std::string>& isa) {
  if (isa && isa->empty()) throw IsaError("isa='': no such instruction set");
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

inline void run(const Kernel& kernel, const void* input, void* output,
                const TransferParams& params) {
  const py::gil_scoped_release unlocked;
  kernel.run(input, output, params);
}

inline void encode(const Transfer& transfer, const py::array& array, py::array out,
                   const Quantizer* quantizer) {
  const Kernel& kernel = *transfer.encode[float_kind(array, "array")];
  check_map(array, transfer, "array");
  check_payload(out, transfer.bytes, kernel.output_item, "out");
  check_output(array, out);
  run(kernel, array.data(), out.mutable_data(), transfer.encoding_with(quantizer));
}

inline Quantizer encode_measured(const Transfer& transfer, const py::array& array, py::array out,
                                 std::optional<py::array> pooled, bool per_channel,
                                 const std::string& scheme_name, std::uint32_t levels) {
  if (!transfer.quantizes()) throw py::value_error("a float payload has no scales");
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

inline std::pair<py::array_t<float>, py::array_t<float>> pool_range(const Transfer& transfer,
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

inline void decode(const Transfer& transfer, const py::array& payload, py::array out,
                   const Quantizer* quantizer) {
  const Kernel& kernel = *transfer.decode[float_kind(out, "out")];
  check_payload(payload, transfer.bytes, kernel.input_item, "payload");
  check_map(out, transfer, "out");
  check_output(payload, out);
  run(kernel, payload.data(), out.mutable_data(), transfer.decoding_with(quantizer));
}

inline void normalize_frame_array(const py::array& frame,
                                  const py::array_t<float, py::array::c_style>& tables,
                                  py::array_t<float, py::array::c_style> out) {
  if (type_number(frame) != kUint8) throw py::type_error("frame must be uint8");
  if (frame.ndim() != 3 || (frame.flags() & py::array::c_style) == 0) {
    throw py::value_error("frame must be contiguous, of shape (height, width, channels)");
  }
  const py::ssize_t channels = frame.shape(2);
  if (tables.ndim() != 2 || tables.shape(0) != channels || tables.shape(1) != 256) {
    throw py::value_error("tables must be of shape (channels, 256)");
  }
  if (out.size() != frame.size())
    throw py::value_error("out must have a value for each of frame's");
  if (!is_aligned(tables) || !is_aligned(out)) {
    throw py::value_error("tables and out must be aligned to their dtype");
  }
  check_output(frame, out);
  check_output(tables, out);
  const auto* pixels = static_cast<const std::uint8_t*>(frame.data());
  const auto count = static_cast<std::size_t>(frame.shape(0) * frame.shape(1));
  const float* entries = tables.data();
  float* planes = out.mutable_data();
  const py::gil_scoped_release released;
  normalize_frame(pixels, count, static_cast<std::size_t>(channels), entries, planes);
}

inline AnsTables make_ans_tables(
    const std::string& dtype, std::uint16_t id,
    const py::array_t<std::uint8_t, py::array::c_style>& table_of_channel,
    const py::array_t<std::uint16_t, py::array::c_style>& frequencies,
    const std::optional<py::array_t<std::int16_t, py::array::c_style>>& bounds) {
  const bool nibbles = choose<bool>("dtype", dtype, {{"int8", false}, {"int4", true}});
  if (table_of_channel.ndim() != 1 || frequencies.ndim() != 2 || !is_aligned(frequencies) ||
      frequencies.shape(1) != (nibbles ? 17 : 257)) {
    throw py::value_error("a table per channel is needed, and 257 or 17 frequencies per table");
  }
  const auto named = static_cast<std::size_t>(table_of_channel.size());
  const auto tables = static_cast<std::size_t>(frequencies.shape(0));
  if (!bounds) return {nibbles, id, table_of_channel.data(), named, frequencies.data(), tables};
  const std::size_t channels = named / kAnsClasses;
  if (named % kAnsClasses != 0 || bounds->ndim() != 2 || !is_aligned(*bounds) ||
      static_cast<std::size_t>(bounds->shape(0)) != channels ||
      bounds->shape(1) != kAnsClasses - 1) {
    throw py::value_error("nine tables per channel are needed, and eight bounds");
  }
  return {nibbles, id, table_of_channel.data(), channels, bounds->data(), frequencies.data(),
          tables};
}

inline std::size_t ans_encode_array(const AnsTables& tables, const py::array& payload,
                                    py::array out, std::size_t count, std::size_t plane,
                                    bool channels_last, std::size_t width) {
  const AnsParams params = tables.params(count, plane, channels_last, width);
  const auto size = static_cast<std::size_t>(out.size());
  check_payload(payload, tables.packed_bytes(count), 1, "payload");
  check_payload(out, size, 1, "out");
  check_output(payload, out);
  const auto* from = static_cast<const std::uint8_t*>(payload.data());
  auto* to = static_cast<std::uint8_t*>(out.mutable_data());
  const py::gil_scoped_release unlocked;
  return ans_encode(from, to, size, params);
}

inline const char* ans_decode_array(const AnsTables& tables, const py::array& coded, py::array out,
                                    std::size_t count, std::size_t plane, bool channels_last,
                                    std::size_t width) {
  const AnsParams params = tables.params(count, plane, channels_last, width);
  const auto size = static_cast<std::size_t>(coded.size());
  check_payload(coded, size, 1, "coded");
  check_payload(out, tables.packed_bytes(count), 1, "out");
  check_output(coded, out);
  const auto* from = static_cast<const std::uint8_t*>(coded.data());
  auto* to = static_cast<std::uint8_t*>(out.mutable_data());
  const py::gil_scoped_release unlocked;
  return name_of(ans_decode(from, size, to, params));
}

}  // namespace scissionlite

#endif  // SCISSIONLITE_CALLS_H_
