// Dense groups of 16 weights from the 8 kept ones and a bit for each position.
//
// prmt selects bytes of two registers. The high bytes of eight values fit in two registers, and so
// do their low bytes: two prmt with one selector gather the values of four positions. A byte of
// the mask has the selectors of two fours of positions. The outer four, at an edge of the group,
// has at most four of the values, and selects zeros from a second register. The inner four can
// have any of the eight, so it is masked. The second half of a group is the first one mirrored:
// its values count from the last.
#pragma once

#include "mask_bits.cuh"

namespace expand_group {

using mask_bits::permute;

// Of half a group, which byte each position selects, and which bytes of the inner four are kept.
// The first selector is that of the outermost position.
struct Entry {
  uint32_t selectors, kept;
};

// Of positions 0 to 7. Values count from 0; 4 is a zero of the outer four.
__device__ inline Entry first_entry(uint32_t mask) {
  Entry entry = {};
  uint32_t before = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t is_kept = mask >> i & 1, zero = i < 4 ? 4 : 0;
    entry.selectors |= (is_kept ? before : zero) << 4 * i;
    if (i >= 4) entry.kept |= is_kept * 0xFF << (i - 4) * 8;
    before += is_kept;
  }
  return entry;
}

// Of positions 15 to 8. Values count from 7 downwards; 3 is a zero of the outer four.
__device__ inline Entry second_entry(uint32_t mask) {
  uint32_t backwards = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) backwards |= (mask >> i & 1) << (7 - i);
  Entry entry = first_entry(backwards);
  entry.selectors ^= 0x77777777;
  return entry;
}

// The low and the high bytes of eight values, four in a register.
struct Values {
  uint32_t low[2], high[2];
};

// Register i has values 2 i and 2 i + 1.
__device__ inline Values values(const uint32_t (&pairs)[4]) {
  Values v;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    v.low[i] = permute(pairs[2 * i], pairs[2 * i + 1], 0x6420);
    v.high[i] = permute(pairs[2 * i], pairs[2 * i + 1], 0x7531);
  }
  return v;
}

// Returns the weights at positions 0 to 7, two in a register.
__device__ inline void first_half(uint32_t (&to)[4], const Values& v, Entry entry) {
  const uint32_t outer = entry.selectors, inner = outer >> 16;
  uint32_t low = permute(v.low[0], 0, outer), high = permute(v.high[0], 0, outer);
  to[0] = permute(low, high, 0x5140), to[1] = permute(low, high, 0x7362);
  low = permute(v.low[0], v.low[1], inner) & entry.kept;
  high = permute(v.high[0], v.high[1], inner) & entry.kept;
  to[2] = permute(low, high, 0x5140), to[3] = permute(low, high, 0x7362);
}

// Returns those at positions 8 to 15.
__device__ inline void second_half(uint32_t (&to)[4], const Values& v, Entry entry) {
  const uint32_t outer = entry.selectors, inner = outer >> 16;
  uint32_t low = permute(0, v.low[1], outer), high = permute(0, v.high[1], outer);
  to[2] = permute(low, high, 0x6273), to[3] = permute(low, high, 0x4051);
  low = permute(v.low[0], v.low[1], inner) & entry.kept;
  high = permute(v.high[0], v.high[1], inner) & entry.kept;
  to[0] = permute(low, high, 0x6273), to[1] = permute(low, high, 0x4051);
}

}  // namespace expand_group
