// What the two kernels for few rows share: their sizes, operands, and the rows of x.
#pragma once

#include "hopper.cuh"

namespace nm_few {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kOut = 64, kTiles = kOut / 16;  // outputs of a block; tensor core tiles
constexpr int kStep = 64;                     // the part of k of one step of a warp

template <typename T, typename V>
struct Problem {
  const T* x;
  const V* values;
  const uint8_t* indices;
  const float* scales;  // of the outputs, or null
  T* y;
  int rows, k, out;
};

// The template parameters of a kernel: the maximum number of rows, the blocks of a cluster, and
// the blocks that are resident on a multiprocessor.
template <int kRows_, int kBlocks_, int kResident_>
struct Form {
  static constexpr int kRows = kRows_, kBlocks = kBlocks_, kResident = kResident_;
};

// Copies a step of x: rows of 128 bytes, whose chunks of 16 bytes are swizzled.
template <int kRows, typename T, typename V>
__device__ void copy_x(uint32_t to, const Problem<T, V>& p, int k, int first_row) {
  const int row = threadIdx.x % 32 / 8, chunk = threadIdx.x % 8, at = k + chunk * 8;
  const int left = at < p.k ? p.rows - first_row - row : 0;
  const T* from = p.x + static_cast<int64_t>(first_row + row) * p.k + at;
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
