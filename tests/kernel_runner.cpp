// Runs single kernels for the tests where the Python module cannot go: cross-compiled under qemu,
// or built with sanitizers. Stays up and answers requests from standard input, little-endian:
//
//   request   u32 length, name ("list" or "<operation>__<isa>"); for a kernel also
//             u64 planes, height, width; f32 scale; i32 zero point; u32 shift;
//             u64 length, input bytes; u64 output length
//   answer    u8 status (0 done, 1 cannot run here, 2 wrote outside its output); u64 length, bytes
//
// Input and output stand between inaccessible pages. With shift 0 each ends right at the upper one,
// otherwise it starts that many elements after the lower one, unaligned for vectors; so a read or a
// write outside on either side is a crash. Bytes between array and page are canaries.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "dispatch.h"

namespace {

constexpr unsigned char kCanary = 0xA5;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

// An array between two inaccessible pages.
class GuardedArray {
 public:
  GuardedArray(std::size_t size, std::size_t offset_from_start) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    inner_ = (size + offset_from_start + page - 1) / page * page;
    mapped_ = inner_ + 2 * page;
    void* base = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail("mmap");
    base_ = static_cast<unsigned char*>(base);
    begin_ = base_ + page;
    if (mprotect(base_, page, PROT_NONE) != 0) fail("mprotect");
    if (mprotect(begin_ + inner_, page, PROT_NONE) != 0) fail("mprotect");
    std::memset(begin_, kCanary, inner_);
    data_ = begin_ + (offset_from_start > 0 ? offset_from_start : inner_ - size);
    size_ = size;
  }
  GuardedArray(const GuardedArray&) = delete;
  GuardedArray& operator=(const GuardedArray&) = delete;
  ~GuardedArray() { munmap(base_, mapped_); }

  unsigned char* data() const { return data_; }
  bool canaries_alive() const {
    const auto alive = [](unsigned char byte) { return byte == kCanary; };
    return std::all_of(begin_, data_, alive) && std::all_of(data_ + size_, begin_ + inner_, alive);
  }

 private:
  unsigned char* base_;
  unsigned char* begin_;
  unsigned char* data_;
  std::size_t inner_;
  std::size_t mapped_;
  std::size_t size_;
};

bool read_exactly(void* into, std::size_t size) { return std::fread(into, 1, size, stdin) == size; }

template <typename Value>
Value read_value() {
  Value value;
  if (!read_exactly(&value, sizeof value)) fail("request ends early");
  return value;
}

void answer(std::uint8_t status, const void* bytes, std::uint64_t size) {
  std::fwrite(&status, sizeof status, 1, stdout);
  std::fwrite(&size, sizeof size, 1, stdout);
  std::fwrite(bytes, 1, size, stdout);
  std::fflush(stdout);
}

void answer_list() {
  std::string names;
  for (const scissionlite::Kernel& kernel : scissionlite::all_kernels()) {
    names += std::string(kernel.operation) + " " + std::string(kernel.isa) + "\n";
  }
  answer(0, names.data(), names.size());
}

void run_kernel(const std::string& name) {
  scissionlite::TransferParams params;
  params.planes = read_value<std::uint64_t>();
  params.height = read_value<std::uint64_t>();
  params.width = read_value<std::uint64_t>();
  params.scale = read_value<float>();
  params.zero_point = read_value<std::int32_t>();
  const std::size_t shift = read_value<std::uint32_t>();
  std::vector<unsigned char> input(read_value<std::uint64_t>());
  if (!read_exactly(input.data(), input.size())) fail("request ends early");
  const std::size_t output_size = read_value<std::uint64_t>();

  const std::size_t split = name.find("__");
  const std::vector<scissionlite::Kernel>& kernels = scissionlite::all_kernels();
  const auto kernel = std::find_if(kernels.begin(), kernels.end(), [&](const auto& candidate) {
    return candidate.operation == name.substr(0, split) && candidate.isa == name.substr(split + 2);
  });
  if (split == std::string::npos || kernel == kernels.end() ||
      !scissionlite::cpu_has(kernel->needs)) {
    answer(1, "", 0);
    return;
  }
  const GuardedArray from(input.size(), shift * kernel->input_item);
  const GuardedArray to(output_size, shift * kernel->output_item);
  std::memcpy(from.data(), input.data(), input.size());
  kernel->run(from.data(), to.data(), params);
  answer(from.canaries_alive() && to.canaries_alive() ? 0 : 2, to.data(), output_size);
}

}  // namespace

int main() {
  std::uint32_t length = 0;
  while (read_exactly(&length, sizeof length)) {
    std::string name(length, '\0');
    if (!read_exactly(name.data(), length)) fail("request ends early");
    if (name == "list") {
      answer_list();
    } else {
      run_kernel(name);
    }
  }
  return 0;
}
