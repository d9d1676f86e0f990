// What the CPU and the operating system offer, found at run time.

#ifndef SCISSIONLITE_CPU_H_
#define SCISSIONLITE_CPU_H_

#include "kernel_list.h"

namespace scissionlite {

// cpu_has_<isa>() for every ISA: true if this CPU can run its kernels and the operating system
// saves its registers. Defined for the ISAs of the architecture that is compiled for.
#define SCISSIONLITE_DECLARE_CPU_HAS(isa, architecture, flags) bool cpu_has_##isa() noexcept;

SCISSIONLITE_ISAS(SCISSIONLITE_DECLARE_CPU_HAS)

#undef SCISSIONLITE_DECLARE_CPU_HAS

}  // namespace scissionlite

#endif  // SCISSIONLITE_CPU_H_
