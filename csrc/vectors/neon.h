// The vector class of NEON, which every ARMv8.0-A has: four lanes. vfmaq is never used: it rounds
// once instead of twice.

#ifndef SCISSIONLITE_VECTORS_NEON_H_
#define SCISSIONLITE_VECTORS_NEON_H_

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vectors/scalar.h"

namespace scissionlite {
namespace {

struct Neon {
  static constexpr std::size_t kLanes = 4;
  static constexpr bool kWidensFour = true;
  static constexpr bool kLoadsApart = true;
  static constexpr bool kLooksUp = true;
  using Narrower = Scalar;
  template <class Element, bool average>
  using Pooler = Neon;

  using F = float32x4_t;
  using I = int32x4_t;

  static F set1(float value) noexcept { return vdupq_n_f32(value); }
  static I set1(std::int32_t value) noexcept { return vdupq_n_s32(value); }
  static F load(const float* from) noexcept { return vld1q_f32(from); }
  static F load(const Half* from) noexcept {
    const uint16x4_t bits = vld1_u16(reinterpret_cast<const std::uint16_t*>(from));
    return vcvt_f32_f16(vreinterpret_f16_u16(bits));
  }
  static I load(const std::int32_t* from) noexcept { return vld1q_s32(from); }
  static void store(float* to, F value) noexcept { vst1q_f32(to, value); }
  static void store(Half* to, F value) noexcept {
    const uint16x4_t bits = vreinterpret_u16_f16(vcvt_f16_f32(value));
    vst1_u16(reinterpret_cast<std::uint16_t*>(to), bits);
  }
  static void store_halves(float* low, float* high, F value) noexcept {
    vst1_f32(low, vget_low_f32(value));
    vst1_f32(high, vget_high_f32(value));
  }

  // Compare and select: vmaxq returns NaN if one operand is NaN, vmaxnmq does so for a signalling
  // NaN, and both take +0 as larger than -0.
  static F larger(F x, F acc) noexcept { return vbslq_f32(vcgtq_f32(x, acc), x, acc); }
  static F smaller(F x, F acc) noexcept { return vbslq_f32(vcltq_f32(x, acc), x, acc); }
  static F add(F a, F b) noexcept { return vaddq_f32(a, b); }
  static F mul(F a, F b) noexcept { return vmulq_f32(a, b); }
  static F div(F a, F b) noexcept { return vdivq_f32(a, b); }
  static F one_nan(F x) noexcept { return vbslq_f32(vceqq_f32(x, x), x, set1(__builtin_nanf(""))); }
  static F finite_or(F x, F otherwise) noexcept {
    return vbslq_f32(vcaltq_f32(x, set1(__builtin_inff())), x, otherwise);
  }

  static F evens(F a, F b) noexcept { return vuzp1q_f32(a, b); }
  static F odds(F a, F b) noexcept { return vuzp2q_f32(a, b); }
  static F in_order(F x) noexcept { return x; }
  template <std::size_t window>
  static auto load_apart(const float* from) noexcept {
    if constexpr (window == 2) {
      return vld2q_f32(from);
    } else {
      return vld4q_f32(from);
    }
  }

  // The next steps saturate, so only NaN needs a bound. A product is never a signalling NaN, and
  // for a quiet NaN vmaxnmq returns the other operand.
  static I steps(F value, F factor) noexcept {
    return vcvtnq_s32_f32(vmaxnmq_f32(vmulq_f32(value, factor), set1(-512.0F)));
  }
  static void store_codes(std::int8_t* to, const I (&steps)[4], const I (&zero_points)[4],
                          std::int8_t low, std::int8_t high) noexcept {
    const int16x8_t first =
        vqaddq_s16(to_words(steps[0], steps[1]), to_words(zero_points[0], zero_points[1]));
    const int16x8_t second =
        vqaddq_s16(to_words(steps[2], steps[3]), to_words(zero_points[2], zero_points[3]));
    const int8x16_t codes = vcombine_s8(vqmovn_s16(first), vqmovn_s16(second));
    vst1q_s8(to, vmaxq_s8(vminq_s8(codes, vdupq_n_s8(high)), vdupq_n_s8(low)));
  }
  static void store_codes(std::int8_t* to, I steps, I zero_points, std::int8_t low,
                          std::int8_t high) noexcept {
    const int16x4_t words = vqadd_s16(vqmovn_s32(steps), vqmovn_s32(zero_points));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const int8x8_t codes = vmax_s8(vmin_s8(bytes, vdup_n_s8(high)), vdup_n_s8(low));
    const std::uint32_t four = vget_lane_u32(vreinterpret_u32_s8(codes), 0);
    __builtin_memcpy(to, &four, sizeof four);
  }
  static F dequantize(const std::int8_t* from, F scale, I zero_point) noexcept {
    std::uint32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return dequantize(vmovl_s16(vget_low_s16(words)), scale, zero_point);
  }
  static F dequantize(I code, F scale, I zero_point) noexcept {
    return vmulq_f32(vcvtq_f32_s32(vsubq_s32(code, zero_point)), scale);
  }
  static void widen(const std::int8_t* from, I (&codes)[4]) noexcept {
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t first = vmovl_s8(vget_low_s8(bytes)), second = vmovl_high_s8(bytes);
    codes[0] = vmovl_s16(vget_low_s16(first));
    codes[1] = vmovl_high_s16(first);
    codes[2] = vmovl_s16(vget_low_s16(second));
    codes[3] = vmovl_high_s16(second);
  }
  // The differences from the zero point, which is an int8 too, are exact in 16 bits.
  static void dequantize_eight(const std::int8_t* from, float* to, F scale, I zero_point) noexcept {
    const int16x4_t word = vmovn_s32(zero_point);
    const int8x8_t zeros = vmovn_s16(vcombine_s16(word, word));
    for (int half = 0; half < 2; ++half) {
      const int8x16_t bytes = vld1q_s8(from + 16 * half);
      const int16x8_t words[2] = {vsubl_s8(vget_low_s8(bytes), zeros),
                                  vsubl_high_s8(bytes, vcombine_s8(zeros, zeros))};
      for (int i = 0; i < 2; ++i) {
        float* at = to + 16 * half + 8 * i;
        store(at, vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(words[i]))), scale));
        store(at + 4, vmulq_f32(vcvtq_f32_s32(vmovl_high_s16(words[i])), scale));
      }
    }
  }

  // The 16 values as four tables of their bytes: st4 puts what was looked up side by side.
  using Table = uint8x16x4_t;
  static Table make_table(const float (&values)[16]) noexcept {
    return vld4q_u8(reinterpret_cast<const std::uint8_t*>(values));
  }
  static void look_up(const Int4Pair* from, float* to, const Table& table) noexcept {
    const uint8x16_t pairs = vld1q_u8(&from->codes);
    const uint8x16_t low = vandq_u8(pairs, vdupq_n_u8(15));
    const uint8x16_t high = vshrq_n_u8(pairs, 4);
    const uint8x16_t codes[2] = {vzip1q_u8(low, high), vzip2q_u8(low, high)};
    for (int half = 0; half < 2; ++half) {
      uint8x16x4_t bytes;
      for (int i = 0; i < 4; ++i) bytes.val[i] = vqtbl1q_u8(table.val[i], codes[half]);
      vst4q_u8(reinterpret_cast<std::uint8_t*>(to + 16 * half), bytes);
    }
  }

  template <class Element>
  using Raw = uint8x16_t;
  template <class Element>
  static uint8x16_t load_raw(const Element* from) noexcept {
    return vld1q_u8(reinterpret_cast<const std::uint8_t*>(from));
  }
  template <class Element>
  static void store_raw(Element* to, uint8x16_t value) noexcept {
    vst1q_u8(reinterpret_cast<std::uint8_t*>(to), value);
  }
  template <class Element>
  static void twice(uint8x16_t value, uint8x16_t& first, uint8x16_t& second) noexcept {
    if constexpr (kSame<Element, f32>) {
      const uint32x4_t words = vreinterpretq_u32_u8(value);
      first = vreinterpretq_u8_u32(vzip1q_u32(words, words));
      second = vreinterpretq_u8_u32(vzip2q_u32(words, words));
    } else {
      const uint16x8_t halves = vreinterpretq_u16_u8(value);
      first = vreinterpretq_u8_u16(vzip1q_u16(halves, halves));
      second = vreinterpretq_u8_u16(vzip2q_u16(halves, halves));
    }
  }

 private:
  static int16x8_t to_words(I low, I high) noexcept {
    return vcombine_s16(vqmovn_s32(low), vqmovn_s32(high));
  }
};

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_VECTORS_NEON_H_
