// How the products of eight bits scale, round and store the sums of a tile.
#pragma once

#include "hopper.cuh"
#include "nm_bytes_tiles.cuh"

namespace nm_bytes {

// The scales that a thread loads while the sums are made: of its two outputs, and of some rows,
// which its warpgroup shares.
template <typename F>
struct Scales {
  static constexpr int kRows = (F::kRows + 127) / 128;  // of each thread

  __device__ Scales(const float* of_rows, const float* of_outs, Tile tile, const Shape& shape) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int out = min(tile.out + warp * 16 + lane / 4 * 2, shape.out - 2);
    outs = *reinterpret_cast<const float2*>(of_outs + out);
    for (int i = 0; i < kRows; ++i) {
      const int row = tile.row * F::kRows + i * 128 + threadIdx.x % 128;
      rows[i] = of_rows[min(row, shape.rows - 1)];
    }
  }

  float2 outs;
  float rows[kRows];
};

__device__ inline float2 load_pair(uint32_t address) {
  float2 v;
  asm volatile("ld.shared::cta.v2.f32 {%0, %1}, [%2];"
               : "=f"(v.x), "=f"(v.y)
               : "r"(address)
               : "memory");
  return v;
}

// Scales and rounds a tile, and stores it, kStoreRows rows at a time, through boxes of shared
// memory. A lane has two neighbouring outputs of two rows in every eight.
template <typename T, typename F, typename Sum>
__device__ void store(const CUtensorMap& y, uint32_t outbox, Tile tile, const Scales<F>& scales,
                      const Sum (&sums)[F::kRows / 2]) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const uint32_t boxes = outbox + warpgroup * F::kBoxes * F::kBox;
  const uint32_t row_scales = outbox + 2 * F::kBoxes * F::kBox + warpgroup * F::kRows * 4;
  for (int i = 0; i < Scales<F>::kRows; ++i) {
    const int row = i * 128 + threadIdx.x % 128;
    if (row < F::kRows) {
      asm volatile("st.shared::cta.f32 [%0], %1;" ::"r"(row_scales + row * 4),
                   "f"(scales.rows[i])
                   : "memory");
    }
  }
  const int chunk = 2 * warp + lane / 16, at = lane / 4 % 4 * 4, own_row = lane % 4 * 2;
#pragma unroll
  for (int first = 0; first < F::kRows; first += kStoreRows) {
    const uint32_t box = boxes + first / kStoreRows % F::kBoxes * F::kBox;
    if (threadIdx.x % 128 == 0) hopper::wait_stores<F::kBoxes - 1>();
    hopper::sync_threads(1 + warpgroup, 128);
#pragma unroll
    for (int eight = 0; eight < kStoreRows; eight += 8) {
      const float2 of_rows = load_pair(row_scales + (first + eight + own_row) * 4);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Sum* s = sums + (first + eight) / 2 + i;
        const float of_row = i ? of_rows.y : of_rows.x;
        const uint32_t two =
            hopper::two<T>(static_cast<float>(s[0]) * of_row * scales.outs.x,
                           static_cast<float>(s[2]) * of_row * scales.outs.y);
        const int row = own_row + i;
        const uint32_t to = box + (eight + row) * 128 + ((chunk ^ row) << 4) + at;
        asm volatile("st.shared::cta.u32 [%0], %1;" ::"r"(to), "r"(two) : "memory");
      }
    }
    hopper::fence_async();
    hopper::sync_threads(1 + warpgroup, 128);
    if (threadIdx.x % 128 == 0) {
      hopper::store_2d(y, box, tile.out + 64 * warpgroup, tile.row * F::kRows + first);
    }
  }
}

}  // namespace nm_bytes
