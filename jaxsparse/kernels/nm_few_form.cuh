// The sizes of the kernel for few rows, its operands and its shared memory.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace nm_few_rows {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kOut = 64, kTiles = kOut / 16;  // outputs of a block; tensor core tiles
constexpr int kStep = 64;                     // the part of k of one step of a warp

template <typename T, typename V>
struct Problem {
  const T* x;
  const V* values;
  const uint8_t* indices;
  const float* scales;  // of each output; none if V is T
  T* y;
  int rows, k, out;
};


// The template parameters of a kernel: the maximum number of rows, the blocks of a cluster, and
// the blocks that are resident on a multiprocessor: with 16 rows, a single block uses more
// registers.
template <int kRows_, int kBlocks_, int kResident_>
struct Form {
  static constexpr int kRows = kRows_, kBlocks = kBlocks_, kResident = kResident_;
};

// The steps of a warp that are in registers at the same time. Those of narrow values are smaller.
template <typename V, typename F>
constexpr int kBuffers = sizeof(V) == 2 ? 2 : F::kRows == 8 ? 4 : 3;

template <typename V, typename F>
struct Memory {
  alignas(128) uint8_t x[kWarps][kBuffers<V, F>][F::kRows * kStep * 2];
  alignas(16) float sums[kWarps][F::kRows][kOut + 4];  // padded against bank conflicts
  // Sums of the blocks of a cluster, for the outputs that this block stores.
  alignas(16) float inbox[F::kBlocks][F::kRows][kOut / F::kBlocks];
  uint64_t inbox_is_full;  // a barrier
};

}  // namespace nm_few_rows
