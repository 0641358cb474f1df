// A weight [k, out] to its 2:4 forms for both products, in one pass and without shared memory.
//
// Each thread has 8 x 8 weights in registers, so it has whole bytes of indices, and rows of 16
// bytes of values, along either axis. A warp has 32 x 64 weights: of whatever it reads or writes,
// neighbouring lanes have 64 bytes in a row, or 32 of indices.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "mask_bits.cuh"
#include "transposable_mask.cuh"

namespace compress_both {

using mask_bits::Lines;

// Which weights are kept.
enum class Source {
  kAlongK,     // those of a mask packed along k
  kAlongOut,   // those of a mask packed along out
  kNonzero,    // those that are not zero
  kMagnitude,  // two of each group along k
  kBest,       // the best transposable mask, of equal ones the first with rows along k
  kBestAlongOut,  // the same with rows along out
};

constexpr int kThreads = 128, kWarpK = 32, kWarpOut = 64, kTileK = 64, kTileOut = 128;

// One form: of w if `transposed` is not set. Null pointers: it is not wanted.
template <typename V>
struct Form {
  V* values;
  uint8_t* indices;
};

template <typename W, typename V>
struct Problem {
  const W* w;              // [batch, k, out]
  const uint8_t* mask;     // given, or null
  Form<V> along_k;         // values [batch, k / 2, out], indices [batch, k / 8, out]
  Form<V> along_out;       // of w.T: [batch, out / 2, k], [batch, out / 8, k]
  uint8_t* found;          // the mask, packed as the source says, or null
  uint32_t k, out;         // multiples of 8
};

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

template <typename V>
__device__ void store_along_k(const Form<V>& form, const uint32_t (&w)[8][4], Lines slot_rows,
                              Lines slot_columns, size_t k, size_t column, size_t out) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t first[4], second[4];
    const uint32_t rows = slot_rows.word[half];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const uint32_t left = mask_bits::column(rows, 2 * p), right = mask_bits::column(rows, 2 * p + 1);
      uint32_t has_slot[4], value[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        has_slot[i] = mask_bits::spread(left, right, i), value[i] = w[4 * half + i][p];
      }
      const auto choose = [](uint32_t which, uint32_t a, uint32_t b) {
        return (which & a) | (~which & b);
      };
      first[p] = choose(has_slot[0], value[0], choose(has_slot[1], value[1], value[2]));
      second[p] = choose(has_slot[3], value[3], choose(has_slot[2], value[2], value[1]));
    }
    auto* values = reinterpret_cast<uint4*>(form.values + (k / 2 + 2 * half) * out + column);
    *values = make_uint4(first[0], first[1], first[2], first[3]);
    *reinterpret_cast<uint4*>(reinterpret_cast<V*>(values) + out) =
        make_uint4(second[0], second[1], second[2], second[3]);
  }
  *reinterpret_cast<uint2*>(form.indices + k / 8 * out + column) =
      make_uint2(mask_bits::codes(slot_columns.word[0]), mask_bits::codes(slot_columns.word[1]));
}

// The same for the transposed weight.
template <typename V>
__device__ void store_along_out(const Form<V>& form, const uint32_t (&w)[8][4], Lines slot_rows,
                                size_t row, size_t column, size_t k) {
  const uint32_t codes[] = {mask_bits::codes(slot_rows.word[0]),
                            mask_bits::codes(slot_rows.word[1])};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const mask_bits::Selectors selectors[] = {mask_bits::Selectors(codes[0] >> 4 * half),
                                              mask_bits::Selectors(codes[1] >> 4 * half)};
    uint32_t both[8];  // slots of a row
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      both[i] = mask_bits::permute(w[i][2 * half], w[i][2 * half + 1], selectors[i / 4].of(i % 4));
    }
    uint32_t first[4], second[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      first[p] = mask_bits::permute(both[2 * p], both[2 * p + 1], 0x5410);
      second[p] = mask_bits::permute(both[2 * p], both[2 * p + 1], 0x7632);
    }
    auto* values = reinterpret_cast<uint4*>(form.values + (column / 2 + 2 * half) * k + row);
    *values = make_uint4(first[0], first[1], first[2], first[3]);
    *reinterpret_cast<uint4*>(reinterpret_cast<V*>(values) + k) =
        make_uint4(second[0], second[1], second[2], second[3]);
  }
  *reinterpret_cast<uint2*>(form.indices + column / 8 * k + row) = make_uint2(codes[0], codes[1]);
}

__device__ inline Lines load_columns(const uint8_t* mask, size_t row, size_t column, size_t out) {
  const uint2 bytes = __ldg(reinterpret_cast<const uint2*>(mask + row / 8 * out + column));
  return {{bytes.x, bytes.y}};
}

__device__ inline Lines load_rows(const uint8_t* mask, size_t row, size_t column, size_t out) {
  Lines rows = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t byte = __ldg(mask + (row + i) * (out / 8) + column / 8);
    rows.word[i / 4] |= byte << 8 * (i % 4);
  }
  return rows;
}

__device__ inline void store_columns(uint8_t* mask, Lines columns, size_t row, size_t column,
                                     size_t out) {
  *reinterpret_cast<uint2*>(mask + row / 8 * out + column) =
      make_uint2(columns.word[0], columns.word[1]);
}

__device__ inline void store_rows(uint8_t* mask, Lines rows, size_t row, size_t column,
                                  size_t out) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    mask[(row + i) * (out / 8) + column / 8] =
        static_cast<uint8_t>(rows.word[i / 4] >> 8 * (i % 4));
  }
}

template <typename W, typename V, Source source>
__global__ void __launch_bounds__(kThreads) compress(Problem<W, V> problem) {
  constexpr bool finds_best = source == Source::kBest || source == Source::kBestAlongOut;
  constexpr bool by_columns = source == Source::kAlongK || source == Source::kMagnitude ||
                              source == Source::kBestAlongOut;
  const size_t k = problem.k, out = problem.out, batch = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const size_t row = blockIdx.y * kTileK + warp / 2 * kWarpK + lane / 8 * 8;
  const size_t column = blockIdx.x * kTileOut + warp % 2 * kWarpOut + lane % 8 * 8;
  if (row >= k || column >= out) return;
  const size_t size = k * out;

  Weights<W> weights;
  weights.load(problem.w + batch * size + row * out + column, out);
  const uint8_t* mask = problem.mask + batch * (size / 8);
  Lines lines;  // rows or columns
  if constexpr (source == Source::kAlongK) lines = load_columns(mask, row, column, out);
  if constexpr (source == Source::kAlongOut) lines = load_rows(mask, row, column, out);
  if constexpr (source == Source::kNonzero) lines = nonzero_rows(weights);
  if constexpr (source == Source::kMagnitude) lines = largest_columns(weights);
  if constexpr (source == Source::kBest) lines = best_lines<false>(weights);
  if constexpr (source == Source::kBestAlongOut) lines = best_lines<true>(weights);
  const Lines others = mask_bits::transpose(lines);
  Lines rows = by_columns ? others : lines, columns = by_columns ? lines : others;
  if (problem.found) {
    uint8_t* found = problem.found + batch * (size / 8);
    if constexpr (source == Source::kBest) store_columns(found, columns, row, column, out);
    if constexpr (source == Source::kBestAlongOut) store_rows(found, rows, row, column, out);
  }

  uint32_t w[8][4];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int p = 0; p < 4; ++p) w[i][p] = weights.template pair<V>(i, p);
  }
  Lines slot_rows = rows;
  // Slots without a kept weight, or more kept weights than slots.
  if (!finds_best && !(mask_bits::keeps_two(rows) && mask_bits::keeps_two(columns))) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const uint32_t word = rows.word[i / 4];
        w[i][p] &= mask_bits::spread(mask_bits::column(word, 2 * p),
                                     mask_bits::column(word, 2 * p + 1), i % 4);
      }
    }
    slot_rows = mask_bits::with_slots(rows);
    columns = mask_bits::with_slots(columns);
    rows = mask_bits::transpose(columns);
  }
  Form<V> along_k = problem.along_k, along_out = problem.along_out;
  if (along_k.values) {
    along_k.values += batch * (size / 2), along_k.indices += batch * (size / 8);
    store_along_k(along_k, w, rows, columns, row, column, out);
  }
  if (along_out.values) {
    along_out.values += batch * (size / 2), along_out.indices += batch * (size / 8);
    store_along_out(along_out, w, slot_rows, row, column, k);
  }
}

}  // namespace compress_both
