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

// Scales, rounds and stores a tile. A lane has two neighbouring outputs of two rows in every
// eight: eight lanes write 32 bytes of a row, which needs neither shared memory nor a barrier.
template <typename T, typename F, typename Sum>
__device__ void store(T* y, uint32_t scales_at, Tile tile, const Shape& shape,
                      const Scales<F>& scales, const Sum (&sums)[F::kRows / 2]) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t row_scales = scales_at + warpgroup * F::kRows * 4;
  hopper::sync_threads(1 + warpgroup, 128);  // those of the tile before have been read
  for (int i = 0; i < Scales<F>::kRows; ++i) {
    const int row = i * 128 + threadIdx.x % 128;
    if (row < F::kRows) {
      asm volatile("st.shared::cta.f32 [%0], %1;" ::"r"(row_scales + row * 4),
                   "f"(scales.rows[i])
                   : "memory");
    }
  }
  hopper::sync_threads(1 + warpgroup, 128);
  const int out = tile.out + warp * 16 + lane / 4 * 2, own_row = lane % 4 * 2;
  if (out >= shape.out) return;
  const int rows = shape.rows - tile.row * F::kRows - own_row;
  T* to = y + static_cast<int64_t>(tile.row * F::kRows + own_row) * shape.out + out;
#pragma unroll
  for (int eight = 0; eight < F::kRows; eight += 8, to += int64_t{8} * shape.out) {
    const float2 of_rows = load_pair(row_scales + (eight + own_row) * 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Sum* s = sums + eight / 2 + i;
      const float of_row = i ? of_rows.y : of_rows.x;
      const uint32_t two = hopper::two<T>(static_cast<float>(s[0]) * of_row * scales.outs.x,
                                          static_cast<float>(s[2]) * of_row * scales.outs.y);
      if (eight + i < rows) *reinterpret_cast<uint32_t*>(to + i * shape.out) = two;
    }
  }
}

}  // namespace nm_bytes
