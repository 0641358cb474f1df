// y[rows, out] = x[rows, k] w, for a compressed w[k, out] that is 2:4 sparse along k, or for each
// matrix of a stack. What lies beyond the k of one matrix is zero, not the next one. There are
// two kernels, `whole` and `split`; those for few rows are in nm_few_rows.cuh and nm_few_bytes.cuh.
//
// Tensor cores take the sparse operand on the left, so the transposed matmul is computed: a tile
// is kOut outputs by kRows rows. One warp fills a ring of stages by TMA, two warpgroups multiply,
// 64 outputs each. Values and indices are loaded in the layout in which they are stored, with
// contiguous outputs. A byte of indices has the format that tensor cores expect: two groups of
// four, the first in the low bits.
#pragma once

#include "hopper.cuh"
#include "nm_store.cuh"
#include "nm_tiles.cuh"
#include "sparse_product.cuh"

namespace nm_matmul {

// If the blocks of a cluster share their rows, each block loads a part of them for all.
template <typename F, int kSharers = 1>
class Ring {
  static_assert(kSharers == 1 || (F::kHalves == 1 && F::kRows % (8 * kSharers) == 0));

 public:
  __device__ Ring(uint32_t base, int more) : base_(base), barriers_(base + F::kRing + more) {}

  __device__ void init() const {
    for (int i = 0; i < F::kStages; ++i) {
      hopper::init_barrier(full(i), 1);
      hopper::init_barrier(empty(i), kSharers * kConsumers / 32);
    }
    hopper::publish_barriers();
  }
  __device__ void next() {
    if (++stage_ == F::kStages) stage_ = 0, parity_ ^= 1;
  }
  __device__ void load(const Maps& maps, const Shape& shape, Tile tile, int step) const {
    hopper::wait(empty(stage_), parity_ ^ 1);
    const uint32_t barrier = full(stage_);
    hopper::expect_bytes(barrier, F::kStage);
    const int k = step * F::kDepth;
    const int row = tile.matrix * shape.rows + tile.row * F::kRows;
    // Rows and indices of the next matrix may follow: those rows are not stored, and the values of
    // those indices are zero.
    const int index_row = tile.matrix * shape.index_rows + k / 8;
    for (int i = 0; i < 2; ++i) {
      const int out = F::kHalves == 1 ? 64 * i : 0, depth = F::kHalves == 2 ? 32 * i : 0;
      hopper::load_3d(values(i), maps.values, barrier, tile.out + out, k / 2 + depth, tile.matrix);
    }
    if constexpr (F::kBox == F::kOut) {
      hopper::load_2d(indices(), maps.indices, barrier, tile.out, index_row);
    } else {
      hopper::load_3d(indices(), maps.indices, barrier, 0, index_row, tile.out / F::kBox);
    }
    if constexpr (kSharers > 1) {
      constexpr int kPart = F::kRows / kSharers;
      const int first = hopper::block_in_cluster() * kPart;
      hopper::load_2d(x(0) + first * 128, maps.x, barrier, k, row + first, (1 << kSharers) - 1);
    } else {
      for (int i = 0; i < F::kHalves; ++i) {
        hopper::load_2d(x(i), maps.x, barrier, k + 64 * i, row);
      }
    }
  }
  __device__ void wait() const { hopper::wait(full(stage_), parity_); }
  // Signals to one block of the cluster that a warp has read this stage.
  __device__ void release(int block) const {
    if constexpr (kSharers > 1) {
      hopper::arrive_remote(hopper::address_in_block(empty(stage_), block));
    } else {
      hopper::arrive(empty(stage_));
    }
  }

  __device__ uint32_t values(int i) const { return at(i * F::kValuesBytes / 2); }
  __device__ uint32_t x(int i) const { return at(F::kValuesBytes + i * F::kRowsBytes); }
  __device__ uint32_t indices() const { return at(F::kStage - F::kIndicesBytes); }

 private:
  __device__ uint32_t at(int offset) const { return base_ + stage_ * F::kStage + offset; }
  __device__ uint32_t full(int i) const { return barriers_ + 16 * i; }
  __device__ uint32_t empty(int i) const { return full(i) + 8; }

  uint32_t base_, barriers_;
  int stage_ = 0;
  uint32_t parity_ = 0;
};

// Adds the steps of a tile to the sums of this thread's warpgroup.
template <typename T, typename F, int kSharers>
__device__ void multiply(Ring<F, kSharers>& ring, int steps, float (&sums)[F::kRows / 2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = warp / 4 % F::kHalves;
  // A lane's indices: for two outputs, two bytes of consecutive rows.
  const int out = warp * 16 % F::kOut, row = half * 8 + lane % 4 * 2;
  const uint32_t mine = out / F::kBox * F::kBoxBytes + row * F::kBox + out % F::kBox + lane / 4;
  Ring<F, kSharers> done = ring;
  for (int step = 0; step < steps; ++step) {
    ring.wait();
    const uint32_t at = ring.indices() + mine;
    uint32_t places = hopper::load_byte(at) | hopper::load_byte(at + F::kBox) << 8 |
                      hopper::load_byte(at + 8) << 16 | hopper::load_byte(at + 8 + F::kBox) << 24;
    // Beyond the weight all bits are zero: two equal positions, but the second must be higher.
    places |= (~(places >> 2 | places >> 3) & 0x11111111) << 2;
    const uint64_t values = hopper::descriptor(ring.values(warp / 4));
    const uint64_t x = hopper::descriptor(ring.x(half));
    hopper::wgmma_fence();
    hopper::SparseProduct<T, F::kRows, 0>::add(sums, values, x, places);
    hopper::SparseProduct<T, F::kRows, 1>::add(sums, values + (2048 >> 4), x + (64 >> 4), places);
    hopper::wgmma_commit();
    if (step > 0) {
      hopper::wgmma_wait<1>();
      if (lane < kSharers) done.release(lane);
      done.next();
    }
    ring.next();
  }
  hopper::wgmma_wait<0>();
  if (steps > 0 && lane < kSharers) done.release(lane);
}

__device__ inline uint32_t aligned_base() {
  extern __shared__ uint8_t memory[];
  return (hopper::shared_address(memory) + 1023) & ~1023u;
}

template <typename F, int kSharers>
__device__ void prepare(const Ring<F, kSharers>& ring, const Maps& maps) {
  if (threadIdx.x == 0) ring.init();
  if (threadIdx.x == kConsumers) {
    hopper::prefetch(maps.values);
    hopper::prefetch(maps.indices);
    hopper::prefetch(maps.x);
  }
  kSharers > 1 ? hopper::sync_cluster() : __syncthreads();
}

// For many tiles: each block computes several, and loads the next while it stores one.
template <typename T, typename F, int kSharers>
__global__ __launch_bounds__(kThreads, 1) void whole(const __grid_constant__ Products all,
                                                     const Shape shape) {
  const uint32_t base = aligned_base();
  Ring<F, kSharers> ring(base, F::kOutbox);
  prepare(ring, all.weights[0].maps);
  const int count = shape.groups * shape.row_tiles * shape.matrices;
  const int first = blockIdx.x / kSharers, clusters = gridDim.x / kSharers;
  if (threadIdx.x < kConsumers) {
    for (int index = first; index < count; index += clusters) {
      float sums[F::kRows / 2] = {};
      multiply<T, F>(ring, shape.steps, sums);
      const Tile tile = tile_at<F, kSharers>(index, all, shape);
      const Weight& weight = all.weights[tile.weight];
      store<T, F::kRows>(weight.maps.y, base + F::kRing, tile, sums);
    }
    if (threadIdx.x % 128 == 0) hopper::wait_stores<0>();
  } else if (threadIdx.x == kConsumers) {
    for (int index = first; index < count; index += clusters) {
      const Tile tile = tile_at<F, kSharers>(index, all, shape);
      const Maps& maps = all.weights[tile.weight].maps;
      for (int step = 0; step < shape.steps; ++step, ring.next()) {
        ring.load(maps, shape, tile, step);
      }
    }
  }
  // No block exits while others load into its memory or arrive at its barriers.
  if (kSharers > 1) hopper::sync_cluster();
}

// For few tiles: the blocks of a cluster share one tile, and each has a part of k. The clusters of
// one matrix follow those of another.
template <typename T, typename F, int kBlocks>
__global__ __launch_bounds__(kThreads, F::kRows > 128 ? 1 : 2) void split(
    const __grid_constant__ Products all, const Shape shape) {
  static_assert(F::kHalves * F::kSums * 4 <= F::kRing, "the sums take the ring's place");
  const uint32_t base = aligned_base();
  Ring<F> ring(base, 0);
  Tile tile = {0, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z) / kBlocks};
  find_weight<F, 1>(tile, blockIdx.x, all);
  const Weight& weight = all.weights[tile.weight];
  prepare(ring, weight.maps);
  const int part = blockIdx.z % kBlocks;
  const int first = part * shape.steps / kBlocks, last = (part + 1) * shape.steps / kBlocks;
  if (threadIdx.x < kConsumers) {
    float sums[F::kRows / 2] = {};
    multiply<T, F>(ring, last - first, sums);
    hopper::sync_threads(3, kConsumers);  // the ring is empty
    leave<F>(base, sums);
  } else if (threadIdx.x == kConsumers) {
    for (int step = first; step < last; ++step, ring.next()) {
      ring.load(weight.maps, shape, tile, step);
    }
  }
  hopper::sync_cluster();
  add_up<T, F, kBlocks>(base, weight, tile, part, shape.rows);
  hopper::sync_cluster();  // no block exits while others read its sums
}

}  // namespace nm_matmul
