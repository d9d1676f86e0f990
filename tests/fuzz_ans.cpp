// libFuzzer target: the entropy coder on tables, codes and payloads that the fuzzer makes up, in
// blocks of exactly the right size under AddressSanitizer and UndefinedBehaviorSanitizer. Codes
// must come back; bytes that are no code of theirs must be refused, or decode to codes that do.
// `make fuzz`; what it finds becomes an @example in tests/test_ans.py.

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ans_tables.h"
#include "guarded_array.h"

namespace {

using scissionlite::AnsParams;
using scissionlite::AnsStatus;
using scissionlite::AnsTables;
using scissionlite::GuardedArray;
using scissionlite::kAnsClasses;
using scissionlite::kAnsSlack;
using scissionlite::kAnsTotal;
using Bytes = std::vector<unsigned char>;

[[noreturn]] void report(const char* what, const AnsParams& params) {
  std::fprintf(
      stderr,
      "\n%s: images=%zu, channels=%zu, plane=%zu, channels_last=%d, nibbles=%d, width=%zu\n", what,
      params.images, params.channels, params.plane, params.channels_last ? 1 : 0,
      params.nibbles ? 1 : 0, params.width);
  std::abort();
}

// Frequencies of a table that sum to the total: of a few symbols, or of all.
void make_table(FuzzedDataProvider& data, std::size_t symbols, std::vector<std::uint16_t>& to) {
  std::vector<std::uint16_t> table(symbols + 1);
  std::uint32_t left = kAnsTotal - 1;
  const bool every = data.ConsumeBool();
  for (std::size_t symbol = 0; every && symbol < symbols; ++symbol, --left) table[symbol] = 1;
  const auto steps = data.ConsumeIntegralInRange<int>(1, 12);
  for (int i = 0; i < steps && left > 0; ++i) {
    const auto symbol = data.ConsumeIntegralInRange<std::size_t>(0, symbols - 1);
    const auto more = data.ConsumeIntegralInRange<std::uint32_t>(1, left);
    table[symbol] = static_cast<std::uint16_t>(table[symbol] + more);
    left -= more;
  }
  table[symbols] = static_cast<std::uint16_t>(left + 1);
  to.insert(to.end(), table.begin(), table.end());
}

AnsStatus decode(const Bytes& coded, Bytes& codes, const AnsParams& params, std::size_t shift) {
  const GuardedArray from(coded, shift);
  const GuardedArray to(codes.size(), shift);
  auto* made = static_cast<std::uint8_t*>(to.data());
  const auto* given = static_cast<const std::uint8_t*>(from.data());
  const AnsStatus status = ans_decode(given, coded.size(), made, params);
  if (!from.canaries_alive() || !to.canaries_alive()) report("wrote outside", params);
  codes.assign(made, made + codes.size());
  return status;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  FuzzedDataProvider data(bytes, size);
  const bool nibbles = data.ConsumeBool();
  const bool channels_last = data.ConsumeBool();
  const auto channels = data.ConsumeIntegralInRange<std::size_t>(1, 9);
  // Mostly a few codes, sometimes enough for four states.
  const auto plane = data.ConsumeIntegralInRange<std::size_t>(1, data.ConsumeBool() ? 40 : 800);
  const std::size_t count = channels * plane * data.ConsumeIntegralInRange<std::size_t>(1, 2);
  const std::size_t shift = data.ConsumeIntegralInRange<std::size_t>(0, 3);
  const auto number = data.ConsumeIntegralInRange<std::uint8_t>(1, 3);
  std::vector<std::uint16_t> frequencies;
  for (int table = 0; table < number; ++table) make_table(data, nibbles ? 16 : 256, frequencies);
  // Tables by neighbours, with any bounds, in rows of any width that fits.
  const bool neighbours = channels > 1 && data.ConsumeBool();
  std::size_t width = neighbours ? data.ConsumeIntegralInRange<std::size_t>(1, plane) : 1;
  while (plane % width != 0) --width;
  std::vector<std::int16_t> bounds(neighbours ? channels * (kAnsClasses - 1) : 0);
  for (std::int16_t& bound : bounds) bound = data.ConsumeIntegralInRange<std::int16_t>(-300, 300);
  Bytes table_of_channel(channels * (neighbours ? kAnsClasses : 1));
  for (unsigned char& table : table_of_channel) {
    table = data.ConsumeIntegralInRange<std::uint8_t>(0, number - 1);
  }
  const std::uint8_t* named = table_of_channel.data();
  const AnsTables tables =
      neighbours ? AnsTables(nibbles, 7, named, channels, bounds.data(), frequencies.data(), number)
                 : AnsTables(nibbles, 7, named, channels, frequencies.data(), number);
  const AnsParams params = tables.params(count, plane, channels_last, width);

  Bytes codes(tables.packed_bytes(count));
  Bytes coded;
  if (data.ConsumeBool()) {
    for (unsigned char& code : codes) code = data.ConsumeIntegral<unsigned char>();
    if (nibbles && count % 2 != 0) codes.back() &= 15;
    const GuardedArray from(codes, shift);
    const GuardedArray to(data.ConsumeBool() ? 3 * count + kAnsSlack + 32 : codes.size(), shift);
    auto* made = static_cast<std::uint8_t*>(to.data());
    const std::size_t start =
        ans_encode(static_cast<const std::uint8_t*>(from.data()), made, to.size(), params);
    if (!from.canaries_alive() || !to.canaries_alive()) report("wrote outside", params);
    if (start == to.size()) {
      if (to.size() > codes.size()) report("does not fit where it must", params);
      return 0;
    }
    coded.assign(made + start, made + to.size());
    Bytes back(codes.size());
    if (decode(coded, back, params, shift) != AnsStatus::kDone || back != codes) {
      report("the codes do not come back", params);
    }
    if (data.ConsumeBool()) coded.resize(data.ConsumeIntegralInRange<std::size_t>(0, coded.size()));
    if (!coded.empty()) {
      coded[data.ConsumeIntegralInRange<std::size_t>(0, coded.size() - 1)] ^=
          data.ConsumeIntegral<unsigned char>();
    }
  } else {
    coded = data.ConsumeRemainingBytes<unsigned char>();
    if (coded.size() >= 2) coded[0] = 7, coded[1] = 0;
  }
  Bytes damaged(codes.size());
  decode(coded, damaged, params, shift);
  return 0;
}
