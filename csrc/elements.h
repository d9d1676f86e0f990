// The elements of feature maps and payloads, and what the algorithms ask about their types.

#ifndef SCISSIONLITE_ELEMENTS_H_
#define SCISSIONLITE_ELEMENTS_H_

#include <cstddef>
#include <cstdint>

namespace scissionlite {

// An IEEE 754 binary16. It is only stored; arithmetic is in float32.
struct Half {
  std::uint16_t bits;
};

// Two int4 codes, the earlier one in the lower four bits.
struct Int4Pair {
  std::uint8_t codes;
};

// As the names of the kernels abbreviate them.
using f32 = float;
using f16 = Half;
using i8 = std::int8_t;
using i4 = Int4Pair;

// Unnamed, as in every header that an ISA's file includes (vectors/scalar.h says why).
namespace {

// std::is_same, without the standard library.
template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// Whether an element holds integer codes, which have a scale and a zero point.
template <class Element>
constexpr bool kHoldsCodes = kSame<Element, i8> || kSame<Element, i4>;

struct CodeRange {
  std::int8_t low, high;
};
constexpr CodeRange kInt8Codes = {-128, 127};
constexpr CodeRange kInt4Codes = {-8, 7};

}  // namespace
}  // namespace scissionlite

#endif  // SCISSIONLITE_ELEMENTS_H_
