// Headers of kernels as a library for the CPU: what they need of CUDA, and calls by block.
#define __device__
#define __host__
#define __noinline__

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

using std::max;

static uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

#include "expand_group.cuh"
#include "mask_bits.cuh"
#include "transposable_mask.cuh"

using mask_bits::Lines;

extern "C" {

// Masks of blocks of 4 x 4 magnitudes: by few operations, and by sums of two floats.
void best_masks(const transposable::Block* blocks, int count, uint32_t* masks, uint32_t* by_sums) {
  for (int i = 0; i < count; ++i) {
    masks[i] = transposable::best_mask(blocks[i]);
    by_sums[i] = transposable::mask_by_sums(blocks[i]);
  }
}

// Of masks of 8 x 8: the transposed mask, whether groups keep two, slots, codes, and the positions
// of the first slots that the codes name.
void line_bits(const Lines* lines, int count, Lines* transposed, uint8_t* keep_two, Lines* slots,
               Lines* codes, Lines* first) {
  for (int i = 0; i < count; ++i) {
    transposed[i] = mask_bits::transpose(lines[i]);
    keep_two[i] = mask_bits::keeps_two(lines[i]);
    slots[i] = mask_bits::with_slots(lines[i]);
    for (int half = 0; half < 2; ++half) {
      codes[i].word[half] = mask_bits::codes(slots[i].word[half]);
    }
    first[i] = mask_bits::positions(codes[i]);
  }
}

// What `permute` takes for the slots of each half-byte of a code, of four numbers of 16 bits, and
// the mask of two columns in each of four rows.
void selections(uint32_t code, const uint32_t* numbers, uint32_t* chosen, uint32_t rows,
                uint32_t* spread) {
  for (int half = 0; half < 2; ++half) {
    const mask_bits::Selectors selectors(code >> 4 * half);
    for (int i = 0; i < 4; ++i) {
      chosen[4 * half + i] = mask_bits::permute(numbers[0], numbers[1], selectors.of(i));
    }
  }
  for (int i = 0; i < 16; ++i) {
    const int p = i % 4;
    const uint32_t left = mask_bits::column(rows, 2 * p);
    spread[i] = mask_bits::spread(left, mask_bits::column(rows, 2 * p + 1), i / 4);
  }
}

// A group of 16 from eight values.
void expanded(uint32_t mask, const uint16_t* values, uint16_t* dense) {
  uint32_t pairs[4], halves[2][4];
  std::memcpy(pairs, values, sizeof pairs);
  const auto own = expand_group::values(pairs);
  expand_group::first_half(halves[0], own, expand_group::first_entry(mask & 0xFF));
  expand_group::second_half(halves[1], own, expand_group::second_entry(mask >> 8));
  std::memcpy(dense, halves, sizeof halves);
}
}
