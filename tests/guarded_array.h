// An array that detects accesses outside it: for the kernel runner and the fuzzer.
//
// It lies between two inaccessible pages, so that a read or a write outside, on either side, is a
// crash. The bytes between array and page are canaries. Built with AddressSanitizer it is a block
// of exactly its size from malloc(), because the sanitizer sees an error of one byte even if the
// array does not end at a page.

#ifndef SCISSIONLITE_GUARDED_ARRAY_H_
#define SCISSIONLITE_GUARDED_ARRAY_H_

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SCISSIONLITE_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SCISSIONLITE_ADDRESS_SANITIZER 1
#endif
#endif

#ifndef SCISSIONLITE_ADDRESS_SANITIZER
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace scissionlite {

class GuardedArray {
 public:
  // `offset` bytes after the block's lower edge; with 0 right at its upper edge.
  GuardedArray(std::size_t size, std::size_t offset) : size_(size) {
#ifdef SCISSIONLITE_ADDRESS_SANITIZER
    inner_ = offset + size;
    begin_ = static_cast<unsigned char*>(std::malloc(inner_));
    if (begin_ == nullptr) fail("malloc");
    data_ = begin_ + offset;
#else
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    inner_ = (size + offset + page - 1) / page * page;
    mapped_ = inner_ + 2 * page;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) fail("mmap");
    begin_ = static_cast<unsigned char*>(base_) + page;
    if (mprotect(base_, page, PROT_NONE) != 0) fail("mprotect");
    if (mprotect(begin_ + inner_, page, PROT_NONE) != 0) fail("mprotect");
    data_ = begin_ + (offset > 0 ? offset : inner_ - size);
#endif
    std::memset(begin_, kCanary, inner_);
  }

  GuardedArray(const std::vector<unsigned char>& bytes, std::size_t offset)
      : GuardedArray(bytes.size(), offset) {
    if (!bytes.empty()) std::memcpy(data_, bytes.data(), bytes.size());
  }

  GuardedArray(const GuardedArray&) = delete;
  GuardedArray& operator=(const GuardedArray&) = delete;

  ~GuardedArray() {
#ifdef SCISSIONLITE_ADDRESS_SANITIZER
    std::free(begin_);
#else
    munmap(base_, mapped_);
#endif
  }

  void* data() const { return data_; }
  std::size_t size() const { return size_; }

  bool canaries_alive() const {
    const auto alive = [](unsigned char byte) { return byte == kCanary; };
    return std::all_of(begin_, data_, alive) && std::all_of(data_ + size_, begin_ + inner_, alive);
  }

 private:
  static constexpr unsigned char kCanary = 0xA5;

  [[noreturn]] static void fail(const char* what) {
    std::perror(what);
    std::abort();
  }

  unsigned char* begin_;
  unsigned char* data_;
  std::size_t size_;
  std::size_t inner_;
#ifndef SCISSIONLITE_ADDRESS_SANITIZER
  void* base_;
  std::size_t mapped_;
#endif
};

}  // namespace scissionlite

#endif  // SCISSIONLITE_GUARDED_ARRAY_H_
