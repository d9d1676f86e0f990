// Dispatch: reads kernel_list.h, asks the CPU and obeys SCISSIONLITE_ISA. A choice that cannot be
// met is an error, never a fallback: a user who forces an ISA wants to test or to compare that one.

#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "cpu.h"

namespace scissionlite {
namespace {

// Every ISA of kernel_list.h, of whatever architecture.
#define SCISSIONLITE_NAME(isa, architecture, flags) #isa,
constexpr std::string_view kKnownIsas[] = {SCISSIONLITE_ISAS(SCISSIONLITE_NAME)};
#undef SCISSIONLITE_NAME

template <typename Names>
bool contains(const Names& names, std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

template <typename Names>
std::string join(const Names& names) {
  std::string text;
  for (const std::string_view name : names) {
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

// Returns `name` if it can be used here. `origin` is where the name comes from, for the message.
std::string_view check_isa(std::string_view name, const std::string& origin) {
  const std::vector<std::string_view> usable = available_isas();
  const auto match = std::find(usable.begin(), usable.end(), name);
  if (match != usable.end()) return *match;

  std::string message = origin + std::string(name) + "': ";
  const std::vector<Kernel>& kernels = all_kernels();
  if (!contains(kKnownIsas, name)) {
    message += "no such instruction set; known are " + join(kKnownIsas);
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

// Keeps its arguments if the ISAs of an architecture are in this build.
#if defined(__x86_64__)
#define SCISSIONLITE_ON_x86_64(...) __VA_ARGS__
#else
#define SCISSIONLITE_ON_x86_64(...)
#endif
#if defined(__aarch64__)
#define SCISSIONLITE_ON_aarch64(...) __VA_ARGS__
#else
#define SCISSIONLITE_ON_aarch64(...)
#endif
#define SCISSIONLITE_ON_any(...) __VA_ARGS__

const std::vector<Kernel>& all_kernels() {
#define SCISSIONLITE_ENTRY(operation, input, output, isa)                  \
  {#operation "_" #input "_" #output,                                      \
   #isa,                                                                   \
   cpu_has_##isa,                                                          \
   sizeof(input),                                                          \
   sizeof(output),                                                         \
   [](const void* from, void* to, const TransferParams& params) noexcept { \
     SCISSIONLITE_KERNEL_NAME(operation, input, output, isa)               \
     (static_cast<const input*>(from), static_cast<output*>(to), params);  \
   }},
#define SCISSIONLITE_ENTRIES(isa, architecture, flags) \
  SCISSIONLITE_ON_##architecture(SCISSIONLITE_KERNELS(SCISSIONLITE_ENTRY, isa))
  static const std::vector<Kernel> kernels = {SCISSIONLITE_ISAS(SCISSIONLITE_ENTRIES)};
#undef SCISSIONLITE_ENTRIES
#undef SCISSIONLITE_ENTRY
  return kernels;
}

std::vector<std::string_view> available_isas() {
  std::vector<std::string_view> names;
  for (const Kernel& kernel : all_kernels()) {
    if (kernel.cpu_can_run() && !contains(names, kernel.isa)) names.push_back(kernel.isa);
  }
  return names;
}

std::string_view active_isa() {
  static const std::string_view isa = resolve_isa();
  return isa;
}

const Kernel& find_kernel(std::string_view operation, std::string_view isa) {
  const std::string_view chosen = isa.empty() ? active_isa() : check_isa(isa, "isa='");
  for (const Kernel& kernel : all_kernels()) {
    if (kernel.operation == operation && kernel.isa == chosen) return kernel;
  }
  throw IsaError("no kernel " + std::string(operation) + "__" + std::string(chosen));
}

}  // namespace scissionlite
