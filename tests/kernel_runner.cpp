// Runs single kernels for the tests where the Python module cannot go: cross-compiled under qemu,
// or built with sanitizers. Stays up and answers requests from standard input, little-endian:
//
//   request   u32 length, name ("list" or "<operation>__<isa>"); for a kernel also
//             u64 images, channels, height, width; u32 window, pooling, upsampling, layout,
//             per_channel, shift; u64 groups, f32 factors, i32 zero points;
//             u64 length, input bytes; u64 length of the output (0: a null pointer);
//             u64 number of ranges
//             "ans_encode", "ans_decode": u32 nibbles, channels_last, id, shift; u64 count, plane,
//             channels; u8 tables of the channels; u64 number of frequencies, u16 frequencies;
//             u64 length, input bytes; u64 length of the output
//   answer    u8 status (0 done, 1 unknown or cannot run here, 2 wrote outside its output, 3 wrote
//             to its input); u64 length; bytes: the output, the lows, the highs. To "list": a line
//             "<operation> <isa> <1 if this CPU can run it, else 0>" for every kernel.
//
// Every array of a call is a block of its own (guarded_array.h). With shift 0 input and output end
// right at the upper edge of theirs, otherwise they start that many elements after the lower one,
// unaligned for vectors.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "ans_tables.h"
#include "dispatch.h"
#include "guarded_array.h"

namespace {

using scissionlite::AnsTables;
using scissionlite::GuardedArray;
using scissionlite::Kernel;
using scissionlite::TransferParams;
using Bytes = std::vector<unsigned char>;

enum Status : std::uint8_t { kDone, kCannotRun, kWroteOutside, kWroteToInput };

void read_exactly(void* into, std::size_t size) {
  if (std::fread(into, 1, size, stdin) != size) {
    std::fputs("kernel_runner: the request ends early\n", stderr);
    std::exit(1);
  }
}

template <typename Value>
Value read_value() {
  Value value;
  read_exactly(&value, sizeof value);
  return value;
}

Bytes read_bytes(std::size_t size) {
  Bytes bytes(size);
  if (size > 0) read_exactly(bytes.data(), size);
  return bytes;
}

void answer(Status status, const Bytes& bytes = {}) {
  const std::uint64_t size = bytes.size();
  std::fwrite(&status, sizeof status, 1, stdout);
  std::fwrite(&size, sizeof size, 1, stdout);
  if (size > 0) std::fwrite(bytes.data(), 1, size, stdout);
  std::fflush(stdout);
}

void answer_list() {
  std::string lines;
  for (const Kernel& kernel : scissionlite::all_kernels()) {
    lines += std::string(kernel.operation) + " " + std::string(kernel.isa) +
             (kernel.cpu_can_run() ? " 1\n" : " 0\n");
  }
  answer(kDone, Bytes(lines.begin(), lines.end()));
}

// A null pointer where there is nothing.
template <typename Element>
Element* elements_of(const GuardedArray& array) {
  return array.size() == 0 ? nullptr : static_cast<Element*>(array.data());
}

bool holds(const GuardedArray& array, const Bytes& bytes) {
  return bytes.empty() || std::memcmp(array.data(), bytes.data(), bytes.size()) == 0;
}

void append(Bytes& bytes, const GuardedArray& array) {
  const auto* begin = static_cast<const unsigned char*>(array.data());
  bytes.insert(bytes.end(), begin, begin + array.size());
}

void run_kernel(const std::string& name) {
  TransferParams params{};
  params.images = read_value<std::uint64_t>();
  params.channels = read_value<std::uint64_t>();
  params.height = read_value<std::uint64_t>();
  params.width = read_value<std::uint64_t>();
  params.window = read_value<std::uint32_t>();
  params.pooling = static_cast<scissionlite::Pooling>(read_value<std::uint32_t>());
  params.upsampling = static_cast<scissionlite::Upsampling>(read_value<std::uint32_t>());
  params.layout = static_cast<scissionlite::Layout>(read_value<std::uint32_t>());
  params.per_channel = read_value<std::uint32_t>() != 0;
  const std::size_t shift = read_value<std::uint32_t>();
  const std::size_t groups = read_value<std::uint64_t>();
  const Bytes factors = read_bytes(groups * sizeof(float));
  const Bytes zero_points = read_bytes(groups * sizeof(std::int32_t));
  const Bytes input = read_bytes(read_value<std::uint64_t>());
  const std::size_t output_size = read_value<std::uint64_t>();
  const std::size_t ranges_size = read_value<std::uint64_t>() * sizeof(float);

  const std::vector<Kernel>& kernels = scissionlite::all_kernels();
  const auto kernel = std::find_if(kernels.begin(), kernels.end(), [&](const Kernel& each) {
    return std::string(each.operation) + "__" + std::string(each.isa) == name;
  });
  if (kernel == kernels.end() || !kernel->cpu_can_run()) {
    answer(kCannotRun);
    return;
  }
  const GuardedArray from(input, shift * kernel->input_item);
  const GuardedArray to(output_size, shift * kernel->output_item);
  const GuardedArray factors_given(factors, 0);
  const GuardedArray zero_points_given(zero_points, 0);
  const GuardedArray lows(ranges_size, 0);
  const GuardedArray highs(ranges_size, 0);
  params.factors = elements_of<const float>(factors_given);
  params.zero_points = elements_of<const std::int32_t>(zero_points_given);
  params.lows = elements_of<float>(lows);
  params.highs = elements_of<float>(highs);
  kernel->run(from.data(), elements_of<void>(to), params);

  for (const GuardedArray* array :
       {&from, &to, &factors_given, &zero_points_given, &lows, &highs}) {
    if (!array->canaries_alive()) {
      answer(kWroteOutside);
      return;
    }
  }
  if (!holds(from, input) || !holds(factors_given, factors) ||
      !holds(zero_points_given, zero_points)) {
    answer(kWroteToInput);
    return;
  }
  Bytes result;
  append(result, to);
  append(result, lows);
  append(result, highs);
  answer(kDone, result);
}

// Answers the result of ans_encode, or a byte, the status of ans_decode, and the codes.
void run_ans(bool encodes) {
  const bool nibbles = read_value<std::uint32_t>() != 0;
  const bool channels_last = read_value<std::uint32_t>() != 0;
  const auto id = static_cast<std::uint16_t>(read_value<std::uint32_t>());
  const std::size_t shift = read_value<std::uint32_t>();
  const std::size_t count = read_value<std::uint64_t>();
  const std::size_t plane = read_value<std::uint64_t>();
  const Bytes table_of_channel = read_bytes(read_value<std::uint64_t>());
  std::vector<std::uint16_t> frequencies(read_value<std::uint64_t>());
  read_exactly(frequencies.data(), frequencies.size() * sizeof(std::uint16_t));
  std::vector<std::int16_t> bounds(read_value<std::uint64_t>());
  read_exactly(bounds.data(), bounds.size() * sizeof(std::int16_t));
  const std::size_t width = read_value<std::uint64_t>();
  const Bytes input = read_bytes(read_value<std::uint64_t>());
  const std::size_t output_size = read_value<std::uint64_t>();

  const std::size_t number = frequencies.size() / (nibbles ? 17 : 257);
  const std::uint8_t* named = table_of_channel.data();
  const std::size_t channels = bounds.size() / (scissionlite::kAnsClasses - 1);
  const AnsTables tables =
      bounds.empty()
          ? AnsTables(nibbles, id, named, table_of_channel.size(), frequencies.data(), number)
          : AnsTables(nibbles, id, named, channels, bounds.data(), frequencies.data(), number);
  const scissionlite::AnsParams params = tables.params(count, plane, channels_last, width);
  const GuardedArray from(input, shift);
  const GuardedArray to(output_size, shift);
  const auto* given = static_cast<const std::uint8_t*>(from.data());
  auto* made = static_cast<std::uint8_t*>(to.data());
  Bytes result;
  std::size_t start = 0;
  if (encodes) {
    start = ans_encode(given, made, output_size, params);
  } else {
    result.push_back(static_cast<unsigned char>(ans_decode(given, input.size(), made, params)));
  }
  if (!from.canaries_alive() || !to.canaries_alive()) return answer(kWroteOutside);
  if (!holds(from, input)) return answer(kWroteToInput);
  result.insert(result.end(), made + start, made + output_size);
  answer(kDone, result);
}

}  // namespace

int main() {
  std::uint32_t length = 0;
  while (std::fread(&length, sizeof length, 1, stdin) == 1) {
    std::string name(length, '\0');
    read_exactly(name.data(), length);
    if (name == "list") {
      answer_list();
    } else if (name == "ans_encode" || name == "ans_decode") {
      run_ans(name == "ans_encode");
    } else {
      run_kernel(name);
    }
  }
  return 0;
}
