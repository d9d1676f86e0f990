// From the list of kernels to the one that runs.

#ifndef SCISSIONLITE_DISPATCH_H_
#define SCISSIONLITE_DISPATCH_H_

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cpu.h"
#include "kernels.h"

namespace scissionlite {

// An ISA was asked for by a name that is unknown, or that this CPU or this build does not have.
class IsaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Kernel {
  std::string_view operation;
  std::string_view isa;
  CpuFeature needs;
  std::size_t input_item;   // bytes an element
  std::size_t output_item;  // bytes an element
  void (*run)(const void* input, void* output, const TransferParams& params) noexcept;
};

// Every kernel in this build, best ISA first, whether or not this CPU can run it.
const std::vector<Kernel>& all_kernels();

// The ISAs that this build has and this CPU can run, best first.
std::vector<std::string_view> available_isas();

// The ISA in use: what SCISSIONLITE_ISA forces, or else the best one. Resolved on the first call
// that does not throw; later changes of the environment have no effect.
std::string_view active_isa();

// The kernel of an operation for the active ISA (isa empty) or for the one named.
const Kernel& find_kernel(std::string_view operation, std::string_view isa = {});

}  // namespace scissionlite

#endif  // SCISSIONLITE_DISPATCH_H_
