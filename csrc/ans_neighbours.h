// The entropy coder where a code's table depends on the codes to its left and above.

#ifndef SCISSIONLITE_ANS_NEIGHBOURS_H_
#define SCISSIONLITE_ANS_NEIGHBOURS_H_

#include "ans.h"

namespace scissionlite {

// As ans_encode and ans_decode, for parameters with a table_of_sum.
std::size_t ans_encode_by_neighbours(const std::uint8_t* codes, std::uint8_t* to, std::size_t size,
                                     const AnsParams& params) noexcept;
AnsStatus ans_decode_by_neighbours(const std::uint8_t* from, std::size_t size, std::uint8_t* codes,
                                   const AnsParams& params) noexcept;

}  // namespace scissionlite

#endif  // SCISSIONLITE_ANS_NEIGHBOURS_H_
