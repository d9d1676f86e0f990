// What the CPU and the operating system offer, found at run time.

#ifndef SCISSIONLITE_CPU_H_
#define SCISSIONLITE_CPU_H_

#include <string_view>

namespace scissionlite {

enum CpuFeature : unsigned {
  kBaseline,  // any x86-64, any ARMv8.0-A, anything that a C++17 compiler targets
  kNeon,      // part of ARMv8.0-A
  kNeonFp16,  // ARMv8.2-A's arithmetic on half precision
  kAvx2,      // with F16C, which every CPU with AVX2 has
  kAvx512,    // F, BW, DQ and VL together, and AVX2
};

// True if this CPU has the feature and the operating system saves its registers.
bool cpu_has(CpuFeature feature) noexcept;

// True for every name that SCISSIONLITE_ISA may hold, on whatever machine.
bool is_known_isa(std::string_view name) noexcept;

}  // namespace scissionlite

#endif  // SCISSIONLITE_CPU_H_
