// What the two kernels for few rows share: their sizes, operands, and the rows of x.
#pragma once

#include "ahead.cuh"
#include "hopper.cuh"

namespace nm_few {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kOut = 64, kTiles = kOut / 16;  // outputs of a block; tensor core tiles
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

// The products of x with several weights in one launch, tile after tile, weight after weight.
template <typename T, typename V>
struct Products {
  const T* x;
  int rows, k, row_tiles, count;
  Weight<T, V> weights[kMostWeights];
  ahead::Ahead ahead;
#ifdef OWN
  ahead::Ahead own;
#endif
};

// The part of a block: kOut outputs of one weight, from `first_out` on, and some rows.
template <typename T, typename V>
struct Problem : Weight<T, V> {
  const T* x;
  int rows, k, first_out, first_row;

  // The blocks of all rows of a tile are neighbours, so that they read it at the same time.
  __device__ Problem(const Products<T, V>& all, int tile_rows)
      : x(all.x), rows(all.rows), k(all.k) {
    int tile = blockIdx.x / all.row_tiles, i = 0;
    first_row = (blockIdx.x - tile * all.row_tiles) * tile_rows;
    for (; i < all.count - 1; ++i) {
      const int tiles = (all.weights[i].out + kOut - 1) / kOut;
      if (tile < tiles) break;
      tile -= tiles;
    }
    static_cast<Weight<T, V>&>(*this) = all.weights[i];
    first_out = tile * kOut;
  }
};

// The template parameters of a kernel: the maximum number of rows, the blocks of a cluster, and
// the blocks that are resident on a multiprocessor.
template <int kRows_, int kBlocks_, int kResident_>
struct Form {
  static constexpr int kRows = kRows_, kBlocks = kBlocks_, kResident = kResident_;
};

// Requests the next weights, when this warp has requested all of its own.
template <typename F>
__device__ void fetch_ahead(const ahead::Ahead& ahead) {
  if (!ahead.count) return;
  const int block = blockIdx.x * F::kBlocks + blockIdx.z, blocks = gridDim.x * F::kBlocks;
  const int warp = threadIdx.x / 32;
  ahead::fetch(ahead, (warp * blocks + block) * 32 + threadIdx.x % 32, blocks * kThreads);
}

// Copies a step of x: rows of 128 bytes, whose chunks of 16 bytes are swizzled.
template <int kRows, typename T, typename V>
__device__ void copy_x(uint32_t to, const Problem<T, V>& p, int k) {
  const int row = threadIdx.x % 32 / 8, chunk = threadIdx.x % 8, at = k + chunk * 8;
  const int left = at < p.k ? p.rows - p.first_row - row : 0;
  const T* from = p.x + static_cast<int64_t>(p.first_row + row) * p.k + at;
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
