// y[rows, out] = x[rows, k] w, where both have eight bits and w[k, out] is compressed 2:4 along k.
// Sums are multiplied by the scales of their row and output, and rounded once.
//
// Tensor cores take the sparse operand on the left, so the transposed matmul is computed: a tile
// is 128 outputs by kRows rows. One warp fills a ring of stages by TMA; two warpgroups multiply,
// 64 outputs each. A block computes several tiles, and the next is loaded while one is stored.
// Tensor cores read rows of x at the full rate of shared memory, so the weight goes through
// registers, and little else may be read there.
#pragma once

#include "hopper.cuh"
#include "nm_bytes_fragments.cuh"
#include "nm_bytes_store.cuh"
#include "nm_bytes_tiles.cuh"
#include "sparse_bytes.cuh"
#include "sparse_product.cuh"

namespace nm_bytes {

// The registers of this thread's warpgroup; others get those that it gives back.
template <int kCount>
__device__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Adds the stages of a tile to the sums of this thread's warpgroup. While it fills its registers
// for the next stage, tensor cores work for the other warpgroup.
template <typename V, typename F, typename Sum>
__device__ void multiply(Ring<F>& ring, const Lane& mine, int steps, Sum (&sums)[F::kRows / 2]) {
  using Product = hopper::SparseBytesProduct<V, F::kRows>;
  const int lane = threadIdx.x % 32;
  for (int step = 0; step < steps; ++step, ring.next()) {
    ring.wait();
    Fragments fragments;
    mine.load(fragments, ring.values(), ring.indices());
    const uint64_t x = hopper::descriptor(ring.x());
    hopper::wgmma_fence();
    Product::add(sums, fragments.values[0], x, fragments.places[0]);
    Product::add(sums, fragments.values[1], x + (64 >> 4), fragments.places[1]);
    hopper::wgmma_commit();
    hopper::wgmma_wait<0>();  // only then may the registers be written
    if (lane < F::kSharers) ring.release(lane);
  }
}

template <typename T, typename V, typename F>
__global__ __launch_bounds__(kThreads, 1) void product(const __grid_constant__ Maps maps,
                                                       const Shape shape, T* y,
                                                       const float* row_scales,
                                                       const float* out_scales) {
  extern __shared__ uint8_t memory[];
  const uint32_t base = (hopper::shared_address(memory) + 1023) & ~1023u;
  Ring<F> ring(base);
  if (threadIdx.x == 0) ring.init();
  if (threadIdx.x == kConsumers) {
    hopper::prefetch(maps.values);
    hopper::prefetch(maps.indices);
    hopper::prefetch(maps.x);
  }
  F::kSharers > 1 ? hopper::sync_cluster() : __syncthreads();
  const int count = (shape.out_tiles + F::kSharers - 1) / F::kSharers * shape.row_tiles;
  const int first = blockIdx.x / F::kSharers, clusters = gridDim.x / F::kSharers;
  if (threadIdx.x < kConsumers) {
    more_registers<232>();
    const Lane mine;
    for (int index = first; index < count; index += clusters) {
      const Tile tile = nm_matmul::tile_at<F, F::kSharers>(index, shape);
      const Scales<F> scales(row_scales, out_scales, tile, shape);
      typename hopper::SumOf<V>::type sums[F::kRows / 2] = {};
      multiply<V, F>(ring, mine, shape.steps, sums);
      store<T, F>(y, base + F::kRing, tile, shape, scales, sums);
    }
  } else {
    fewer_registers<40>();
    if (threadIdx.x == kConsumers) {
      for (int index = first; index < count; index += clusters) {
        const Tile tile = nm_matmul::tile_at<F, F::kSharers>(index, shape);
        for (int step = 0; step < shape.steps; ++step, ring.next()) ring.load(maps, tile, step);
      }
    }
  }
  // No block exits while others load into its memory or arrive at its barriers.
  if (F::kSharers > 1) hopper::sync_cluster();
}

}  // namespace nm_bytes
