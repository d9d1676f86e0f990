// Dispatch: reads kernels.inc, asks the CPU, honours SCISSIONLITE_ISA. A choice that cannot be met
// is an error and never a fallback: whoever forces an ISA wants to test or to compare just that.

#include "dispatch.h"

#include <algorithm>
#include <cstdlib>

namespace scissionlite {
namespace {

std::string join(const std::vector<std::string_view>& names) {
  std::string text;
  for (const std::string_view name : names) {
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

// `name` itself if it can be used here; `origin` says in the message who asked for it.
std::string_view check_isa(std::string_view name, const std::string& origin) {
  const std::vector<std::string_view> usable = available_isas();
  const auto match = std::find(usable.begin(), usable.end(), name);
  if (match != usable.end()) return *match;

  std::string message = origin + std::string(name) + "': ";
  const std::vector<Kernel>& kernels = all_kernels();
  if (!is_known_isa(name)) {
    message += "no such instruction set; known are scalar, avx2, avx512, neon, neonfp16";
  } else if (std::any_of(kernels.begin(), kernels.end(),
                         [&](const Kernel& kernel) { return kernel.isa == name; })) {
    message += "this CPU (or its operating system) does not support it";
  } else {
    message += "this build has no kernels for it";
  }
  throw IsaError(message + "; usable here: " + join(usable));
}

std::string_view resolve_isa() {
  const char* forced = std::getenv("SCISSIONLITE_ISA");
  if (forced == nullptr || *forced == '\0') return available_isas().front();
  return check_isa(forced, "SCISSIONLITE_ISA='");
}

}  // namespace

const std::vector<Kernel>& all_kernels() {
  static const std::vector<Kernel> kernels = {
#define KERNEL(operation, isa, needs, Input, Output)                                             \
  {#operation,                                                                                   \
   #isa,                                                                                         \
   needs,                                                                                        \
   sizeof(Input),                                                                                \
   sizeof(Output),                                                                               \
   [](const void* input, void* output, const TransferParams& params) noexcept {                  \
     operation##__##isa(static_cast<const Input*>(input), static_cast<Output*>(output), params); \
   }},
#include "kernels.inc"
#undef KERNEL
  };
  return kernels;
}

std::vector<std::string_view> available_isas() {
  std::vector<std::string_view> names;
  for (const Kernel& kernel : all_kernels()) {
    if (cpu_has(kernel.needs) && std::find(names.begin(), names.end(), kernel.isa) == names.end()) {
      names.push_back(kernel.isa);
    }
  }
  return names;
}

std::string_view active_isa() {
  static const std::string_view isa = resolve_isa();
  return isa;
}

const Kernel& find_kernel(std::string_view operation, std::string_view isa) {
  const std::string_view wanted = isa.empty() ? active_isa() : check_isa(isa, "isa='");
  for (const Kernel& kernel : all_kernels()) {
    if (kernel.operation == operation && kernel.isa == wanted) return kernel;
  }
  throw IsaError("no kernel " + std::string(operation) + "__" + std::string(wanted));
}

}  // namespace scissionlite
