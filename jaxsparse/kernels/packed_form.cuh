// 8 x 8 weights of a matrix [k, out] whose form along k is packed: for each sixteen rows of the
// matrix eight rows of values, and one with two bytes of indices, that of the first eight lowest.
#pragma once

#include <cstdint>

#include "kept_weights.cuh"
#include "mask_bits.cuh"

namespace compress_both {

// Loads the weights at a row and a column; those that are not kept are zero.
template <typename W>
__device__ void load_packed(Weights<W>& weights, const W* packed, size_t row, size_t column,
                            size_t out) {
  const uint32_t second_half = row / 8 % 2;
  const auto* group = reinterpret_cast<const uint4*>(packed + row / 16 * 9 * out + column);
  const size_t stride = out / 8;
  uint32_t value[4][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint4 four = __ldcs(group + (4 * second_half + i) * stride);
    value[i][0] = four.x, value[i][1] = four.y, value[i][2] = four.z, value[i][3] = four.w;
  }
  const uint4 both = __ldg(group + 8 * stride);
  const uint32_t which = second_half ? 0x7531 : 0x6420;
  const Lines codes = {
      {mask_bits::permute(both.x, both.y, which), mask_bits::permute(both.z, both.w, which)}};
  const Lines first = mask_bits::transpose(mask_bits::positions(codes));
  const Lines second =
      mask_bits::transpose(mask_bits::positions({{codes.word[0] >> 2, codes.word[1] >> 2}}));
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const auto in_row = [&](const Lines& slots) {
        const uint32_t left = mask_bits::column(slots.word[i / 4], 2 * p);
        return mask_bits::spread(left, mask_bits::column(slots.word[i / 4], 2 * p + 1), i % 4);
      };
      const int slot = i / 4 * 2;
      weights.row[i][p] = (in_row(first) & value[slot][p]) | (in_row(second) & value[slot + 1][p]);
    }
  }
}

}  // namespace compress_both
