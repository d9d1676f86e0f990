// Static tables of the entropy coder, checked, in the form in which the coder reads them.

#ifndef SCISSIONLITE_ANS_TABLES_H_
#define SCISSIONLITE_ANS_TABLES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ans.h"

namespace scissionlite {

class AnsTables {
 public:
  // `frequencies` has, for each table, those of all codes and then that of the escape. A code is
  // numbered by the bits of its two's complement. Anything that docs/numerics.md does not allow is
  // a std::invalid_argument.
  AnsTables(bool nibbles, std::uint16_t id, const std::uint8_t* table_of_channel,
            std::size_t channels, const std::uint16_t* frequencies, std::size_t tables);
  // The same where tables depend on neighbours: `table_of_class` has kAnsClasses for each channel.
  // A class is how many of the channel's kAnsClasses - 1 bounds the sum of the neighbours reaches.
  AnsTables(bool nibbles, std::uint16_t id, const std::uint8_t* table_of_class,
            std::size_t channels, const std::int16_t* bounds, const std::uint16_t* frequencies,
            std::size_t tables);

  std::size_t channels() const noexcept { return channels_; }
  // The parameters for a feature map of `count` codes. With one channel, the tables fit any map.
  // A number of codes that is no whole number of images is a std::invalid_argument; so is a plane
  // of no whole number of rows where the tables depend on neighbours.
  AnsParams params(std::size_t count, std::size_t plane, bool channels_last,
                   std::size_t width) const;
  // Bytes of a payload of so many codes.
  std::size_t packed_bytes(std::size_t count) const noexcept {
    return nibbles_ ? count / 2 + count % 2 : count;
  }

 private:
  void fill_tables(const std::uint8_t* named, std::size_t count, const std::uint16_t* frequencies);

  bool nibbles_;
  std::uint16_t id_;
  std::size_t channels_;
  std::vector<std::uint8_t> table_of_channel_;
  std::vector<std::uint8_t> table_of_sum_;  // empty, or as AnsParams has it
  std::vector<AnsEncodeTable> encode_tables_;
  std::vector<AnsDecodeTable> decode_tables_;
};

}  // namespace scissionlite

#endif  // SCISSIONLITE_ANS_TABLES_H_
