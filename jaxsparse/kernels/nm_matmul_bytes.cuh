// y[rows, out] = x[rows, k] w, where w[k, out] has eight bits and is compressed 2:4 along k, or for
// each matrix of a stack. x has eight bits too, or 16, to which w is widened. Sums are multiplied by
// the scales of their output, and perhaps of their row, and rounded once.
//
// Tensor cores take the sparse operand on the left, so the transposed matmul is computed: a tile
// is 128 outputs by kRows rows. One warp fills a ring of stages by TMA; two warpgroups multiply,
// 64 outputs each. A block computes several tiles, and the next is loaded while one is stored.
// Tensor cores read rows of x at the full rate of shared memory, so the weight goes through
// registers, and little else may be read there. Where there are few tiles, the blocks of a cluster
// have slices of the depth, and the first adds up their sums.
#pragma once

#include "hopper.cuh"
#include "nm_bytes_store.cuh"
#include "nm_bytes_tiles.cuh"
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

// Adds the stages of a tile to the sums of this thread's warpgroup. It has two sets of registers:
// tensor cores work on one stage while those of the next are filled.
template <typename Lane, typename F>
__device__ void multiply(Ring<F>& ring, const Lane& mine, Steps steps,
                         typename Lane::Sum (&sums)[F::kRows / 2]) {
  using Fragments = typename Lane::Fragments;
  const int lane = threadIdx.x % 32;
  using Parts = Fragments[F::kParts];
  const auto fill = [&](Parts& parts) {
    ring.wait();
#pragma unroll
    for (int i = 0; i < F::kParts; ++i) mine.load(parts[i], ring.values(i), ring.indices(i));
  };
  const auto add = [&](const Parts& parts, bool is_first) {
    hopper::wgmma_fence();
#pragma unroll
    for (int i = 0; i < F::kParts; ++i) {
      Lane::template add<F::kRows>(sums, parts[i], hopper::descriptor(ring.x(i)));
    }
    hopper::wgmma_commit();
    ring.next();
    if (is_first) return;
    hopper::wgmma_wait<1>();  // the stage before has been read
    if (lane < F::kSharers) ring.release(lane, 2);
  };
  Parts even, odd;
  const bool is_any = steps.begin < steps.end;
  if (is_any) fill(even);
  for (int step = steps.begin; step < steps.end; step += 2) {
    add(even, step == steps.begin);
    if (step + 1 == steps.end) break;
    fill(odd);
    add(odd, false);
    if (step + 2 < steps.end) fill(even);
  }
  hopper::wgmma_wait<0>();
#pragma unroll
  for (auto& sum : sums) hopper::keep_behind(sum);
  if (is_any && lane < F::kSharers) ring.release(lane, 1);
}

// Adds the sums of all slices, always in the same order; only the first block has the result.
// The others leave theirs in the ring of the first.
template <typename F, typename Sum>
__device__ void add_slices(uint32_t ring, Sum (&sums)[F::kRows / 2]) {
  constexpr int kCount = F::kRows / 2, kRow = kConsumers * 4;  // bytes
  const int slice = hopper::block_in_cluster();
  const uint32_t mine = ring + threadIdx.x * 4;
  hopper::sync_cluster();  // all rings have been read
  if (slice > 0) {
    const uint32_t to = hopper::address_in_block(mine + (slice - 1) * kCount * kRow, 0);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(to + i * kRow),
                   "r"(reinterpret_cast<const uint32_t&>(sums[i]))
                   : "memory");
    }
  }
  hopper::sync_cluster();
  if (slice > 0) return;
  for (int from = 0; from < F::kSlices - 1; ++from) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      uint32_t bits;
      asm volatile("ld.shared::cta.b32 %0, [%1];"
                   : "=r"(bits)
                   : "r"(mine + (from * kCount + i) * kRow)
                   : "memory");
      sums[i] += reinterpret_cast<const Sum&>(bits);
    }
  }
}

template <typename T, typename Lane, typename F>
__global__ __launch_bounds__(kThreads, 1) void product(const __grid_constant__ Products all,
                                                       const Shape shape,
                                                       const float* row_scales) {
  extern __shared__ uint8_t memory[];
  const uint32_t base = (hopper::shared_address(memory) + 1023) & ~1023u;
  Ring<F> ring(base);
  if (threadIdx.x == 0) ring.init();
  if (threadIdx.x == kConsumers) {
    const Maps& maps = all.weights[0].maps;
    hopper::prefetch(maps.values);
    hopper::prefetch(maps.indices);
    hopper::prefetch(maps.x);
  }
  F::kBlocks > 1 ? hopper::sync_cluster() : __syncthreads();
  const int count = shape.groups * shape.row_tiles * shape.matrices;
  const int first = blockIdx.x / F::kBlocks, clusters = gridDim.x / F::kBlocks;
  const Steps steps = Steps::of<F>(shape);
  if (threadIdx.x < kConsumers) {
    more_registers<232>();
    const Lane mine;
    for (int index = first; index < count; index += clusters) {
      const Tile tile = nm_matmul::tile_at<F, F::kSharers>(index, all, shape);
      const Weight& weight = all.weights[tile.weight];
      const Scales<F> scales(row_scales, weight, tile, shape);
      typename Lane::Sum sums[F::kRows / 2] = {};
      multiply<Lane, F>(ring, mine, steps, sums);
      if constexpr (F::kSlices > 1) {
        add_slices<F>(base, sums);  // the cluster has no other tile
        if (hopper::block_in_cluster() > 0) return;
      }
      store<T, F>(weight.maps.y, base + F::kRing, tile, scales, sums);
    }
    if (threadIdx.x % 32 == 0) hopper::wait_stores<0>();
  } else {
    fewer_registers<40>();
    if (threadIdx.x == kConsumers) {
      for (int index = first; index < count; index += clusters) {
        const Tile tile = nm_matmul::tile_at<F, F::kSharers>(index, all, shape);
        const Maps& maps = all.weights[tile.weight].maps;
#pragma unroll 1  // it has few registers
        for (int i = steps.begin; i < steps.end; ++i, ring.next()) {
          ring.load(maps, shape, tile, i);
        }
      }
    }
    __syncwarp();
    for (int i = 0; i < 2 && F::kSlices > 1; ++i) hopper::sync_cluster();  // as in add_slices
  }
  // No block exits while others load into its memory or arrive at its barriers.
  if (F::kSharers > 1) hopper::sync_cluster();
}

}  // namespace nm_bytes
