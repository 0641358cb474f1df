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

#include "transposable_sums.cuh"

namespace transposable {

constexpr uint32_t kAll = 0x0F0F0F0F, kUpper = 0x0F0F0000, kLower = 0x00000F0F;

__host__ __device__ constexpr uint32_t pair_in(int row, int j, int k) {
  return bit(row, j) | bit(row, k);
}

// Differences of the columns of one number each: of pairs, and of two pairs.
struct Differences {
  float pair[6], fours[3];
};

__device__ inline Differences differences(const float (&x)[4]) {
  Differences d;
#pragma unroll
  for (int p = 0; p < 6; ++p) d.pair[p] = x[left(p)] - x[right(p)];
  d.fours[0] = d.pair[1] + d.pair[4];  // columns 0 and 1 less columns 2 and 3
  d.fours[1] = d.pair[0] + d.pair[5];  // 0 and 2 less 1 and 3
  d.fours[2] = d.pair[0] - d.pair[5];  // 0 and 3 less 1 and 2
  return d;
}

// Returns `mask`, with `bits` flipped if x is negative. (No difference is minus zero.)
__device__ inline uint32_t flip_if_negative(uint32_t mask, float x, uint32_t bits) {
  return mask ^ (static_cast<uint32_t>(static_cast<int32_t>(__float_as_uint(x)) >> 31) & bits);
}

__device__ inline float largest(const float (&x)[3]) {
  return fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fabsf(x[2]));
}

__device__ inline float second_largest(const float (&x)[3]) {
  const float a = fabsf(x[0]), b = fabsf(x[1]), c = fabsf(x[2]);
  return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
}

// Returns the first of the masks, two columns in `bits`' upper rows, with the gain `best`.
__device__ inline uint32_t mask_of_fours(const float (&x)[3], float best, uint32_t rows_of_first,
                                         uint32_t rows) {
  uint32_t mask = 0;
#pragma unroll
  for (int m = 0; m < 3; ++m) {  // columns 0 and m + 1 in the first rows, the others elsewhere
    const uint32_t both = (bit(3, 0) | bit(3, m + 1)) * 0x01010101;
    const uint32_t first = ((both & rows_of_first) | (~both & ~rows_of_first)) & rows;
    const uint32_t candidate = flip_if_negative(first, x[m], rows);
    if (fabsf(x[m]) == best) mask = max(mask, candidate);
  }
  return mask;
}

// Whether all scores are multiples of a unit that no sum exceeds 2^24 times: sums are exact.
__device__ inline bool sums_are_exact(const Block& block, float total) {
  float lost = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float score = block.score[i / 4][i % 4];
    lost += fabsf(((score + total) - total) - score);
  }
  return lost == 0;
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
  const Differences de = differences(e), du = differences(u), dl = differences(l);
  float gains[6];
#pragma unroll
  for (int p = 0; p < 6; ++p) {
    gains[p] = fabsf(de.pair[p]) + (fabsf(du.pair[5 - p]) + fabsf(dl.pair[5 - p]));
  }
  const float best_e = largest(de.fours), best_u = largest(du.fours), best_l = largest(dl.fours);
  float best = fmaxf(best_e, best_u + best_l);
#pragma unroll
  for (int p = 0; p < 6; ++p) best = fmaxf(best, gains[p]);

  uint32_t mask = mask_of_fours(de.fours, best, kUpper, kAll);
#pragma unroll
  for (int p = 0; p < 6; ++p) {
    const int i = left(p), j = right(p), k = left(5 - p), m = right(5 - p);
    const uint32_t first = pair_in(0, i, k) | pair_in(1, i, m) | pair_in(2, j, k) | pair_in(3, j, m);
    const uint32_t of_e = pair_in(3, i, j) * 0x01010101, of_ul = pair_in(3, k, m) * 0x01010101;
    uint32_t candidate = flip_if_negative(first, de.pair[p], of_e);
    candidate = flip_if_negative(candidate, du.pair[5 - p], of_ul & kUpper);
    candidate = flip_if_negative(candidate, dl.pair[5 - p], of_ul & kLower);
    if (gains[p] == best) mask = max(mask, candidate);
  }
  if (best_u + best_l == best) {
    mask = max(mask, mask_of_fours(du.fours, best_u, kUpper & 0xFF000000, kUpper) |
                         mask_of_fours(dl.fours, best_l, kLower & 0x0000FF00, kLower));
  }
  if (total <= kLimit && sums_are_exact(block, total)) return mask;

  // Six roundings, each of at most 2^-24 of the total, may change a gain.
  float second = fmaxf(second_largest(du.fours) + best_l, best_u + second_largest(dl.fours));
  int winners = best_u + best_l == best;
  if (!winners) second = best_u + best_l;
#pragma unroll
  for (int p = 0; p < 6; ++p) {
    const float least = fminf(fminf(fabsf(de.pair[p]), fabsf(du.pair[5 - p])),
                              fabsf(dl.pair[5 - p]));
    const bool wins = gains[p] == best;
    winners += wins;
    second = fmaxf(second, wins ? gains[p] - 2 * least : gains[p]);
  }
#pragma unroll
  for (int m = 0; m < 3; ++m) {
    const bool wins = fabsf(de.fours[m]) == best;
    winners += wins;
    if (!wins) second = fmaxf(second, fabsf(de.fours[m]));
  }
  const bool certain = total <= kLimit && winners == 1 && best - second > 0x1p-19f * total;
  return certain ? mask : mask_by_sums(block);
}

}  // namespace transposable
