// What the kernels for few rows share: their sizes, operands, and the rows of x.
#pragma once

#include "hopper.cuh"

namespace nm_few {

constexpr int kOut = 64, kTiles = kOut / 16;  // outputs of a warp; tensor core tiles
constexpr int kStep = 64;                     // the part of k of one step of a warp
constexpr int kMostWeights = 4;

template <typename T, typename V>
struct Weight {
  const V* values;
  const uint8_t* indices;
  const float* scales;  // of the outputs, or null
  T* y;
  int out;
};

// The products of x with several weights in one launch: the tiles of one weight follow those of
// another. `ends` are where the tiles of all weights but the last one end. Each array may be a
// stack of matrices, one for each blockIdx.y, as long as their rows together count in 32 bits.
template <typename T, typename V>
struct Products {
  int ends[kMostWeights - 1];
  int row_tiles, rows, k;
  const T* x;
  const float* row_scales;  // or null
  Weight<T, V> weights[kMostWeights];
};

// The template parameters of a kernel: the maximum number of rows, the blocks of a cluster, the
// warps of a block, and how many of them are side by side. All others have other parts of k.
template <int kRows_, int kBlocks_, int kWarps_, int kWide_>
struct Form {
  static constexpr int kRows = kRows_, kBlocks = kBlocks_, kWarps = kWarps_, kWide = kWide_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kResident = 16 / kWarps;
  static constexpr int kParts = kWarps / kWide, kBlockOut = kOut * kWide;
};

// Which weight a block multiplies by, and its first output and row.
struct Place {
  int weight, out, row;

  template <typename F>
  static __device__ Place of(const int (&ends)[kMostWeights - 1], int row_tiles, F) {
    // The blocks of all rows of a tile are neighbours, so that they read it at the same time.
    int tile = blockIdx.x, row = 0;
    if (row_tiles > 1) row = tile % row_tiles, tile /= row_tiles;
    const int i = (tile >= ends[0]) + (tile >= ends[1]) + (tile >= ends[2]);
    return {i, (tile - (i ? ends[i - 1] : 0)) * F::kBlockOut, row * F::kRows};
  }
};

// The part of a warp: kOut outputs of one weight, from `first_out` on, and some rows.
template <typename T, typename V>
struct Problem : Weight<T, V> {
  const T* x;
  const float* row_scales;
  int rows, k, block_out, first_out, first_row;
  int row;  // the first one, counted over all matrices

  template <typename F>
  static __device__ Problem of(const Products<T, V>& all, F) {
    const Place place = Place::of(all.ends, all.row_tiles, F());
    Problem p = {all.weights[place.weight], all.x, all.row_scales, all.rows, all.k};
    p.block_out = place.out;
    p.first_out = place.out + threadIdx.x / 32 % F::kWide * kOut;
    p.first_row = place.row;
    p.row = blockIdx.y * all.rows + place.row;
    return p;
  }
};

// Copies a step of x: rows of 128 bytes, whose chunks of 16 bytes are swizzled.
template <int kRows, typename T, typename V>
__device__ void copy_x(uint32_t to, const Problem<T, V>& p, int k) {
  const int row = threadIdx.x % 32 / 8, chunk = threadIdx.x % 8, at = k + chunk * 8;
  const int left = at < p.k ? p.rows - p.first_row - row : 0;
  const T* from = p.x + static_cast<int64_t>(p.row + row) * p.k + at;
#pragma unroll
  for (int i = 0; i < kRows; i += 4) {
    const int place = chunk ^ (row + i % 8);  // the row modulo 8, since `row` is at most 3
    hopper::copy_16(to + (row + i) * 128 + place * 16, hopper::further(from, p.k * sizeof(T), i),
                    i < left ? 16 : 0);
  }
}

// Loads one half of a step of x, a column of 32 for each row.
template <int kRows>
__device__ void load_x(uint32_t (&columns)[kRows / 8][4], uint32_t x, int half) {
  const int row = threadIdx.x % 8, matrix = threadIdx.x % 32 / 8;
  x += row * 128 + ((matrix ^ row) << 4);  // the second half is four chunks on, swizzled
#pragma unroll
  for (int n = 0; n < kRows / 8; ++n) {
    hopper::load_matrices(columns[n], (x ^ (half << 6)) + n * 1024);
  }
}

}  // namespace nm_few
