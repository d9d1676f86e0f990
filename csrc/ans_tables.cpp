// From frequencies to the tables of the coder.

#include "ans_tables.h"

#include <stdexcept>
#include <string>

namespace scissionlite {
namespace {

AnsSymbol symbol_of(std::uint32_t frequency, std::uint32_t start) {
  if (frequency == 0) return {};
  return {(std::uint64_t{1} << 44) / frequency + 1, static_cast<std::uint16_t>(frequency),
          static_cast<std::uint16_t>(start)};
}

void fill(const std::uint16_t* frequencies, std::size_t symbols, AnsEncodeTable& encoding,
          AnsDecodeTable& decoding) {
  std::uint32_t start = 0;
  for (std::size_t symbol = 0; symbol < symbols; ++symbol) {
    const std::uint32_t frequency = frequencies[symbol];
    if (frequency >= kAnsTotal - start) {
      throw std::invalid_argument("the frequencies of a table must sum to " +
                                  std::to_string(kAnsTotal) + ", with at least 1 for the escape");
    }
    encoding.symbols[symbol] = symbol_of(frequency, start);
    decoding.steps[symbol] = {frequencies[symbol], static_cast<std::uint16_t>(start)};
    for (std::uint32_t slot = start; slot < start + frequency; ++slot) {
      decoding.symbol_of_slot[slot] = static_cast<std::uint8_t>(symbol);
    }
    start += frequency;
  }
  if (frequencies[symbols] != kAnsTotal - start || start == 0) {
    throw std::invalid_argument("the frequencies of a table must sum to " +
                                std::to_string(kAnsTotal) + ", and one code must have been seen");
  }
  encoding.escape = symbol_of(frequencies[symbols], start);
  decoding.escape_start = static_cast<std::uint16_t>(start);
}

}  // namespace

AnsTables::AnsTables(bool nibbles, std::uint16_t id, const std::uint8_t* table_of_channel,
                     std::size_t channels, const std::uint16_t* frequencies, std::size_t tables)
    : nibbles_(nibbles),
      id_(id),
      channels_(channels),
      table_of_channel_(table_of_channel, table_of_channel + channels),
      encode_tables_(tables),
      decode_tables_(tables) {
  if (channels == 0) throw std::invalid_argument("tables need at least one channel");
  fill_tables(table_of_channel, channels, frequencies);
}

AnsTables::AnsTables(bool nibbles, std::uint16_t id, const std::uint8_t* table_of_class,
                     std::size_t channels, const std::int16_t* bounds,
                     const std::uint16_t* frequencies, std::size_t tables)
    : nibbles_(nibbles),
      id_(id),
      channels_(channels),
      table_of_sum_(channels * kAnsSums),
      encode_tables_(tables),
      decode_tables_(tables) {
  if (channels < 2)
    throw std::invalid_argument("tables with neighbours need at least two channels");
  fill_tables(table_of_class, channels * kAnsClasses, frequencies);
  for (std::size_t channel = 0; channel < channels; ++channel) {
    const std::int16_t* own = bounds + channel * (kAnsClasses - 1);
    std::uint8_t* to = table_of_sum_.data() + channel * kAnsSums;
    for (std::size_t i = 0; i < kAnsSums; ++i) {
      const std::int32_t sum = static_cast<std::int32_t>(i) - kAnsMiddleSum;
      std::size_t reached = 0;
      for (std::size_t n = 0; n < kAnsClasses - 1; ++n) reached += sum >= own[n] ? 1 : 0;
      to[i] = table_of_class[channel * kAnsClasses + reached];
    }
    to[kAnsFirst] = table_of_class[channel * kAnsClasses + kAnsClasses / 2];
  }
}

void AnsTables::fill_tables(const std::uint8_t* named, std::size_t count,
                            const std::uint16_t* frequencies) {
  for (std::size_t i = 0; i < count; ++i) {
    if (named[i] >= encode_tables_.size()) {
      throw std::invalid_argument("a channel names a table that is not there");
    }
  }
  const std::size_t symbols = nibbles_ ? 16 : kAnsSymbols;
  for (std::size_t table = 0; table < encode_tables_.size(); ++table) {
    fill(frequencies + table * (symbols + 1), symbols, encode_tables_[table],
         decode_tables_[table]);
  }
}

AnsParams AnsTables::params(std::size_t count, std::size_t plane, bool channels_last,
                            std::size_t width) const {
  const bool single = channels() == 1;
  AnsParams params = {};
  params.channels = channels();
  params.plane = single ? count : plane;
  params.images = 1;
  if (!single) {
    // Divided one after the other: their product may overflow.
    if (count == 0 || plane == 0 || count % plane != 0 || count / plane % channels() != 0) {
      throw std::invalid_argument("the codes are not those of " + std::to_string(channels()) +
                                  " channels");
    }
    params.images = count / plane / channels();
  }
  if (!table_of_sum_.empty()) {
    if (width == 0 || plane % width != 0) {
      throw std::invalid_argument("a plane is no whole number of rows of " + std::to_string(width) +
                                  " codes");
    }
    params.width = width;
    params.table_of_sum = table_of_sum_.data();
  }
  params.channels_last = channels_last && !single;
  params.nibbles = nibbles_;
  params.id = id_;
  params.table_of_channel = table_of_channel_.data();
  params.encode_tables = encode_tables_.data();
  params.decode_tables = decode_tables_.data();
  return params;
}

}  // namespace scissionlite
