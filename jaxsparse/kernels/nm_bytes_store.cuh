// How the products of eight bits scale, round and store the sums of a tile.
#pragma once

#include "hopper.cuh"
#include "nm_bytes_tiles.cuh"

namespace nm_bytes {

// The scales that a thread loads while the sums are made: of its two outputs, and of some rows,
// which its warpgroup shares. Without those of rows they are 1.
template <typename F>
struct Scales {
  static constexpr int kRows = (F::kRows + 127) / 128;  // of each thread

  __device__ Scales(const float* of_rows, const Weight& weight, Tile tile, const Shape& shape) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int out = min(tile.out + warp * 16 + lane / 4 * 2, weight.out - 2);
    outs = *reinterpret_cast<const float2*>(weight.scales + tile.matrix * weight.out + out);
    for (int i = 0; i < kRows; ++i) {
      const int row = tile.row * F::kRows + i * 128 + threadIdx.x % 128;
      const int at = tile.matrix * shape.rows + min(row, shape.rows - 1);
      rows[i] = of_rows ? of_rows[at] : 1;
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

// Returns two neighbouring outputs of a row.
template <typename T, typename Sum>
__device__ uint32_t scaled(Sum low, Sum high, float of_row, float2 of_outs) {
  return hopper::two<T>(static_cast<float>(low) * of_row * of_outs.x,
                        static_cast<float>(high) * of_row * of_outs.y);
}

// Scales, rounds and stores a tile. Each warp has boxes of its 16 outputs, which TMA stores while
// the next is filled. A lane has two neighbouring outputs of two rows in every eight; of every
// four lanes, two begin with the second row, so that no two rows share their banks.
template <typename T, typename F, typename Sum>
__device__ void store(const CUtensorMap& y, uint32_t scales_at, Tile tile,
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
  const uint32_t boxes = scales_at + F::kScales + warp * 2 * kBoxBytes;
  const int own_row = lane % 4 * 2, begin = lane / 2 % 2;
#pragma unroll
  for (int first = 0; first < F::kRows; first += kBoxRows) {
    const uint32_t box = boxes + first / kBoxRows % 2 * kBoxBytes;
    if (lane == 0) hopper::wait_stores<1>();  // of this box
    __syncwarp();
#pragma unroll
    for (int eight = 0; eight < kBoxRows; eight += 8) {
      const float2 of_rows = load_pair(row_scales + (first + eight + own_row) * 4);
      const Sum* s = sums + (first + eight) / 2;
      const uint32_t even = scaled<T>(s[0], s[2], of_rows.x, scales.outs);
      const uint32_t odd = scaled<T>(s[1], s[3], of_rows.y, scales.outs);
      const uint32_t to = box + (eight + own_row) * kBoxRow + lane / 4 * 4;
      hopper::store_word(to + begin * kBoxRow, begin ? odd : even);
      hopper::store_word(to + (begin ^ 1) * kBoxRow, begin ? even : odd);
    }
    hopper::fence_async();
    __syncwarp();
    if (lane == 0) {
      hopper::store_3d(y, box, tile.out + warp * 16, tile.row * F::kRows + first, tile.matrix);
    }
  }
}

}  // namespace nm_bytes
