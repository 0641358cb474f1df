// How the products of eight bits scale, round and store the sums of a tile.
#pragma once

#include "hopper.cuh"
#include "nm_bytes_tiles.cuh"

namespace nm_bytes {

// Scales and rounds a tile, and stores it, kStoreRows rows at a time, through two boxes of shared
// memory. A lane has two neighbouring outputs of two rows in every eight.
template <typename T, int kRows, typename Sum>
__device__ void store(const CUtensorMap& y, uint32_t outbox, Tile tile, const Shape& shape,
                      const float* row_scales, const float* out_scales,
                      const Sum (&sums)[kRows / 2]) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int out = tile.out + warpgroup * 64 + warp * 16 + lane / 4 * 2, own_row = lane % 4 * 2;
  const float2 outs =
      *reinterpret_cast<const float2*>(out_scales + min(out, shape.out - 2));
  const uint32_t boxes = outbox + warpgroup * 2 * kStoreRows * 128;
  const int chunk = 2 * warp + lane / 16, at = lane / 4 % 4 * 4;
  // The scales of the next box are loaded while one is filled.
  float scales[kStoreRows / 4], next[kStoreRows / 4];
  const auto load = [&](float (&to)[kStoreRows / 4], int first) {
#pragma unroll
    for (int i = 0; i < kStoreRows / 4; ++i) {
      const int row = tile.row * kRows + first + i / 2 * 8 + own_row + i % 2;
      to[i] = row_scales[min(row, shape.rows - 1)];
    }
  };
  load(scales, 0);
#pragma unroll
  for (int first = 0; first < kRows; first += kStoreRows) {
    const uint32_t box = boxes + first / kStoreRows % 2 * kStoreRows * 128;
    if (first + kStoreRows < kRows) load(next, first + kStoreRows);
    if (threadIdx.x % 128 == 0) hopper::wait_stores<1>();
    hopper::sync_threads(1 + warpgroup, 128);
#pragma unroll
    for (int i = 0; i < kStoreRows / 4; ++i) {
      const Sum* s = sums + first / 2 + i / 2 * 4 + i % 2;
      const uint32_t two = hopper::two<T>(static_cast<float>(s[0]) * scales[i] * outs.x,
                                          static_cast<float>(s[2]) * scales[i] * outs.y);
      const int row = own_row + i % 2;  // of eight
      const uint32_t to = box + (i / 2 * 8 + row) * 128 + ((chunk ^ row) << 4) + at;
      asm volatile("st.shared::cta.u32 [%0], %1;" ::"r"(to), "r"(two) : "memory");
    }
    hopper::fence_async();
    hopper::sync_threads(1 + warpgroup, 128);
    if (threadIdx.x % 128 == 0) {
      hopper::store_2d(y, box, tile.out + 64 * warpgroup, tile.row * kRows + first);
    }
#pragma unroll
    for (int i = 0; i < kStoreRows / 4; ++i) scales[i] = next[i];
  }
}

}  // namespace nm_bytes
