// How the kernels for many rows add up, round and store the sums of a tile.
#pragma once

#include "hopper.cuh"
#include "nm_tiles.cuh"

namespace nm_matmul {

// Rounds a tile and stores it, kStoreRows rows at a time, through two boxes of shared memory.
template <typename T, int kRows>
__device__ void store(const CUtensorMap& y, uint32_t outbox, Tile tile,
                      const float (&sums)[kRows / 2]) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const uint32_t boxes = outbox + warpgroup * 2 * kStoreRows * 128;
  const int sub_row = lane % 8 + (lane / 16) * 8, chunk = 2 * warp + lane / 8 % 2;
#pragma unroll
  for (int first = 0; first < kRows; first += kStoreRows) {
    const uint32_t box = boxes + first / kStoreRows % 2 * kStoreRows * 128;
    if (threadIdx.x % 128 == 0) hopper::wait_stores<1>();
    hopper::sync_threads(1 + warpgroup, 128);
#pragma unroll
    for (int row = 0; row < kStoreRows; row += 16) {
      const float* s = sums + (first + row) / 2;
      const uint32_t to = box + (row + sub_row) * 128 + ((chunk ^ (sub_row & 7)) << 4);
      hopper::store_transposed(to, hopper::two<T>(s[0], s[1]), hopper::two<T>(s[2], s[3]),
                               hopper::two<T>(s[4], s[5]), hopper::two<T>(s[6], s[7]));
    }
    hopper::fence_async();
    hopper::sync_threads(1 + warpgroup, 128);
    if (threadIdx.x % 128 == 0) {
      hopper::store_3d(y, box, tile.out + 64 * warpgroup, tile.row * kRows + first, tile.matrix);
    }
  }
}

// Writes the sums of this block to shared memory, for the other blocks of the cluster.
template <typename F>
__device__ void leave(uint32_t base, const float (&sums)[F::kRows / 2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = warp / 4 % F::kHalves;
  const int out = warp * 16 % F::kOut + lane / 4;
#pragma unroll
  for (int i = 0; i < F::kRows / 2; ++i) {
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
    const int at = half * F::kSums + row * F::kSumsRow + out + i / 2 % 2 * 8;
    asm volatile("st.shared::cta.f32 [%0], %1;" ::"r"(base + at * 4), "f"(sums[i]) : "memory");
  }
}

// Adds up the sums of all blocks of the cluster in order; each block stores a part of y.
template <typename T, typename F, int kBlocks>
__device__ void add_up(uint32_t base, const Weight& weight, Tile tile, int part, int rows) {
  constexpr int kPairs = F::kRows * F::kOut / 2, kParts = kBlocks * F::kHalves;
  T* y = static_cast<T*>(weight.y);
  for (int pair = part * kThreads + threadIdx.x; pair < kPairs; pair += kBlocks * kThreads) {
    const int local_row = pair / (F::kOut / 2), local_out = pair % (F::kOut / 2) * 2;
    const int at = local_row * F::kSumsRow + local_out;
    float2 parts[kParts];  // all loads are issued before the first is used
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const uint32_t there = base + (i % F::kHalves * F::kSums + at) * 4;
      parts[i] = hopper::load_cluster(hopper::address_in_block(there, i / F::kHalves));
    }
#pragma unroll
    for (int i = 1; i < kParts; ++i) parts[0].x += parts[i].x, parts[0].y += parts[i].y;
    const int row = tile.row * F::kRows + local_row, out = tile.out + local_out;
    if (row < rows && out < weight.out) {
      const int64_t to = static_cast<int64_t>(tile.matrix * rows + row) * weight.out + out;
      *reinterpret_cast<uint32_t*>(y + to) = hopper::two<T>(parts[0].x, parts[0].y);
    }
  }
}

}  // namespace nm_matmul
