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

// Adds the stages of a tile to the sums of this thread's warpgroup. While tensor cores work on
// one stage, the registers of the next are filled; until those are multiplied, tensor cores work
// for the other warpgroup.
template <typename V, typename F, typename Sum>
__device__ void multiply(Ring<F>& ring, const Lane& mine, int steps, Sum (&sums)[F::kRows / 2]) {
  using Product = hopper::SparseBytesProduct<V, F::kRows>;
  const int group = threadIdx.x / 128;
  Fragments now, next;
  const auto load = [&](Fragments& fragments) {
    ring.wait();
    mine.load(fragments, ring.values(group), ring.indices(group));
  };
  Ring<F> done = ring;
  if (steps > 0) load(now);
  for (int step = 0; step < steps; ++step) {
    const uint64_t x = hopper::descriptor(ring.x());
    hopper::wgmma_fence();
    Product::add(sums, now.values[0], x, now.places[0]);
    Product::add(sums, now.values[1], x + (64 >> 4), now.places[1]);
    hopper::wgmma_commit();
    ring.next();
    if (step + 1 < steps) load(next);
    hopper::wgmma_wait<0>();
    if (threadIdx.x % 32 < F::kSharers) done.release(threadIdx.x % 32);
    done.next();
    now = next;
  }
}

// The sums of a tile. Those of float8 keep some 14 bits in tensor cores, so that with chunks
// they are added up in float32 from time to time.
template <typename V, typename F, typename Sum>
__device__ void add_up(Ring<F>& ring, const Lane& mine, int steps, Sum (&sums)[F::kRows / 2]) {
  if constexpr (F::kChunk == 0) {
    multiply<V, F>(ring, mine, steps, sums);
  } else {
    for (int i = 0; i < steps; i += F::kChunk) {
      Sum part[F::kRows / 2] = {};
      multiply<V, F>(ring, mine, min(F::kChunk, steps - i), part);
#pragma unroll
      for (int j = 0; j < F::kRows / 2; ++j) sums[j] += part[j];
    }
  }
}

template <typename T, typename V, typename F>
__global__ __launch_bounds__(F::kThreads, 1) void product(const __grid_constant__ Maps maps,
                                                          const Shape shape,
                                                          const float* row_scales,
                                                          const float* out_scales) {
  extern __shared__ uint8_t memory[];
  const uint32_t base = (hopper::shared_address(memory) + 1023) & ~1023u;
  Ring<F> ring(base);
  if (threadIdx.x == 0) ring.init();
  if (threadIdx.x == F::kConsumers) {
    hopper::prefetch(maps.values);
    hopper::prefetch(maps.indices);
    hopper::prefetch(maps.x);
  }
  F::kSharers > 1 ? hopper::sync_cluster() : __syncthreads();
  const int count = (shape.out_tiles + F::kSharers - 1) / F::kSharers * shape.row_tiles;
  const int first = blockIdx.x / F::kSharers, clusters = gridDim.x / F::kSharers;
  if (threadIdx.x < F::kConsumers) {
    more_registers<F::kMost>();
    const Lane mine;
    for (int index = first; index < count; index += clusters) {
      typename hopper::SumOf<V>::type sums[F::kRows / 2] = {};
      add_up<V, F>(ring, mine, shape.steps, sums);
      const Tile tile = nm_matmul::tile_at<F, F::kSharers>(index, shape);
      store<T, F::kRows>(maps.y, base + F::kRing, tile, shape, row_scales, out_scales, sums);
    }
    if (threadIdx.x % 128 == 0) hopper::wait_stores<0>();
  } else {
    fewer_registers<F::kFewest>();
    if (threadIdx.x == F::kConsumers) {
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
