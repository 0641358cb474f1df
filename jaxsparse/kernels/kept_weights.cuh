// 8 x 8 weights in the registers of a thread, and which of them are kept.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "mask_bits.cuh"
#include "transposable_mask.cuh"

namespace compress_both {

using mask_bits::Lines;

// 8 x 8 weights as they are in memory.
template <typename W>
struct Weights {
  static constexpr int kWords = 2 * sizeof(W);
  uint32_t row[8][kWords];

  __device__ void load(const W* w, size_t stride) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < kWords; j += 4) {
        const auto* words = reinterpret_cast<const uint4*>(w + i * stride) + j / 4;
        // The second half of what a row of float32 reads is in the first level's cache.
        const uint4 four = sizeof(W) == 2 ? __ldcs(words) : __ldg(words);
        row[i][j] = four.x, row[i][j + 1] = four.y, row[i][j + 2] = four.z, row[i][j + 3] = four.w;
      }
    }
  }

  // The bits of the magnitude, those of narrow floats in the lower half.
  __device__ uint32_t magnitude_bits(int i, int j) const {
    if constexpr (sizeof(W) == 4) return row[i][j] & 0x7FFFFFFF;
    return row[i][j / 2] >> 16 * (j % 2) & 0x7FFF;
  }

  __device__ float magnitude(int i, int j) const {
    if constexpr (sizeof(W) == 4) {
      return fabsf(__uint_as_float(row[i][j]));
    } else if constexpr (std::is_same_v<W, __nv_bfloat16>) {
      const uint32_t pair = row[i][j / 2];
      return fabsf(__uint_as_float(j % 2 ? pair & 0xFFFF0000 : pair << 16));
    } else {
      const __half2 pair = reinterpret_cast<const __half2&>(row[i][j / 2]);
      return fabsf(j % 2 ? __high2float(pair) : __low2float(pair));
    }
  }

  // Columns 2 p and 2 p + 1 as values, the first in the lower half.
  template <typename V>
  __device__ uint32_t pair(int i, int p) const {
    if constexpr (std::is_same_v<W, V>) {
      return row[i][p];
    } else {
      const float first = __uint_as_float(row[i][2 * p]);
      const float second = __uint_as_float(row[i][2 * p + 1]);
      if constexpr (std::is_same_v<V, __nv_bfloat16>) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
        return reinterpret_cast<const uint32_t&>(both);
      } else {
        const __half2 both = __floats2half2_rn(first, second);
        return reinterpret_cast<const uint32_t&>(both);
      }
    }
  }
};

// Applies a function to both of two narrow floats.
template <typename V, typename F>
__device__ uint32_t map_pair(uint32_t pair, F function) {
  if constexpr (std::is_same_v<V, __nv_bfloat16>) {
    const float first = __uint_as_float(pair << 16), second = __uint_as_float(pair & 0xFFFF0000);
    const __nv_bfloat162 both = __floats2bfloat162_rn(function(first), function(second));
    return reinterpret_cast<const uint32_t&>(both);
  } else {
    const float2 x = __half22float2(reinterpret_cast<const __half2&>(pair));
    const __half2 both = __floats2half2_rn(function(x.x), function(x.y));
    return reinterpret_cast<const uint32_t&>(both);
  }
}

template <typename W>
__device__ Lines nonzero_rows(const Weights<W>& weights) {
  Lines rows = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (weights.magnitude_bits(i, j)) rows.word[i / 4] |= 1u << (8 * (i % 4) + j);
    }
  }
  return rows;
}

// Returns the columns of a mask of the two largest magnitudes of each group along k, of equal
// ones the first. All NaNs are equal, and larger than infinity.
template <typename W>
__device__ Lines largest_columns(const Weights<W>& weights) {
  constexpr uint32_t kNan = std::is_same_v<W, __half> ? 0x7C01 : 0x7F81;
  Lines columns = {};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t key[4];  // no two are equal
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        key[i] = min(weights.magnitude_bits(4 * half + i, j), kNan) << 2 | (3 - i);
      }
      const uint32_t high[] = {max(key[0], key[1]), max(key[2], key[3])};
      const uint32_t low[] = {min(key[0], key[1]), min(key[2], key[3])};
      const uint32_t second = max(min(high[0], high[1]), max(low[0], low[1]));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (key[i] >= second) columns.word[j / 4] |= 1u << (8 * (j % 4) + 4 * half + i);
      }
    }
  }
  return columns;
}

// Returns the best transposable mask, as rows, or as columns if `along_out`.
template <bool along_out, typename W>
__device__ Lines best_lines(const Weights<W>& weights) {
  Lines lines;
#pragma unroll
  for (int first = 0; first < 2; ++first) {
    uint32_t found[2];
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      transposable::Block block;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        const int line = 4 * first + n / 4, place = 4 * second + n % 4;
        block.score[n / 4][n % 4] =
            along_out ? weights.magnitude(place, line) : weights.magnitude(line, place);
      }
      found[second] = __brev(transposable::best_mask(block));
    }
    lines.word[first] = found[0] >> 4 | found[1];
  }
  return lines;
}

}  // namespace compress_both
