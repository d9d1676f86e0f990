// The Python module: registers classes, methods and functions. The calls are in calls.h, the checks
// of their arrays in arrays.h. Stub: src/scissionlite/_core.pyi.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ans_tables.h"
#include "calls.h"
#include "dispatch.h"
#include "message_socket.h"
#include "transfer.h"

namespace py = pybind11;
using scissionlite::AnsTables;
using scissionlite::Quantizer;
using scissionlite::Transfer;

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
      .def(py::init(&scissionlite::make_quantizer), py::arg("scales").noconvert(),
           py::arg("zero_points").noconvert())
      .def(py::init([](float scale, std::int32_t zero_point) {
             return Quantizer(&scale, &zero_point, 1);
           }),
           py::arg("scale"), py::arg("zero_point"))
      .def_static("from_range", &scissionlite::quantizer_from_range, py::arg("lows"),
                  py::arg("highs"), py::arg("dtype") = "int8", py::arg("scheme") = "affine",
                  py::arg("levels") = 0, "Make the scales and zero points whose codes span ranges.")
      .def_property_readonly("scales", &scissionlite::scales_of)
      .def_property_readonly("zero_points", &scissionlite::zero_points_of)
      .def("__len__", &Quantizer::groups);

  py::class_<Transfer>(module, "Transfer", "A Transfer Layer for feature maps of one shape.")
      .def(py::init(&scissionlite::make_transfer), py::kw_only(), py::arg("images"),
           py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("pool") = 1,
           py::arg("pool_kind") = "max", py::arg("upsample") = "nearest",
           py::arg("layout") = "nchw", py::arg("dtype") = "int8", py::arg("isa") = py::none())
      .def_readonly("pooled_size", &Transfer::pooled, "Number of elements of the pooled map.")
      .def_readonly("nbytes", &Transfer::bytes, "Bytes of payload.")
      .def("accepts", &scissionlite::accepts, py::arg("array").noconvert(),
           "Tell whether an array is dense in this layout.")
      .def("encode", &scissionlite::encode, py::arg("array").noconvert(),
           py::arg("out").noconvert(), py::arg("quantizer") = py::none(),
           "Pool, quantize and pack.")
      .def("encode_measured", &scissionlite::encode_measured, py::arg("array").noconvert(),
           py::arg("out").noconvert(), py::arg("pooled").noconvert(),
           py::arg("per_channel") = false, py::arg("scheme") = "affine", py::arg("levels") = 0,
           "Encode with scales from the range of the map.")
      .def("pool_range", &scissionlite::pool_range, py::arg("array").noconvert(),
           py::arg("out").noconvert(), py::arg("per_channel") = false,
           "Pool into float32 and find the range.")
      .def("decode", &scissionlite::decode, py::arg("payload").noconvert(),
           py::arg("out").noconvert(), py::arg("quantizer") = py::none(),
           "Unpack, dequantize and upsample.");

  using scissionlite::Frame;
  py::class_<Frame>(module, "Frame", py::buffer_protocol(), "A frame that a socket received.")
      .def_buffer([](Frame& frame) {
        return py::buffer_info(static_cast<std::uint8_t*>(frame.data()),
                               static_cast<py::ssize_t>(frame.size()));
      })
      .def("property", &Frame::property, py::arg("name"), "A property of its connection.");

  using scissionlite::MessageSocket;
  py::class_<MessageSocket>(module, "MessageSocket", "Messages of a socket that pyzmq made.")
      .def(py::init<const scissionlite::AddressOf&, std::uintptr_t, std::size_t, std::string>(),
           py::arg("address_of"), py::arg("socket"), py::arg("most"), py::arg("property") = "")
      .def_property_readonly("busy", &MessageSocket::busy)
      .def_property_readonly("descriptor", &MessageSocket::descriptor)
      .def_property_readonly("events", &MessageSocket::events)
      .def("close", &MessageSocket::close, "Use the socket no longer.")
      .def("mute", &MessageSocket::mute, py::arg("descriptor"),
           "Throw the messages of a connection away.")
      .def("unmute", &MessageSocket::unmute, "Read the messages of every connection again.")
      .def("thrown", &MessageSocket::thrown, "What was thrown away of muted connections.")
      .def("receive", &MessageSocket::receive, "Read a message without waiting.")
      .def("send", &MessageSocket::send, py::arg("frames"), "Send a message.");

  py::class_<AnsTables>(module, "AnsTables", "Static tables of the entropy coder, checked.")
      .def(py::init(&scissionlite::make_ans_tables), py::arg("dtype"), py::arg("id"),
           py::arg("table_of_channel").noconvert(), py::arg("frequencies").noconvert(),
           py::arg("bounds").noconvert() = py::none())
      .def("encode", &scissionlite::ans_encode_array, py::arg("payload").noconvert(),
           py::arg("out").noconvert(), py::arg("count"), py::arg("plane"), py::arg("nhwc") = false,
           py::arg("width") = 0, "Code a payload into the end of a buffer.")
      .def("decode", &scissionlite::ans_decode_array, py::arg("coded").noconvert(),
           py::arg("out").noconvert(), py::arg("count"), py::arg("plane"), py::arg("nhwc") = false,
           py::arg("width") = 0, "Decode a payload.");

  module.def("normalize_frame", &scissionlite::normalize_frame_array, py::arg("frame").noconvert(),
             py::arg("tables").noconvert(), py::arg("out").noconvert(),
             "Make a network's input of a frame.");
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
