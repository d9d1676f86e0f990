// CPU detection. A set CPUID bit is not enough: the operating system must also save the wider
// registers on a context switch. XGETBV says whether it does.

#include "cpu.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace scissionlite {
namespace {

#if defined(__x86_64__)

struct X86 {
  bool avx2 = false;
  bool avx512 = false;
};

std::uint64_t saved_register_state() noexcept {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  // _xgetbv() would need -mxsave, and this file is compiled for the baseline.
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

X86 detect_x86() noexcept {
  X86 found;
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kOsxsave = 1U << 27;
  constexpr unsigned kAvx = 1U << 28;
  constexpr unsigned kF16c = 1U << 29;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsxsave) == 0 || (c & kAvx) == 0) return found;
  const bool f16c = (c & kF16c) != 0;

  constexpr std::uint64_t kYmmState = 0x06;  // XMM, upper halves of YMM
  constexpr std::uint64_t kZmmState = 0xE0;  // mask registers, upper halves of ZMM0-15, ZMM16-31
  const std::uint64_t state = saved_register_state();
  if ((state & kYmmState) != kYmmState || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) {
    return found;
  }
  found.avx2 = f16c && (b & (1U << 5)) != 0;
  constexpr unsigned kAvx512Bits = (1U << 16) | (1U << 17) | (1U << 30) | (1U << 31);  // F DQ BW VL
  found.avx512 = found.avx2 && (state & kZmmState) == kZmmState && (b & kAvx512Bits) == kAvx512Bits;
  return found;
}

const X86& x86() noexcept {
  static const X86 found = detect_x86();
  return found;
}

#endif

}  // namespace

// Any x86-64, any ARMv8.0-A, any CPU that a C++17 compiler has.
bool cpu_has_scalar() noexcept { return true; }

#if defined(__x86_64__)

// With F16C, which every CPU with AVX2 has.
bool cpu_has_avx2() noexcept { return x86().avx2; }

// F, BW, DQ and VL together, and AVX2.
bool cpu_has_avx512() noexcept { return x86().avx512; }

#elif defined(__aarch64__)

// Part of ARMv8.0-A.
bool cpu_has_neon() noexcept { return true; }

// ARMv8.2-A's arithmetic on half precision.
bool cpu_has_neonfp16() noexcept {
#if defined(__linux__)
  // Linux reports what it has enabled. HWCAP_ASIMDHP is not in the headers of every libc.
  constexpr unsigned long kAsimdHp = 1UL << 10;
  return (getauxval(AT_HWCAP) & kAsimdHp) != 0;
#else
  return false;
#endif
}

#endif

}  // namespace scissionlite
