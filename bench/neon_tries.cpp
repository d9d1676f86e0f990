// Ways to write the NEON kernels' three inner loops that stay near the compiler's own, for
// bench/neon_tries.py to count. Each group's first is the reference that the others must equal.
// Feature maps are 8 x 28 x 28, as in bench/neon_instructions.py.

#include <arm_neon.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

namespace {

constexpr int kWidth = 28, kRows = 8 * 28, kCount = kRows * kWidth;
constexpr int kPooled = kWidth / 2;
volatile std::int32_t the_zero_point = 3;  // unknown to the compiler, as in a kernel
volatile float the_scale = 0.03F;
float source[kCount], output[kCount], expected[kCount];
std::int8_t codes[kCount];
std::uint8_t pairs[kCount / 2];

using F = float32x4_t;
inline F larger(F x, F acc) { return vbslq_f32(vcgtq_f32(x, acc), x, acc); }
inline F start(F x) { return larger(x, vdupq_n_f32(-__builtin_inff())); }

// Calls `four(from, to)` for each four windows of 2 x 2; the last four of a row overlap.
template <class Four>
inline void each_four(const float* from, float* to, Four four) {
  for (int y = 0; y < kRows; y += 2, from += 2 * kWidth, to += kPooled) {
    for (int x = 0; x + 4 <= kPooled; x += 4) four(from + 2 * x, to + x);
    four(from + 2 * (kPooled - 4), to + kPooled - 4);
  }
}
inline F column(const float* at) { return larger(vld1q_f32(at + kWidth), start(vld1q_f32(at))); }

}  // namespace

#define TRY extern "C" [[gnu::noinline]] void

// Maxima of 2 x 2 windows.
TRY max_compiler(const float* from, float* to) {
  for (int y = 0; y < kRows; y += 2, from += 2 * kWidth, to += kPooled) {
    for (int x = 0; x < kPooled; ++x) {
      float c[2];
      for (int i = 0; i < 2; ++i) {
        c[i] = from[2 * x + i] > -__builtin_inff() ? from[2 * x + i] : -__builtin_inff();
        c[i] = from[2 * x + i + kWidth] > c[i] ? from[2 * x + i + kWidth] : c[i];
      }
      to[x] = c[1] > c[0] ? c[1] : c[0];
    }
  }
}
TRY max_rows_then_uzp(const float* from, float* to) {
  each_four(from, to, [](const float* at, float* out) {
    const F a = column(at), b = column(at + 4);
    vst1q_f32(out, larger(vuzp2q_f32(a, b), vuzp1q_f32(a, b)));
  });
}
TRY max_uzp_one_start(const float* from, float* to) {
  each_four(from, to, [](const float* at, float* out) {
    const F a = vld1q_f32(at), b = vld1q_f32(at + 4);
    const F c = vld1q_f32(at + kWidth), d = vld1q_f32(at + kWidth + 4);
    F acc = larger(vuzp1q_f32(c, d), start(vuzp1q_f32(a, b)));
    acc = larger(vuzp2q_f32(c, d), larger(vuzp2q_f32(a, b), acc));
    vst1q_f32(out, acc);
  });
}
TRY max_ld2_two_starts(const float* from, float* to) {
  each_four(from, to, [](const float* at, float* out) {
    const float32x4x2_t a = vld2q_f32(at), b = vld2q_f32(at + kWidth);
    const F odd = larger(b.val[1], start(a.val[1]));
    vst1q_f32(out, larger(odd, larger(b.val[0], start(a.val[0]))));
  });
}
TRY max_ld2_one_start(const float* from, float* to) {
  each_four(from, to, [](const float* at, float* out) {
    const float32x4x2_t a = vld2q_f32(at), b = vld2q_f32(at + kWidth);
    const F acc = larger(b.val[0], start(a.val[0]));
    vst1q_f32(out, larger(b.val[1], larger(a.val[1], acc)));
  });
}
// Four windows and the next four take turns: nothing is stored before both are pooled.
TRY max_ld2_one_start_twice(const float* from, float* to) {
  const auto four = [](const float* at) {
    const float32x4x2_t a = vld2q_f32(at), b = vld2q_f32(at + kWidth);
    return larger(b.val[1], larger(a.val[1], larger(b.val[0], start(a.val[0]))));
  };
  for (int y = 0; y < kRows; y += 2, from += 2 * kWidth, to += kPooled) {
    for (int x = 0; x <= kPooled - 8; x += kPooled - 8) {
      const F first = four(from + 2 * x), second = four(from + 2 * x + 8);
      vst1q_f32(to + x, first);
      vst1q_f32(to + x + 4, second);
    }
  }
}
// Differs for a signalling NaN and for zeros of both signs: no kernel may do it.
TRY max_fmaxnmp_unequal(const float* from, float* to) {
  each_four(from, to, [](const float* at, float* out) {
    const F a = vmaxnmq_f32(vld1q_f32(at), vld1q_f32(at + kWidth));
    const F b = vmaxnmq_f32(vld1q_f32(at + 4), vld1q_f32(at + kWidth + 4));
    vst1q_f32(out, vpmaxnmq_f32(a, b));
  });
}

// int8 codes to float32.
TRY codes_compiler(const std::int8_t* __restrict from, float* __restrict to) {
  const float scale_of_all = the_scale;
  const std::int32_t zero_point = the_zero_point;
  for (int i = 0; i < kCount; ++i) to[i] = static_cast<float>(from[i] - zero_point) * scale_of_all;
}
TRY codes_sxtl_sub(const std::int8_t* from, float* to) {
  const float scale_of_all = the_scale;
  const std::int32_t zero_point = the_zero_point;
  const F scale = vdupq_n_f32(scale_of_all);
  const int32x4_t zero = vdupq_n_s32(zero_point);
  for (int i = 0; i < kCount; i += 16) {
    const int8x16_t bytes = vld1q_s8(from + i);
    const int16x8_t a = vmovl_s8(vget_low_s8(bytes)), b = vmovl_high_s8(bytes);
    const int32x4_t w[4] = {vmovl_s16(vget_low_s16(a)), vmovl_high_s16(a),
                            vmovl_s16(vget_low_s16(b)), vmovl_high_s16(b)};
    for (int j = 0; j < 4; ++j)
      vst1q_f32(to + i + 4 * j, vmulq_f32(vcvtq_f32_s32(vsubq_s32(w[j], zero)), scale));
  }
}
TRY codes_ssubl(const std::int8_t* from, float* to) {
  const float scale_of_all = the_scale;
  const std::int32_t zero_point = the_zero_point;
  const F scale = vdupq_n_f32(scale_of_all);
  const int8x16_t zero = vdupq_n_s8(static_cast<std::int8_t>(zero_point));
  for (int i = 0; i < kCount; i += 16) {
    const int8x16_t bytes = vld1q_s8(from + i);
    const int16x8_t a = vsubl_s8(vget_low_s8(bytes), vget_low_s8(zero)),
                    b = vsubl_high_s8(bytes, zero);
    const int32x4_t w[4] = {vmovl_s16(vget_low_s16(a)), vmovl_high_s16(a),
                            vmovl_s16(vget_low_s16(b)), vmovl_high_s16(b)};
    for (int j = 0; j < 4; ++j) vst1q_f32(to + i + 4 * j, vmulq_f32(vcvtq_f32_s32(w[j]), scale));
  }
}
namespace {
// tbl puts an unsigned code below the exponent of 2^23; subtracting 2^23 is exact.
struct Mantissa {
  uint8x16_t index[4], exponent = vreinterpretq_u8_u32(vdupq_n_u32(0x4B00));
  F base = vdupq_n_f32(static_cast<float>(8388608 + 128 + the_zero_point)),
    scale = vdupq_n_f32(the_scale);
  Mantissa() {
    for (int j = 0; j < 4; ++j) {
      std::uint8_t at[16];
      for (int k = 0; k < 16; ++k)
        at[k] = static_cast<std::uint8_t>(k % 4 == 0 ? 4 * j + k / 4 : k % 4 == 3 ? 17 : 18);
      index[j] = vld1q_u8(at);
    }
  }
  float32x4x4_t operator()(uint8x16_t bytes) const {
    const uint8x16x2_t table = {{veorq_u8(bytes, vdupq_n_u8(0x80)), exponent}};
    float32x4x4_t r;
    for (int j = 0; j < 4; ++j) {
      const F biased = vreinterpretq_f32_u8(vqtbl2q_u8(table, index[j]));
      r.val[j] = vmulq_f32(vsubq_f32(biased, base), scale);
    }
    return r;
  }
};
}  // namespace
TRY codes_tbl_mantissa_str(const std::int8_t* from, float* to) {
  const Mantissa dequantize;
  for (int i = 0; i < kCount; i += 16) {
    const float32x4x4_t r = dequantize(vreinterpretq_u8_s8(vld1q_s8(from + i)));
    for (int j = 0; j < 4; ++j) vst1q_f32(to + i + 4 * j, r.val[j]);
  }
}
TRY codes_tbl_mantissa_st1x4(const std::int8_t* from, float* to) {
  const Mantissa dequantize;
  for (int i = 0; i < kCount; i += 16)
    vst1q_f32_x4(to + i, dequantize(vreinterpretq_u8_s8(vld1q_s8(from + i))));
}
TRY codes_tbl_mantissa_64(const std::int8_t* from, float* to) {
  const Mantissa dequantize;
  for (int i = 0; i < kCount; i += 64) {
    const int8x16x4_t b = vld1q_s8_x4(from + i);
    for (int j = 0; j < 4; ++j)
      vst1q_f32_x4(to + i + 16 * j, dequantize(vreinterpretq_u8_s8(b.val[j])));
  }
}
// tbl puts the code into the highest byte, and scvtf divides by 2^24.
TRY codes_tbl_scvtf24(const std::int8_t* from, float* to) {
  const float scale_of_all = the_scale;
  const std::int32_t zero_point = the_zero_point;
  const F scale = vdupq_n_f32(scale_of_all), zero = vdupq_n_f32(static_cast<float>(zero_point));
  uint8x16_t index[4];
  for (int j = 0; j < 4; ++j) {
    std::uint8_t at[16];
    for (int k = 0; k < 16; ++k) at[k] = static_cast<std::uint8_t>(k % 4 == 3 ? 4 * j + k / 4 : 99);
    index[j] = vld1q_u8(at);
  }
  for (int i = 0; i < kCount; i += 16) {
    const int8x16_t bytes = vld1q_s8(from + i);
    float32x4x4_t r;
    for (int j = 0; j < 4; ++j) {
      const int32x4_t high = vreinterpretq_s32_s8(vqtbl1q_s8(bytes, index[j]));
      r.val[j] = vmulq_f32(vsubq_f32(vcvtq_n_f32_s32(high, 24), zero), scale);
    }
    vst1q_f32_x4(to + i, r);
  }
}
// Rounds once where the others round the product: no kernel may do it.
TRY codes_fma_unequal(const std::int8_t* from, float* to) {
  const float scale_of_all = the_scale;
  const std::int32_t zero_point = the_zero_point;
  const F scale = vdupq_n_f32(scale_of_all),
          offset = vdupq_n_f32(-scale_of_all * static_cast<float>(zero_point));
  for (int i = 0; i < kCount; i += 16) {
    const int8x16_t bytes = vld1q_s8(from + i);
    const int16x8_t a = vmovl_s8(vget_low_s8(bytes)), b = vmovl_high_s8(bytes);
    const int32x4_t w[4] = {vmovl_s16(vget_low_s16(a)), vmovl_high_s16(a),
                            vmovl_s16(vget_low_s16(b)), vmovl_high_s16(b)};
    float32x4x4_t r;
    for (int j = 0; j < 4; ++j) r.val[j] = vfmaq_f32(offset, vcvtq_f32_s32(w[j]), scale);
    vst1q_f32_x4(to + i, r);
  }
}

// int4 codes to float32: a byte has two, the earlier one in its lower half.
TRY int4_compiler(const std::uint8_t* __restrict from, float* __restrict to) {
  const float scale_of_all = the_scale;
  const std::int32_t zero_point = the_zero_point;
  for (int i = 0; i < kCount / 2; ++i) {
    to[2 * i] = static_cast<float>(((from[i] & 15) ^ 8) - 8 - zero_point) * scale_of_all;
    to[2 * i + 1] = static_cast<float>((from[i] >> 4 ^ 8) - 8 - zero_point) * scale_of_all;
  }
}
TRY int4_tbl_mantissa(const std::uint8_t* from, float* to) {
  const std::int32_t zero_point = the_zero_point;
  Mantissa dequantize;
  dequantize.base = vdupq_n_f32(static_cast<float>(8388608 + 8 + zero_point));
  for (int i = 0; i < kCount / 2; i += 16) {
    const uint8x16_t two = veorq_u8(vld1q_u8(from + i), vdupq_n_u8(0x88));
    const uint8x16_t low = vandq_u8(two, vdupq_n_u8(15)), high = vshrq_n_u8(two, 4);
    vst1q_f32_x4(to + 2 * i, dequantize(veorq_u8(vzip1q_u8(low, high), vdupq_n_u8(0x80))));
    vst1q_f32_x4(to + 2 * i + 16, dequantize(veorq_u8(vzip2q_u8(low, high), vdupq_n_u8(0x80))));
  }
}
// The 16 values as four tables of their bytes; st4 puts them side by side.
TRY int4_table_st4(const std::uint8_t* from, float* to) {
  const float scale_of_all = the_scale;
  const std::int32_t zero_point = the_zero_point;
  float values[16];
  for (int c = 0; c < 16; ++c)
    values[c] = static_cast<float>((c ^ 8) - 8 - zero_point) * scale_of_all;
  const uint8x16x4_t table = vld4q_u8(reinterpret_cast<const std::uint8_t*>(values));
  for (int i = 0; i < kCount / 2; i += 16) {
    const uint8x16_t two = vld1q_u8(from + i);
    const uint8x16_t low = vandq_u8(two, vdupq_n_u8(15)), high = vshrq_n_u8(two, 4);
    uint8x16x4_t r;
    for (int half = 0; half < 2; ++half) {
      const uint8x16_t at = half == 0 ? vzip1q_u8(low, high) : vzip2q_u8(low, high);
      for (int j = 0; j < 4; ++j) r.val[j] = vqtbl1q_u8(table.val[j], at);
      vst4q_u8(reinterpret_cast<std::uint8_t*>(to + 2 * i + 16 * half), r);
    }
  }
}

// Copies.
TRY copy_memcpy(const float* from, float* to) {
  std::memcpy(to, from, 4 * kCount);
  asm volatile("" ::: "memory");
}
TRY copy_ldr_str(const float* from, float* to) {
  for (int i = 0; i < kCount; i += 4) {
    vst1q_f32(to + i, vld1q_f32(from + i));
    asm volatile("" ::: "memory");
  }
}
TRY copy_ldp_stp_64(const float* from, float* to) {
  for (int i = 0; i < kCount; i += 16) {
    const F a = vld1q_f32(from + i), b = vld1q_f32(from + i + 4), c = vld1q_f32(from + i + 8),
            d = vld1q_f32(from + i + 12);
    vst1q_f32(to + i, a);
    vst1q_f32(to + i + 4, b);
    vst1q_f32(to + i + 8, c);
    vst1q_f32(to + i + 12, d);
    asm volatile("" ::: "memory");
  }
}
TRY copy_ld1x4_64(const float* from, float* to) {
  for (int i = 0; i < kCount; i += 16) {
    vst1q_f32_x4(to + i, vld1q_f32_x4(from + i));
    asm volatile("" ::: "memory");
  }
}
TRY copy_ld1x4_128(const float* from, float* to) {
  for (int i = 0; i < kCount; i += 32) {
    vst1q_f32_x4(to + i, vld1q_f32_x4(from + i));
    vst1q_f32_x4(to + i + 16, vld1q_f32_x4(from + i + 16));
    asm volatile("" ::: "memory");
  }
}

namespace {
template <class From>
void check(const char* name, void (*run)(const From*, float*), const From* from, int count) {
  const bool reference = std::strstr(name, "_compiler") || std::strstr(name, "_memcpy");
  std::memset(output, 0x55, sizeof output);
  run(from, output);
  const std::size_t bytes = sizeof(float) * static_cast<std::size_t>(count);
  if (reference) std::memcpy(expected, output, bytes);
  std::printf("%s %zu %d\n", name, bytes, std::memcmp(expected, output, bytes) == 0);
}
}  // namespace
#define CHECK(name, from, count) check(#name, name, from, count)

int main() {
  std::uint32_t state = 1;
  for (int i = 0; i < kCount; ++i) {
    state = state * 1664525U + 1013904223U;
    const float choices[] = {0.0F, -0.0F, __builtin_nanf(""), __builtin_nansf(""),
                             -__builtin_inff()};
    const float value = static_cast<float>(static_cast<std::int32_t>(state)) * 1e-9F;
    std::memcpy(&source[i], (state >> 20) % 4 == 0 ? &choices[(state >> 24) % 5] : &value, 4);
    codes[i] = static_cast<std::int8_t>(state >> 24);
    pairs[i / 2] = static_cast<std::uint8_t>(state >> 22);
  }
  CHECK(max_compiler, source, kCount / 4);
  CHECK(max_rows_then_uzp, source, kCount / 4);
  CHECK(max_uzp_one_start, source, kCount / 4);
  CHECK(max_ld2_two_starts, source, kCount / 4);
  CHECK(max_ld2_one_start, source, kCount / 4);
  CHECK(max_ld2_one_start_twice, source, kCount / 4);
  CHECK(max_fmaxnmp_unequal, source, kCount / 4);
  CHECK(codes_compiler, codes, kCount);
  CHECK(codes_sxtl_sub, codes, kCount);
  CHECK(codes_ssubl, codes, kCount);
  CHECK(codes_tbl_mantissa_str, codes, kCount);
  CHECK(codes_tbl_mantissa_st1x4, codes, kCount);
  CHECK(codes_tbl_mantissa_64, codes, kCount);
  CHECK(codes_tbl_scvtf24, codes, kCount);
  CHECK(codes_fma_unequal, codes, kCount);
  CHECK(int4_compiler, pairs, kCount);
  CHECK(int4_tbl_mantissa, pairs, kCount);
  CHECK(int4_table_st4, pairs, kCount);
  CHECK(copy_memcpy, source, kCount);
  CHECK(copy_ldr_str, source, kCount);
  CHECK(copy_ldp_stp_64, source, kCount);
  CHECK(copy_ld1x4_64, source, kCount);
  CHECK(copy_ld1x4_128, source, kCount);
  return 0;
}
