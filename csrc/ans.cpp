// The coder. A symbol's table is that of its channel, so a run over the codes goes by segments: a
// plane, which has one table, or with channels last a pixel, in which every code has its own.

#include "ans.h"

namespace scissionlite {
namespace {

// Symbol i belongs to state i % kStates. A group is one symbol of each state.
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

// The table of each code of a segment.
template <class Table>
struct OneTable {
  const Table* table;
  OneTable(const Table* tables, const AnsParams& params, std::size_t segment) noexcept
      : table(tables + params.table_of_channel[segment % params.channels]) {}
  const Table& of(std::size_t) const noexcept { return *table; }
};

template <class Table>
struct TableOfChannel {
  const Table* tables;
  const std::uint8_t* table_of_channel;
  TableOfChannel(const Table* all, const AnsParams& params, std::size_t) noexcept
      : tables(all), table_of_channel(params.table_of_channel) {}
  const Table& of(std::size_t i) const noexcept { return tables[table_of_channel[i]]; }
};

struct Segments {
  std::size_t count;
  std::size_t length;
  explicit Segments(const AnsParams& params) noexcept
      : count(params.images * (params.channels_last ? params.plane : params.channels)),
        length(params.channels_last ? params.channels : params.plane) {}
};

// --- encoding: from the last code to the first, words from the end of the buffer downwards

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
void push_escaped(std::uint32_t& state, std::uint8_t*& to, std::uint32_t code,
                  const AnsSymbol& escape) noexcept {
  constexpr std::uint32_t kFrequency = kAnsTotal >> kBits;
  const AnsSymbol raw = {(std::uint64_t{1} << 44) / kFrequency + 1,
                         static_cast<std::uint16_t>(kFrequency),
                         static_cast<std::uint16_t>(code * kFrequency)};
  push(state, to, raw);
  push(state, to, escape);
}

template <bool kNibbles, std::size_t kStates, template <class> class Tables>
struct Encode {
  static std::size_t run(const std::uint8_t* codes, std::uint8_t* begin, std::size_t size,
                         const AnsParams& params) noexcept;
};

template <bool kNibbles, std::size_t kStates, template <class> class Tables>
std::size_t Encode<kNibbles, kStates, Tables>::run(const std::uint8_t* codes,
                                                   std::uint8_t* const begin, std::size_t size,
                                                   const AnsParams& params) noexcept {
  using Access = Codes<kNibbles>;
  std::uint32_t states[kStates];
  for (std::uint32_t& state : states) state = kAnsLow;
  std::uint8_t* to = begin + size;
  const Segments segments(params);
  const auto put = [&](std::uint32_t& state, std::size_t i, const AnsEncodeTable& table) noexcept {
    const std::uint32_t code = Access::load(codes, i);
    const AnsSymbol& symbol = table.symbols[code];
    if (__builtin_expect(symbol.frequency != 0, 1)) {
      push(state, to, symbol);
    } else {
      push_escaped<Access::kBits>(state, to, code, table.escape);
    }
  };
  for (std::size_t segment = segments.count; segment-- > 0;) {
    const Tables<AnsEncodeTable> tables(params.encode_tables, params, segment);
    const std::size_t first = segment * segments.length;
    std::size_t j = segments.length;
    const auto put_one = [&]() noexcept {
      --j;
      put(states[(first + j) % kStates], first + j, tables.of(j));
    };
    // A group writes at most four bytes a symbol, and the states follow.
    constexpr std::ptrdiff_t kRoom = 3 * 4 * kStates;
    static_assert(kRoom + kAnsHeader <= kAnsSlack, "the room is what the slack promises");
    if (to - begin < kRoom) return size;
    while (j > 0 && (first + j) % kStates != 0) put_one();
    while (j >= kStates) {
      if (to - begin < kRoom) return size;
      j -= kStates;
      for (std::size_t k = kStates; k-- > 0;) put(states[k], first + j + k, tables.of(j + k));
    }
    if (to - begin < kRoom) return size;
    while (j > 0) put_one();
  }
  if (to - begin < static_cast<std::ptrdiff_t>(4 * kStates + kAnsHeader)) return size;
  for (std::size_t k = kStates; k-- > 0;) {
    to -= 4;
    put_word(to, states[k]);
    put_word(to + 2, states[k] >> 16);
  }
  to -= kAnsHeader;
  put_word(to, params.id);
  return static_cast<std::size_t>(to - begin);
}

// --- decoding: from the first code to the last

inline std::uint32_t word_at(const std::uint8_t* from) noexcept {
  return static_cast<std::uint32_t>(from[0]) | static_cast<std::uint32_t>(from[1]) << 8;
}

// The words that are left.
struct Words {
  const std::uint8_t* from;
  const std::uint8_t* end;
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
std::uint32_t pop(std::uint32_t& state, Words& words, const AnsDecodeTable& table) noexcept {
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

template <bool kNibbles, std::size_t kStates, template <class> class Tables>
struct Decode {
  static AnsStatus run(const std::uint8_t* from, std::size_t size, std::uint8_t* codes,
                       const AnsParams& params) noexcept;
};

template <bool kNibbles, std::size_t kStates, template <class> class Tables>
AnsStatus Decode<kNibbles, kStates, Tables>::run(const std::uint8_t* from, std::size_t size,
                                                 std::uint8_t* codes,
                                                 const AnsParams& params) noexcept {
  using Access = Codes<kNibbles>;
  if (size < kAnsHeader) return AnsStatus::kTruncated;
  if (word_at(from) != params.id) return AnsStatus::kOtherTables;
  if (size < kAnsHeader + 4 * kStates) return AnsStatus::kTruncated;
  if (size % 2 != 0) return AnsStatus::kTrailing;
  std::uint32_t states[kStates];
  for (std::size_t k = 0; k < kStates; ++k) {
    const std::uint8_t* at = from + kAnsHeader + 4 * k;
    states[k] = word_at(at) | word_at(at + 2) << 16;
    if (states[k] < kAnsLow) return AnsStatus::kAltered;
  }
  Words words{from + kAnsHeader + 4 * kStates, from + size};
  const Segments segments(params);
  for (std::size_t segment = 0; segment < segments.count; ++segment) {
    const Tables<AnsDecodeTable> tables(params.decode_tables, params, segment);
    const std::size_t first = segment * segments.length;
    std::size_t j = 0;
    const auto take_one = [&]() noexcept {
      std::uint32_t& state = states[(first + j) % kStates];
      const std::uint32_t symbol = pop<Access::kBits, true>(state, words, tables.of(j));
      Access::store(codes, first + j, symbol);
      ++j;
    };
    while (j < segments.length && (first + j) % kStates != 0) take_one();
    // A symbol takes two words at most.
    while (j + kStates <= segments.length && words.left() >= 2 * kStates) {
      for (std::size_t k = 0; k < kStates; ++k) {
        const std::uint32_t symbol = pop<Access::kBits, false>(states[k], words, tables.of(j + k));
        Access::store(codes, first + j + k, symbol);
      }
      j += kStates;
    }
    while (j < segments.length) take_one();
    if (words.ended) return AnsStatus::kTruncated;
  }
  if (words.from != words.end) return AnsStatus::kTrailing;
  for (const std::uint32_t state : states) {
    if (state != kAnsLow) return AnsStatus::kAltered;
  }
  return AnsStatus::kDone;
}

template <template <bool, std::size_t, template <class> class> class Work, bool kNibbles,
          std::size_t kStates, class... Arguments>
auto in_order(const AnsParams& params, Arguments... arguments) noexcept {
  return params.channels_last ? Work<kNibbles, kStates, TableOfChannel>::run(arguments..., params)
                              : Work<kNibbles, kStates, OneTable>::run(arguments..., params);
}

// Calls the version for some parameters.
template <template <bool, std::size_t, template <class> class> class Work, class... Arguments>
auto choose(const AnsParams& params, Arguments... arguments) noexcept {
  const bool interleaved = params.images * params.channels * params.plane >= kAnsInterleaved;
  if (params.nibbles) {
    return interleaved ? in_order<Work, true, 4>(params, arguments...)
                       : in_order<Work, true, 1>(params, arguments...);
  }
  return interleaved ? in_order<Work, false, 4>(params, arguments...)
                     : in_order<Work, false, 1>(params, arguments...);
}

}  // namespace

std::size_t ans_encode(const std::uint8_t* codes, std::uint8_t* to, std::size_t size,
                       const AnsParams& params) noexcept {
  return choose<Encode>(params, codes, to, size);
}

AnsStatus ans_decode(const std::uint8_t* from, std::size_t size, std::uint8_t* codes,
                     const AnsParams& params) noexcept {
  return choose<Decode>(params, from, size, codes);
}

}  // namespace scissionlite
