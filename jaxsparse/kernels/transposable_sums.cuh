// The best transposable 2:4 mask of a block of 4 x 4, by sums of two floats each: the algorithm
// of `_patterns/transposable.py`, step by step, so that both find the same mask whatever the
// scores are. `transposable_mask.cuh` calls it for the few blocks that need so much precision.
#pragma once

#include <cfloat>
#include <cstdint>

namespace transposable {

// Row i of a mask is byte 3 - i of a word, column j is bit 3 - j of the byte. Of two masks the
// one that comes first in lexicographic order, row by row, is then the larger number.
__host__ __device__ constexpr uint32_t bit(int row, int column) {
  return 1u << (8 * (3 - row) + 3 - column);
}

// Larger scores, and sums that have them, are bounded first.
constexpr float kLimit = FLT_MAX / 1024;

struct Block {
  float score[4][4];
};

// A sum, rounded, with its rounding error, and the mask that it belongs to.
struct Sum {
  float high, low;
  uint32_t mask;
};

__device__ inline Sum add(const Sum& a, const Sum& b) {  // Knuth, TAOCP 2, 4.2.2
  const float high = a.high + b.high, b_rounded = high - a.high;
  const float error = (a.high - (high - b_rounded)) + (b.high - b_rounded);
  return {high, error + (a.low + b.low), a.mask | b.mask};
}

// Returns the larger sum; of equal sums that of the first mask.
__device__ inline Sum better(const Sum& a, const Sum& b) {
  const float gain = (b.high - a.high) + (b.low - a.low);
  return gain > 0 || (gain == 0 && b.mask > a.mask) ? b : a;
}

// The columns of the six pairs in order. The other two columns are pair 5 - p.
__host__ __device__ constexpr int left(int p) { return p < 3 ? 0 : p < 5 ? 1 : 2; }
__host__ __device__ constexpr int right(int p) { return p < 3 ? p + 1 : p < 5 ? p - 1 : 3; }

// Sums of two rows: of both in a column, and of one each in two columns or in all four.
struct TwoRows {
  Sum both[4], half[6], all;
};

__device__ inline TwoRows two_rows(const Sum (&first)[4], const Sum (&second)[4]) {
  TwoRows sums;
#pragma unroll
  for (int j = 0; j < 4; ++j) sums.both[j] = add(first[j], second[j]);
#pragma unroll
  for (int p = 0; p < 6; ++p) {
    const int j = left(p), k = right(p);
    sums.half[p] = better(add(first[j], second[k]), add(first[k], second[j]));
  }
  sums.all = better(add(sums.half[1], sums.half[4]), add(sums.half[0], sums.half[5]));
  return sums;
}

// Replaces infinities and NaN by 32 times the largest finite score.
__device__ inline float bounded(float score, float largest) {
  return score <= FLT_MAX ? fminf(score, kLimit) : 32 * largest;
}

__device__ __noinline__ uint32_t mask_by_sums(Block block) {  // of magnitudes
  float largest = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float score = block.score[i / 4][i % 4];
    if (score <= FLT_MAX) largest = fmaxf(largest, fminf(score, kLimit));
  }
  if (largest == 0) largest = 1;
  Sum rows[4][4];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int row = i / 4, column = i % 4;
    rows[row][column] = {bounded(block.score[row][column], largest), 0, bit(row, column)};
  }
  const TwoRows upper = two_rows(rows[0], rows[1]), lower = two_rows(rows[2], rows[3]);
  // What the upper rows keep twice in a column, the lower rows do not keep there.
  Sum best = {0, 0, 0};
#pragma unroll
  for (int p = 0; p < 6; ++p) {
    const Sum above = add(upper.both[left(p)], upper.both[right(p)]);
    const Sum below = add(lower.both[left(5 - p)], lower.both[right(5 - p)]);
    const Sum sum = add(above, below);
    best = p ? better(best, sum) : sum;
  }
#pragma unroll
  for (int p = 0; p < 6; ++p) {
#pragma unroll
    for (int twice = 0; twice < 2; ++twice) {
      const int j = twice ? right(5 - p) : left(5 - p), k = left(5 - p) + right(5 - p) - j;
      const Sum above = add(upper.half[p], upper.both[j]);
      best = better(best, add(above, add(lower.half[p], lower.both[k])));
    }
  }
  return better(best, add(upper.all, lower.all)).mask;
}

}  // namespace transposable
