// The coder. A symbol's table is that of its channel, so a run over the codes goes by segments: a
// plane, which has one table, or with channels last a pixel, in which every code has its own.

#include "ans.h"

#include "ans_neighbours.h"
#include "ans_steps.h"

namespace scissionlite {
namespace {

using namespace ans_steps;

// Symbol i belongs to state i % kStates. A group is one symbol of each state.

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
    push_code<Access::kBits>(state, to, Access::load(codes, i), table);
  };
  for (std::size_t segment = segments.count; segment-- > 0;) {
    const Tables<AnsEncodeTable> tables(params.encode_tables, params, segment);
    const std::size_t first = segment * segments.length;
    std::size_t j = segments.length;
    const auto put_one = [&]() noexcept {
      --j;
      put(states[(first + j) % kStates], first + j, tables.of(j));
    };
    constexpr std::ptrdiff_t kRoom = room_of(kStates);
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
  return finish(states, begin, to, size, params.id);
}

// --- decoding: from the first code to the last

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
  std::uint32_t states[kStates];
  Words words{};
  const AnsStatus begun = begin(from, size, params.id, states, words);
  if (begun != AnsStatus::kDone) return begun;
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
  return verdict(states, words);
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
  const bool interleaved = is_interleaved(params);
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
  if (params.table_of_sum != nullptr) return ans_encode_by_neighbours(codes, to, size, params);
  return choose<Encode>(params, codes, to, size);
}

AnsStatus ans_decode(const std::uint8_t* from, std::size_t size, std::uint8_t* codes,
                     const AnsParams& params) noexcept {
  if (params.table_of_sum != nullptr) return ans_decode_by_neighbours(from, size, codes, params);
  return choose<Decode>(params, from, size, codes);
}

}  // namespace scissionlite
