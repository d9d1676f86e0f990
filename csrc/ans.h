// Entropy coding of packed int8 and int4 codes with static tables: interleaved rANS.
//
// Sources: J. Duda, "Asymmetric numeral systems", arXiv 1311.2540, section 3 (the range variant);
// F. Giesen, "Interleaved entropy coders", arXiv 1402.3392. docs/numerics.md ("Entropy coding")
// states every step. All of it is integer arithmetic, so the bytes are the same on every machine;
// there are no versions for single ISAs, because each step depends on the one before it.

#ifndef SCISSIONLITE_ANS_H_
#define SCISSIONLITE_ANS_H_

#include <cstddef>
#include <cstdint>

namespace scissionlite {

constexpr std::uint32_t kAnsBits = 12;
constexpr std::uint32_t kAnsTotal = 1U << kAnsBits;  // sum of the frequencies of a table
constexpr std::uint32_t kAnsLow = 1U << 16;          // lowest state; the highest is 2^32 - 1
constexpr std::size_t kAnsSymbols = 256;
// Codes from which on there are four interleaved states instead of one. Each state costs two bytes.
constexpr std::size_t kAnsInterleaved = 2048;
// Bytes before the states: the number of the tables.
constexpr std::size_t kAnsHeader = 2;
// Bytes that ans_encode needs beyond those that it may use.
constexpr std::size_t kAnsSlack = 64;

// Classes of a code's neighbours, by the sum of the codes to its left and above.
constexpr std::size_t kAnsClasses = 9;
constexpr std::int32_t kAnsMiddleSum = 256;  // the sums are from -256 to 254
constexpr std::size_t kAnsSums = 512;
constexpr std::size_t kAnsFirst = 511;  // the place of a code that has neither neighbour

// One symbol of an encoder's table. A frequency of zero: the table has not seen it.
struct AnsSymbol {
  std::uint64_t reciprocal;  // floor(2^44 / frequency) + 1
  std::uint16_t frequency;
  std::uint16_t start;  // sum of the frequencies of the symbols before it
};

struct AnsEncodeTable {
  AnsSymbol symbols[kAnsSymbols];
  AnsSymbol escape;
};

struct AnsDecodeTable {
  struct Step {
    std::uint16_t frequency;
    std::uint16_t start;
  };
  std::uint8_t symbol_of_slot[kAnsTotal];
  Step steps[kAnsSymbols];
  std::uint16_t escape_start;  // the escape has the slots from here on
};

struct AnsParams {
  // The codes are those of a feature map, in the order of its layout.
  std::size_t images;
  std::size_t channels;
  std::size_t plane;  // codes of one channel of one image
  bool channels_last;
  bool nibbles;  // two codes a byte, as int4 is packed
  std::uint16_t id;
  std::size_t width;                     // codes of a row; only for a table_of_sum
  const std::uint8_t* table_of_channel;  // of channels elements
  const std::uint8_t* table_of_sum;      // of channels x kAnsSums, instead; or null
  const AnsEncodeTable* encode_tables;
  const AnsDecodeTable* decode_tables;
};

// Why a payload is refused.
enum class AnsStatus { kDone, kOtherTables, kTruncated, kTrailing, kAltered };

inline const char* name_of(AnsStatus status) noexcept {
  constexpr const char* kNames[] = {"done", "other-tables", "truncated", "trailing", "altered"};
  return kNames[static_cast<int>(status)];
}

// Encodes all codes into the end of `to`, which has `size` bytes, and returns where the result
// starts; `size` if it does not fit. It may be refused if it would leave less than kAnsSlack bytes.
std::size_t ans_encode(const std::uint8_t* codes, std::uint8_t* to, std::size_t size,
                       const AnsParams& params) noexcept;

// Decodes exactly the codes of `params`; reads nothing outside `from` and writes nothing outside
// `codes`, whatever the bytes are. Unless it is done, the content of `codes` means nothing.
AnsStatus ans_decode(const std::uint8_t* from, std::size_t size, std::uint8_t* codes,
                     const AnsParams& params) noexcept;

}  // namespace scissionlite

#endif  // SCISSIONLITE_ANS_H_
