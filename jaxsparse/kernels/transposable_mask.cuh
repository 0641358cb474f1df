// The best transposable 2:4 mask of a block of 4 x 4 by magnitude: exact, with few operations.
//
// Rows a and b are the upper ones, c and d the lower ones. In each column the upper rows keep
// none, one or both of their weights, and the lower rows keep what is missing to two. With
//   e = (a + b) - (c + d),  u = a - b,  l = c - d  in each column,
// twice the sum of a mask is the sum of the block and a gain, and the gains of the 90 masks are
//   6:   +-((e_i + e_j) - (e_k + e_l)): the upper rows keep both in two columns;
//   48:  +-(e_i - e_j) +- (u_k - u_l) +- (l_k - l_l): both in one column, one each in two;
//   36:  +-((u_i + u_j) - (u_k + u_l)) +- (the same of l): one in each column.
// So the best gain of each kind is a sum of absolute values, and signs tell which mask has it.
#pragma once

#include <cstdint>

#include "mask_bits.cuh"
#include "transposable_sums.cuh"

namespace transposable {

// The columns of one number each, compared.
struct Columns {
  float difference[6];  // of pairs
  float best;           // the two largest less the two smallest
  float second;         // the same for the next best two

  __device__ explicit Columns(const float (&x)[4]) {
#pragma unroll
    for (int p = 0; p < 6; ++p) difference[p] = x[left(p)] - x[right(p)];
    const float a = fabsf(difference[1] + difference[4]);  // columns 0 and 1 less 2 and 3
    const float b = fabsf(difference[0] + difference[5]);  // 0 and 2 less 1 and 3
    const float c = fabsf(difference[0] - difference[5]);  // 0 and 3 less 1 and 2
    best = fmaxf(fmaxf(a, b), c);
    second = fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
  }
};

// All bits if x is negative. (No difference is minus zero.)
__device__ inline uint32_t sign(float x) {
  return static_cast<uint32_t>(static_cast<int32_t>(__float_as_uint(x)) >> 31);
}

// The sign of one number in the upper rows of a mask, of another in the lower rows.
__device__ inline uint32_t signs(float upper, float lower) {
  return mask_bits::permute(__float_as_uint(lower), __float_as_uint(upper), 0xFFBB);
}

// Returns in each row the two columns of the largest numbers, of equal ones the first. For each
// pair, bits are set where the first column has the smaller number.
__device__ inline uint32_t two_largest(const uint32_t (&less)[6]) {
  using mask_bits::at_least_two;
  const uint32_t not_0 = at_least_two(less[0], less[1], less[2]);
  const uint32_t not_1 = at_least_two(~less[0], less[3], less[4]);
  const uint32_t not_2 = at_least_two(~less[1], ~less[3], less[5]);
  const uint32_t not_3 = at_least_two(~less[2], ~less[4], ~less[5]);
  return (~not_0 & 0x08080808) | (~not_1 & 0x04040404) | (~not_2 & 0x02020202) |
         (~not_3 & 0x01010101);
}

// Raises `mask` to another mask if that has the best gain.
__device__ inline void consider(uint32_t& mask, uint32_t other, float gain, float best) {
#ifdef __CUDA_ARCH__  // two instructions, which the compiler does not find
  asm("{ .reg .pred p; setp.eq.f32 p, %2, %3; @p max.u32 %0, %0, %1; }"
      : "+r"(mask)
      : "r"(other), "f"(gain), "f"(best));
#else
  if (gain == best && other > mask) mask = other;
#endif
}

// Whether all scores are multiples of a unit that no sum exceeds 2^24 times: sums are exact.
__device__ inline bool sums_are_exact(const Block& block, float total) {
  bool exact = true;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float score = block.score[i / 4][i % 4];
    exact &= (score + total) - total == score;
  }
  return exact;
}

// Returns the first of the best masks of magnitudes.
__device__ inline uint32_t best_mask(const Block& block) {
  float e[4], u[4], l[4], total = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float a = block.score[0][j], b = block.score[1][j];
    const float c = block.score[2][j], d = block.score[3][j];
    const float above = a + b, below = c + d;
    e[j] = above - below, u[j] = a - b, l[j] = c - d;
    total += above + below;
  }
  const Columns by_e(e), by_u(u), by_l(l);
  const float of_six = by_e.best, of_36 = by_u.best + by_l.best;
  float gains[6], best = fmaxf(of_six, of_36);
  uint32_t less_e[6], less_ul[6];
#pragma unroll
  for (int p = 0; p < 6; ++p) {
    gains[p] = fabsf(by_e.difference[p]) +
               (fabsf(by_u.difference[5 - p]) + fabsf(by_l.difference[5 - p]));
    best = fmaxf(best, gains[p]);
    less_e[p] = sign(by_e.difference[p]);
    less_ul[p] = signs(by_u.difference[p], by_l.difference[p]);
  }

  uint32_t mask = 0, other = 0;
  consider(mask, two_largest(less_e) ^ 0x00000F0F, of_six, best);
  consider(other, two_largest(less_ul) ^ 0x000F000F, of_36, best);
#pragma unroll
  for (int p = 0; p < 6; ++p) {
    const uint32_t i = bit(3, left(p)), j = bit(3, right(p));
    const uint32_t k = bit(3, left(5 - p)), m = bit(3, right(5 - p));
    const uint32_t first = (i | k) << 24 | (i | m) << 16 | (j | k) << 8 | (j | m);
    const uint32_t found = first ^ (less_e[p] & (i | j) * 0x01010101) ^
                           (less_ul[5 - p] & (k | m) * 0x01010101);
    consider(p % 2 ? mask : other, found, gains[p], best);
  }
  mask = max(mask, other);
  if (total <= kLimit && sums_are_exact(block, total)) return mask;

  // The best of the other masks. The gains of a kind differ by twice what is added.
  float second = fminf(of_six, of_36), highest = fmaxf(of_six, of_36), inner = 0;
  if (of_six == best) inner = by_e.second;
  if (of_36 == best) inner = fmaxf(by_u.second + by_l.best, by_u.best + by_l.second);
#pragma unroll
  for (int p = 0; p < 6; ++p) {
    second = fmaxf(second, fminf(highest, gains[p]));
    highest = fmaxf(highest, gains[p]);
    const float least = fminf(fminf(fabsf(by_e.difference[p]), fabsf(by_u.difference[5 - p])),
                              fabsf(by_l.difference[5 - p]));
    if (gains[p] == best) inner = fmaxf(inner, gains[p] - 2 * least);
  }
  // Six roundings, each of at most 2^-24 of the total, may change a gain.
  const bool certain = total <= kLimit && best - fmaxf(second, inner) > 0x1p-19f * total;
  return certain ? mask : mask_by_sums(block);
}

}  // namespace transposable
