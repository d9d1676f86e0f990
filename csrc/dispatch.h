// Dispatch: the kernel that runs, of those in kernel_list.h.

#ifndef SCISSIONLITE_DISPATCH_H_
#define SCISSIONLITE_DISPATCH_H_

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace scissionlite {

// The name of an ISA is unknown, or this CPU or this build does not have the ISA.
class IsaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Kernel {
  std::string_view operation;  // with its types: "encode_f32_i8"
  std::string_view isa;
  bool (*cpu_can_run)() noexcept;
  std::size_t input_item;   // bytes per element
  std::size_t output_item;  // bytes per element
  void (*run)(const void* input, void* output, const TransferParams& params) noexcept;
};

// Every kernel in this build, best ISA first, whether or not this CPU can run it.
const std::vector<Kernel>& all_kernels();

// The ISAs that this build has and this CPU can run, best first.
std::vector<std::string_view> available_isas();

// The ISA in use: the one that SCISSIONLITE_ISA names, or else the best one. Resolved at the first
// call that does not throw; later changes of the environment have no effect.
std::string_view active_isa();

// The kernel of an operation for the named ISA, or for the active one if `isa` is empty.
const Kernel& find_kernel(std::string_view operation, std::string_view isa = {});

}  // namespace scissionlite

#endif  // SCISSIONLITE_DISPATCH_H_
