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
#pragma unroll
  for (int first = 0; first < kRows; first += kStoreRows) {
    const uint32_t box = boxes + first / kStoreRows % 2 * kStoreRows * 128;
    if (threadIdx.x % 128 == 0) hopper::wait_stores<1>();
    hopper::sync_threads(1 + warpgroup, 128);
#pragma unroll
    for (int eight = 0; eight < kStoreRows; eight += 8) {
      const Sum* s = sums + (first + eight) / 2;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = own_row + i, in_y = tile.row * kRows + first + eight + row;
        const float of_row = row_scales[min(in_y, shape.rows - 1)];
        const uint32_t two = hopper::two<T>(static_cast<float>(s[i]) * of_row * outs.x,
                                            static_cast<float>(s[i + 2]) * of_row * outs.y);
        const uint32_t to = box + (eight + row) * 128 + ((chunk ^ row) << 4) + at;
        asm volatile("st.shared::cta.u32 [%0], %1;" ::"r"(to), "r"(two) : "memory");
      }
    }
    hopper::fence_async();
    hopper::sync_threads(1 + warpgroup, 128);
    if (threadIdx.x % 128 == 0) {
      hopper::store_2d(y, box, tile.out + 64 * warpgroup, tile.row * kRows + first);
    }
  }
}

}  // namespace nm_bytes
