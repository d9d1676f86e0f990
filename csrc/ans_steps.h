// The steps of the entropy coder and what stands before and after them, for both orders of codes.

#ifndef SCISSIONLITE_ANS_STEPS_H_
#define SCISSIONLITE_ANS_STEPS_H_

#include "ans.h"

namespace scissionlite::ans_steps {

inline bool is_interleaved(const AnsParams& params) noexcept {
  return params.images * params.channels * params.plane >= kAnsInterleaved;
}

template <bool kNibbles>
struct Codes;

template <>
struct Codes<false> {
  static std::uint32_t load(const std::uint8_t* codes, std::size_t i) noexcept { return codes[i]; }
  static void store(std::uint8_t* codes, std::size_t i, std::uint32_t symbol) noexcept {
    codes[i] = static_cast<std::uint8_t>(symbol);
  }
  static constexpr std::uint32_t kBits = 8;
};

template <>
struct Codes<true> {
  static std::uint32_t load(const std::uint8_t* codes, std::size_t i) noexcept {
    return (static_cast<std::uint32_t>(codes[i / 2]) >> (4 * (i % 2))) & 15U;
  }
  static void store(std::uint8_t* codes, std::size_t i, std::uint32_t symbol) noexcept {
    // The lower half comes first and clears the upper one.
    const std::uint32_t before = i % 2 == 0 ? 0U : codes[i / 2];
    codes[i / 2] = static_cast<std::uint8_t>(before | symbol << (4 * (i % 2)));
  }
  static constexpr std::uint32_t kBits = 4;
};

// --- encoding

inline void put_word(std::uint8_t* to, std::uint32_t word) noexcept {
  to[0] = static_cast<std::uint8_t>(word);
  to[1] = static_cast<std::uint8_t>(word >> 8);
}

inline void push(std::uint32_t& state, std::uint8_t*& to, const AnsSymbol& symbol) noexcept {
  const std::uint32_t frequency = symbol.frequency;
  std::uint32_t x = state;
  // Written in any case, kept if the state is too large: a branch would often be mispredicted.
  put_word(to - 2, x);
  const std::uint32_t full = x >= frequency << (32 - kAnsBits) ? 1 : 0;
  to -= 2 * full;
  x >>= 16 * full;
  // x / frequency, exactly: x < frequency * 2^20, so the product is below 2^64, and the error of
  // the reciprocal, at most frequency, adds less than 1 / frequency.
  const auto quotient = static_cast<std::uint32_t>((x * symbol.reciprocal) >> 44);
  state = x + symbol.start + quotient * (kAnsTotal - frequency);
}

// A symbol that the table has not seen: the escape, and then the code itself, all codes alike.
template <std::uint32_t kBits>
inline void push_escaped(std::uint32_t& state, std::uint8_t*& to, std::uint32_t code,
                         const AnsSymbol& escape) noexcept {
  constexpr std::uint32_t kFrequency = kAnsTotal >> kBits;
  const AnsSymbol raw = {(std::uint64_t{1} << 44) / kFrequency + 1,
                         static_cast<std::uint16_t>(kFrequency),
                         static_cast<std::uint16_t>(code * kFrequency)};
  push(state, to, raw);
  push(state, to, escape);
}

template <std::uint32_t kBits>
inline void push_code(std::uint32_t& state, std::uint8_t*& to, std::uint32_t code,
                      const AnsEncodeTable& table) noexcept {
  const AnsSymbol& symbol = table.symbols[code];
  if (__builtin_expect(symbol.frequency != 0, 1)) {
    push(state, to, symbol);
  } else {
    push_escaped<kBits>(state, to, code, table.escape);
  }
}

// Bytes that must be left before a group of one symbol for each state, and before the states.
constexpr std::ptrdiff_t room_of(std::size_t states) noexcept {
  // A group writes at most four bytes a symbol, and the states follow.
  return static_cast<std::ptrdiff_t>(3 * 4 * states);
}
static_assert(room_of(4) + kAnsHeader <= kAnsSlack, "the room is what the slack promises");

// Writes the states and the header; returns where the result starts, or the size without room.
template <std::size_t kStates>
std::size_t finish(const std::uint32_t (&states)[kStates], std::uint8_t* begin, std::uint8_t* to,
                   std::size_t size, std::uint16_t id) noexcept {
  if (to - begin < static_cast<std::ptrdiff_t>(4 * kStates + kAnsHeader)) return size;
  for (std::size_t k = kStates; k-- > 0;) {
    to -= 4;
    put_word(to, states[k]);
    put_word(to + 2, states[k] >> 16);
  }
  to -= kAnsHeader;
  put_word(to, id);
  return static_cast<std::size_t>(to - begin);
}

// --- decoding

inline std::uint32_t word_at(const std::uint8_t* from) noexcept {
  return static_cast<std::uint32_t>(from[0]) | static_cast<std::uint32_t>(from[1]) << 8;
}

// The words that are left.
struct Words {
  const std::uint8_t* from = nullptr;
  const std::uint8_t* end = nullptr;
  bool ended = false;
  std::size_t left() const noexcept { return static_cast<std::size_t>(end - from) / 2; }
  // Raises a state that is too low. kChecked: words may be missing.
  template <bool kChecked>
  void refill(std::uint32_t& x) noexcept {
    const bool low = x < kAnsLow;
    if constexpr (kChecked) {
      if (low && from == end) {
        ended = true;
        x = kAnsLow;
        return;
      }
      if (!low) return;
      x = x << 16 | word_at(from);
      from += 2;
    } else {
      // Read in any case: a branch would often be mispredicted.
      const std::uint32_t one = low ? 1 : 0;
      x = x << (16 * one) | (word_at(from) & (0U - one));
      from += 2 * one;
    }
  }
};

template <std::uint32_t kBits, bool kChecked>
inline std::uint32_t pop(std::uint32_t& state, Words& words, const AnsDecodeTable& table) noexcept {
  constexpr std::uint32_t kMask = kAnsTotal - 1;
  const std::uint32_t slot = state & kMask;
  if (__builtin_expect(slot >= table.escape_start, 0)) {
    const std::uint32_t frequency = kAnsTotal - table.escape_start;
    state = frequency * (state >> kAnsBits) + slot - table.escape_start;
    words.refill<kChecked>(state);
    constexpr std::uint32_t kFrequency = kAnsTotal >> kBits;
    const std::uint32_t code = (state & kMask) / kFrequency;
    state = kFrequency * (state >> kAnsBits) + state % kFrequency;
    words.refill<kChecked>(state);
    return code;
  }
  const std::uint32_t symbol = table.symbol_of_slot[slot];
  const AnsDecodeTable::Step step = table.steps[symbol];
  state = step.frequency * (state >> kAnsBits) + slot - step.start;
  words.refill<kChecked>(state);
  return symbol;
}

// Reads the header and the states.
template <std::size_t kStates>
AnsStatus begin(const std::uint8_t* from, std::size_t size, std::uint16_t id,
                std::uint32_t (&states)[kStates], Words& words) noexcept {
  if (size < kAnsHeader) return AnsStatus::kTruncated;
  if (word_at(from) != id) return AnsStatus::kOtherTables;
  if (size < kAnsHeader + 4 * kStates) return AnsStatus::kTruncated;
  if (size % 2 != 0) return AnsStatus::kTrailing;
  for (std::size_t k = 0; k < kStates; ++k) {
    const std::uint8_t* at = from + kAnsHeader + 4 * k;
    states[k] = word_at(at) | word_at(at + 2) << 16;
    if (states[k] < kAnsLow) return AnsStatus::kAltered;
  }
  words = {from + kAnsHeader + 4 * kStates, from + size};
  return AnsStatus::kDone;
}

// Whether the words and the states end where they should.
template <std::size_t kStates>
AnsStatus verdict(const std::uint32_t (&states)[kStates], const Words& words) noexcept {
  if (words.from != words.end) return AnsStatus::kTrailing;
  for (const std::uint32_t state : states) {
    if (state != kAnsLow) return AnsStatus::kAltered;
  }
  return AnsStatus::kDone;
}

}  // namespace scissionlite::ans_steps

#endif  // SCISSIONLITE_ANS_STEPS_H_
