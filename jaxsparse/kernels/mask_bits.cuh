// Masks of 8 x 8 weights as bits: two words of four bytes, a byte for each line, a bit for each
// weight of the line. A line is a row or a column, and each half of a byte is a group of four.
#pragma once

#include <cstdint>

namespace mask_bits {

struct Lines {
  uint32_t word[2];
};

// Returns the four bytes that the half-bytes of `selector` name: bytes 0 to 3 of a, then those of
// b. Eight more instead repeats the byte's highest bit.
__device__ inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
#ifdef __CUDA_ARCH__
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
#else  // for tests of this file without a GPU
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t which = selector >> 4 * i & 15;
    uint32_t byte = (which & 4 ? b : a) >> 8 * (which & 3) & 0xFF;
    if (which & 8) byte = byte & 0x80 ? 0xFF : 0;
    result |= byte << 8 * i;
  }
  return result;
#endif
}

// Makes columns of rows, or rows of columns (Warren, Hacker's Delight, 7-3).
__device__ inline Lines transpose(Lines lines) {
#pragma unroll
  for (uint32_t& x : lines.word) {
    const uint32_t near = (x ^ x >> 7) & 0x00AA00AA;
    x ^= near ^ near << 7;
    const uint32_t far = (x ^ x >> 14) & 0x0000CCCC;
    x ^= far ^ far << 14;
  }
  const uint32_t swapped = (lines.word[0] ^ lines.word[1] << 4) & 0xF0F0F0F0;
  return {{lines.word[0] ^ swapped, lines.word[1] ^ swapped >> 4}};
}

// Whether each group keeps exactly two.
__device__ inline bool keeps_two(Lines lines) {
  uint32_t wrong = 0;
#pragma unroll
  for (const uint32_t x : lines.word) {
    const uint32_t pairs = x - (x >> 1 & 0x55555555);
    wrong |= ((pairs & 0x33333333) + (pairs >> 2 & 0x33333333)) ^ 0x22222222;
  }
  return !wrong;
}

__device__ inline uint32_t at_least_two(uint32_t a, uint32_t b, uint32_t c) {
  return (a & b) | (a & c) | (b & c);
}

// Returns the positions that have slots, two in each group: the first two that are kept. If fewer
// are kept, the first that are pruned fill the rest.
__device__ inline Lines with_slots(Lines lines) {
  constexpr uint32_t kFirst = 0x11111111;
#pragma unroll
  for (uint32_t& x : lines.word) {
    const uint32_t a = x & kFirst, b = x >> 1 & kFirst, c = x >> 2 & kFirst, d = x >> 3 & kFirst;
    const uint32_t has_a = (a | ~at_least_two(b, c, d)) & kFirst;
    const uint32_t has_b = (b | ~(c | d)) & kFirst;
    const uint32_t has_c = c & ~(a & b), has_d = d & ~at_least_two(a, b, c);
    x = has_a | has_b << 1 | has_c << 2 | has_d << 3;
  }
  return lines;
}

// Returns the codes of all groups, each in the place of its group: the position of the first slot
// in the lower two bits, that of the second in the upper two.
__device__ inline uint32_t codes(uint32_t slots) {
  const uint32_t up = slots << 1, up_two = slots << 2, down = slots >> 1;
  const uint32_t first_is_1 = down & ~slots & 0x11111111;
  const uint32_t first_is_2 = ~(slots | up) & 0x22222222;
  const uint32_t second_is_odd = (down | (up & up_two)) & 0x44444444;  // 1 or 3
  const uint32_t second_is_2_or_3 = (slots | up) & 0x88888888;
  return first_is_1 | first_is_2 | second_is_odd | second_is_2_or_3;
}

// Returns the positions that the lower two bits of each half-byte name, as a bit of the half-byte.
__device__ inline Lines positions(Lines codes) {
#pragma unroll
  for (uint32_t& x : codes.word) {
    const uint32_t is_odd = x & 0x11111111, is_2_or_3 = x >> 1 & 0x11111111;
    const uint32_t both = is_odd & is_2_or_3;
    x = (0x11111111 & ~(is_odd | is_2_or_3)) | (is_odd ^ both) << 1 | (is_2_or_3 ^ both) << 2 |
        both << 3;
  }
  return codes;
}

// Moves column `j` of four rows to the highest bits of their bytes.
__device__ inline uint32_t column(uint32_t rows, int j) { return rows << (7 - j); }

// Returns all bits of the lower half if row i has the first column, of the upper half if it has
// the second. Columns come from `column`.
__device__ inline uint32_t spread(uint32_t first, uint32_t second, int i) {
  return permute(first, second, (8 + i) * 0x0011 + (12 + i) * 0x1100);
}

// For each byte of `codes`, returns which bytes of four numbers of 16 bits `permute` must take for
// the slots of its lower half-byte: of the first slot in `first`, of the second in `second`.
struct Selectors {
  uint32_t first, second;

  __device__ explicit Selectors(uint32_t codes)
      : first((codes & 0x03030303) * 0x22 + 0x10101010),
        second((codes >> 2 & 0x03030303) * 0x22 + 0x10101010) {}

  __device__ uint32_t of(int byte) const { return permute(first, second, byte | (4 + byte) << 4); }
};

}  // namespace mask_bits
