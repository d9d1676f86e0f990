// The one list of the instruction sets (ISAs) and of the kernels that every ISA has.
//
// Read by kernels.h, cpu.h, dispatch.cpp, encode.h and decode.h, and, as text, by CMakeLists.txt
// and the tests. Macros only. csrc/README.md says how to add an entry.

#ifndef SCISSIONLITE_KERNEL_LIST_H_
#define SCISSIONLITE_KERNEL_LIST_H_

// ISA(name, architecture, compiler flags), best first: dispatch tries them in this order.
//
// The files csrc/<operation>/<name>.cpp are compiled with the flags, and with no others that name a
// CPU. cpu_has_<name>() in cpu.cpp says whether the kernels can run.
#define SCISSIONLITE_ISAS(ISA)                                                    \
  ISA(avx512, x86_64, "-mavx2 -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl") \
  ISA(avx2, x86_64, "-mavx2 -mf16c")                                              \
  ISA(neonfp16, aarch64, "-march=armv8.2-a+fp16")                                 \
  ISA(neon, aarch64, "")                                                          \
  ISA(scalar, any, "")

// KERNEL(operation, input element, output element, ...): the elements are types of elements.h.
#define SCISSIONLITE_ENCODE_LIST(KERNEL, ...) \
  KERNEL(encode, f32, i8, __VA_ARGS__)        \
  KERNEL(encode, f32, i4, __VA_ARGS__)        \
  KERNEL(encode, f32, f16, __VA_ARGS__)       \
  KERNEL(encode, f32, f32, __VA_ARGS__)       \
  KERNEL(encode, f16, i8, __VA_ARGS__)        \
  KERNEL(encode, f16, i4, __VA_ARGS__)        \
  KERNEL(encode, f16, f16, __VA_ARGS__)       \
  KERNEL(encode, f16, f32, __VA_ARGS__)

#define SCISSIONLITE_POOL_RANGE_LIST(KERNEL, ...) \
  KERNEL(pool_range, f32, f32, __VA_ARGS__)       \
  KERNEL(pool_range, f16, f32, __VA_ARGS__)

#define SCISSIONLITE_DECODE_LIST(KERNEL, ...) \
  KERNEL(decode, i8, f32, __VA_ARGS__)        \
  KERNEL(decode, i8, f16, __VA_ARGS__)        \
  KERNEL(decode, i4, f32, __VA_ARGS__)        \
  KERNEL(decode, i4, f16, __VA_ARGS__)        \
  KERNEL(decode, f16, f32, __VA_ARGS__)       \
  KERNEL(decode, f16, f16, __VA_ARGS__)       \
  KERNEL(decode, f32, f32, __VA_ARGS__)       \
  KERNEL(decode, f32, f16, __VA_ARGS__)

// All kernels of one ISA.
#define SCISSIONLITE_KERNELS(KERNEL, isa)   \
  SCISSIONLITE_ENCODE_LIST(KERNEL, isa)     \
  SCISSIONLITE_POOL_RANGE_LIST(KERNEL, isa) \
  SCISSIONLITE_DECODE_LIST(KERNEL, isa)

// The function of a kernel: encode_f32_i8__avx2.
#define SCISSIONLITE_KERNEL_NAME(operation, input, output, isa) \
  operation##_##input##_##output##__##isa

#endif  // SCISSIONLITE_KERNEL_LIST_H_
