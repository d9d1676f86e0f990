// The coder with neighbours. Each state has a channel of its own, and the states take turns: the
// code to the left is then one that the same state has decoded, and no state waits for another.

#include "ans_neighbours.h"

#include <cstring>
#include <type_traits>

#include "ans_steps.h"

namespace scissionlite {
namespace {

using namespace ans_steps;

// A code's number from its bits, and back; two codes of four bits share a byte.
template <bool kNibbles>
struct Signed;

template <>
struct Signed<false> {
  static std::int32_t of(std::uint32_t bits) noexcept { return static_cast<std::int8_t>(bits); }
  static void store(std::uint8_t* codes, std::size_t i, std::uint32_t symbol) noexcept {
    codes[i] = static_cast<std::uint8_t>(symbol);
  }
};

template <>
struct Signed<true> {
  static std::int32_t of(std::uint32_t bits) noexcept {
    return static_cast<std::int32_t>(bits ^ 8U) - 8;
  }
  // The other half of the byte may have been written before; both begin as zeros.
  static void store(std::uint8_t* codes, std::size_t i, std::uint32_t symbol) noexcept {
    codes[i / 2] = static_cast<std::uint8_t>(codes[i / 2] | symbol << (4 * (i % 2)));
  }
};

// Some channels of an image, one for each state. The last group may have fewer.
struct Group {
  std::size_t first;         // index of its first code
  std::size_t channels;      // how many
  std::size_t channel_step;  // from a channel's code to the next one's
  std::size_t step;          // from a code to the one to its right
  std::size_t row;           // from a code to the one below
  std::size_t width;
  std::size_t rows;
  const std::uint8_t* table_of_sum;

  Group(const AnsParams& params, std::size_t number, std::size_t states) noexcept
      : channel_step(params.channels_last ? 1 : params.plane),
        step(params.channels_last ? params.channels : 1),
        row(params.width * step),
        width(params.width),
        rows(params.plane / params.width) {
    const std::size_t per_image = count_in_image(params, states);
    const std::size_t channel = number % per_image * states;
    const std::size_t left = params.channels - channel;
    channels = left < states ? left : states;
    first = number / per_image * params.channels * params.plane + channel * channel_step;
    table_of_sum = params.table_of_sum + channel * kAnsSums;
  }

  static std::size_t count_in_image(const AnsParams& params, std::size_t states) noexcept {
    return (params.channels + states - 1) / states;
  }
  static std::size_t count(const AnsParams& params, std::size_t states) noexcept {
    return params.images * count_in_image(params, states);
  }

  // The number of the table of a code of channel k with such neighbours.
  std::size_t table(std::size_t k, std::int32_t left, std::int32_t above) const noexcept {
    return table_of_sum[k * kAnsSums + static_cast<std::size_t>(left + above + kAnsMiddleSum)];
  }
  std::size_t table_of_first(std::size_t k) const noexcept {
    return table_of_sum[k * kAnsSums + kAnsFirst];
  }
};

// Both work on copies of the states: so they stay in registers, whatever bytes are written.
// kChannels is the number of the group's channels; kFew if it is only known at run time.
constexpr std::size_t kFew = 0;
constexpr std::size_t kMostStates = 4;

template <std::size_t kChannels>
constexpr std::size_t room_for = kChannels == kFew ? kMostStates : kChannels;

template <std::size_t kChannels>
std::size_t channels_of(const Group& group) noexcept {
  return kChannels == kFew ? group.channels : kChannels;
}

// Returns where the next words go; null without room.
template <bool kNibbles, std::size_t kChannels>
std::uint8_t* encode_group(const std::uint8_t* codes, const std::uint8_t* begin, std::uint8_t* to,
                           std::uint32_t* states, const Group& given,
                           const AnsEncodeTable* tables) noexcept {
  using Access = Codes<kNibbles>;
  const Group group = given;
  const std::size_t channels = channels_of<kChannels>(group);
  std::uint32_t own[room_for<kChannels>];
  for (std::size_t k = 0; k < channels; ++k) own[k] = states[k];
  const auto code_at = [codes](std::size_t i) noexcept {
    return Signed<kNibbles>::of(Access::load(codes, i));
  };
  // Puts the codes at a place of all channels, of which table(k, i) is the table.
  const auto put_all = [&](std::size_t place, auto table) noexcept {
    for (std::size_t k = channels; k-- > 0;) {
      const std::size_t i = place + k * group.channel_step;
      push_code<Access::kBits>(own[k], to, Access::load(codes, i), tables[table(k, i)]);
    }
  };
  for (std::size_t y = group.rows; y-- > 0;) {
    const std::size_t start = group.first + y * group.row;
    for (std::size_t x = group.width; x-- > 1;) {
      if (to - begin < room_of(channels)) return nullptr;
      put_all(start + x * group.step, [&](std::size_t k, std::size_t i) noexcept {
        const std::int32_t left = code_at(i - group.step);
        return group.table(k, left, y > 0 ? code_at(i - group.row) : left);
      });
    }
    if (to - begin < room_of(channels)) return nullptr;
    put_all(start, [&](std::size_t k, std::size_t i) noexcept {
      if (y == 0) return group.table_of_first(k);
      const std::int32_t above = code_at(i - group.row);
      return group.table(k, above, above);
    });
  }
  for (std::size_t k = 0; k < channels; ++k) states[k] = own[k];
  return to;
}

template <bool kNibbles, std::size_t kChannels>
struct GroupDecoder {
  Words words;
  std::uint32_t states[room_for<kChannels>];
  std::int32_t left[room_for<kChannels>];
  std::uint8_t* codes;
  const Group group;
  const AnsDecodeTable* tables;

  std::int32_t above(std::size_t i) const noexcept {
    return Signed<kNibbles>::of(Codes<kNibbles>::load(codes, i - group.row));
  }

  // Takes the codes at a place of all channels. kChecked: words may be missing.
  template <bool kChecked, class Table>
  void take(std::size_t place, Table table) noexcept {
    const std::size_t channels = channels_of<kChannels>(group);
    for (std::size_t k = 0; k < channels; ++k) {
      const std::size_t i = place + k * group.channel_step;
      const std::uint32_t symbol =
          pop<Codes<kNibbles>::kBits, kChecked>(states[k], words, tables[table(k, i)]);
      Signed<kNibbles>::store(codes, i, symbol);
      left[k] = Signed<kNibbles>::of(symbol);
    }
  }

  template <bool kChecked>
  void take_row(std::size_t y) noexcept {
    std::size_t place = group.first + y * group.row;
    const std::size_t end = place + group.row;
    if (y == 0) {
      take<kChecked>(place, [&](std::size_t k, std::size_t) { return group.table_of_first(k); });
      while ((place += group.step) < end) {
        take<kChecked>(
            place, [&](std::size_t k, std::size_t) { return group.table(k, left[k], left[k]); });
      }
      return;
    }
    take<kChecked>(
        place, [&](std::size_t k, std::size_t i) { return group.table(k, above(i), above(i)); });
    while ((place += group.step) < end) {
      take<kChecked>(
          place, [&](std::size_t k, std::size_t i) { return group.table(k, left[k], above(i)); });
    }
  }
};

template <bool kNibbles, std::size_t kChannels>
void decode_group(Words& words, std::uint8_t* codes, std::uint32_t* states, const Group& group,
                  const AnsDecodeTable* tables) noexcept {
  GroupDecoder<kNibbles, kChannels> decoder{words, {}, {}, codes, group, tables};
  const std::size_t channels = channels_of<kChannels>(group);
  for (std::size_t k = 0; k < channels; ++k) decoder.states[k] = states[k];
  for (std::size_t y = 0; y < group.rows; ++y) {
    // A symbol takes two words at most.
    if (decoder.words.left() >= 2 * channels * group.width) {
      decoder.template take_row<false>(y);
    } else {
      decoder.template take_row<true>(y);
    }
  }
  for (std::size_t k = 0; k < channels; ++k) states[k] = decoder.states[k];
  words = decoder.words;
}

// Calls work(n) with n a constant: the number of the group's channels, or kFew.
template <std::size_t kStates, class Work>
void with_channels(std::size_t channels, Work work) noexcept {
  if (channels == kStates) {
    work(std::integral_constant<std::size_t, kStates>{});
  } else if constexpr (kStates > 1) {
    work(std::integral_constant<std::size_t, kFew>{});
  }
}

template <bool kNibbles, std::size_t kStates>
std::size_t encode(const std::uint8_t* codes, std::uint8_t* begin, std::size_t size,
                   const AnsParams& params) noexcept {
  std::uint32_t states[kStates];
  for (std::uint32_t& state : states) state = kAnsLow;
  std::uint8_t* to = begin + size;
  for (std::size_t number = Group::count(params, kStates); number-- > 0 && to != nullptr;) {
    const Group group(params, number, kStates);
    with_channels<kStates>(group.channels, [&](auto channels) noexcept {
      to = encode_group<kNibbles, decltype(channels)::value>(codes, begin, to, states, group,
                                                             params.encode_tables);
    });
  }
  return to == nullptr ? size : finish(states, begin, to, size, params.id);
}

template <bool kNibbles, std::size_t kStates>
AnsStatus decode(const std::uint8_t* from, std::size_t size, std::uint8_t* codes,
                 const AnsParams& params) noexcept {
  std::uint32_t states[kStates];
  Words words{};
  const AnsStatus begun = begin(from, size, params.id, states, words);
  if (begun != AnsStatus::kDone) return begun;
  const std::size_t count = params.images * params.channels * params.plane;
  if (kNibbles) std::memset(codes, 0, count / 2 + count % 2);
  for (std::size_t number = 0; number < Group::count(params, kStates); ++number) {
    const Group group(params, number, kStates);
    with_channels<kStates>(group.channels, [&](auto channels) noexcept {
      decode_group<kNibbles, decltype(channels)::value>(words, codes, states, group,
                                                        params.decode_tables);
    });
    if (words.ended) return AnsStatus::kTruncated;
  }
  return verdict(states, words);
}

}  // namespace

std::size_t ans_encode_by_neighbours(const std::uint8_t* codes, std::uint8_t* to, std::size_t size,
                                     const AnsParams& params) noexcept {
  const bool interleaved = is_interleaved(params);
  if (params.nibbles) {
    return interleaved ? encode<true, kMostStates>(codes, to, size, params)
                       : encode<true, 1>(codes, to, size, params);
  }
  return interleaved ? encode<false, kMostStates>(codes, to, size, params)
                     : encode<false, 1>(codes, to, size, params);
}

AnsStatus ans_decode_by_neighbours(const std::uint8_t* from, std::size_t size, std::uint8_t* codes,
                                   const AnsParams& params) noexcept {
  const bool interleaved = is_interleaved(params);
  if (params.nibbles) {
    return interleaved ? decode<true, kMostStates>(from, size, codes, params)
                       : decode<true, 1>(from, size, codes, params);
  }
  return interleaved ? decode<false, kMostStates>(from, size, codes, params)
                     : decode<false, 1>(from, size, codes, params);
}

}  // namespace scissionlite
