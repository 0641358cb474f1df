// The tiles of the products of eight bits, and the ring of stages through which they are read.
#pragma once

#include "hopper.cuh"
#include "nm_tiles.cuh"

namespace nm_bytes {

using nm_matmul::Maps, nm_matmul::Products, nm_matmul::Shape, nm_matmul::Tile, nm_matmul::Weight;

constexpr int kConsumers = 256;  // threads: two warpgroups, of 64 outputs each
constexpr int kThreads = kConsumers + 128;

// What a store of a warp writes: 16 outputs, two bytes each, of some rows.
constexpr int kBoxRows = 16, kBoxRow = 16 * 2, kBoxBytes = kBoxRows * kBoxRow;
constexpr int kBoxes = kConsumers / 32 * 2 * kBoxBytes;  // bytes of all: each warp has two

constexpr int kRowBytes = 128;  // of a row of x, in a stage

// The template parameters of a kernel, whose x has elements X. The blocks of a cluster either share
// their rows, or have the same tile, and each a slice of its depth. A stage of small tiles has
// several parts, since the time of a stage is that of its synchronisation.
template <typename X, int kRows_, int kParts_, int kStages_, int kSharers_ = 1, int kSlices_ = 1>
struct Form {
  static constexpr int kRows = kRows_, kStages = kStages_;
  static constexpr int kSharers = kSharers_, kSlices = kSlices_, kBlocks = kSharers * kSlices;
  static constexpr int kParts = kParts_;
  static constexpr int kPartDepth = kRowBytes / sizeof(X), kDepth = kParts * kPartDepth;  // of k
  static constexpr int kOut = 128;
  static constexpr int kValuesBytes = kDepth / 2 * kOut, kIndicesBytes = kDepth / 8 * kOut;
  static constexpr int kStage = kParts * kRows * kRowBytes + kValuesBytes + kIndicesBytes;
  static constexpr int kRing = kStages * kStage;
  static constexpr int kScales = 2 * kRows * 4;  // of rows, for each warpgroup
  static constexpr int kBytes = 1024 + kRing + kScales + kBoxes + kStages * 16;
  static_assert(kStage % 1024 == 0 && kScales % 128 == 0 && kRows % (8 * kSharers) == 0,
                "swizzled rows");
  static_assert(kSharers == 1 || kSlices == 1, "one kind of cluster");
  static_assert((kSlices - 1) * kRows * kOut * 4 <= kRing, "the ring takes the others' sums");
};

// The stages of a tile that are this block's.
struct Steps {
  template <typename F>
  __device__ static Steps of(const Shape& shape) {
    if (F::kSlices == 1) return {0, shape.steps};
    const int slice = hopper::block_in_cluster();
    return {slice * shape.steps / F::kSlices, (slice + 1) * shape.steps / F::kSlices};
  }

  int begin, end;
};

// Blocks that share their rows load a part of them each, for all blocks of the cluster.
template <typename F>
class Ring {
 public:
  __device__ explicit Ring(uint32_t base)
      : base_(base), barriers_(base + F::kRing + F::kScales + kBoxes) {}

  __device__ void init() const {
    for (int i = 0; i < F::kStages; ++i) {
      hopper::init_barrier(full(i), 1);
      hopper::init_barrier(empty(i), F::kSharers * kConsumers / 32);
    }
    hopper::publish_barriers();
  }
  __device__ void next() {
    if (++stage_ == F::kStages) stage_ = 0, parity_ ^= 1;
  }
  __device__ void load(const Maps& maps, const Shape& shape, Tile tile, int step) const {
    constexpr int kPart = F::kRows / F::kSharers;
    hopper::wait(empty(stage_), parity_ ^ 1);
    const uint32_t barrier = full(stage_);
    hopper::expect_bytes(barrier, F::kStage);
    const int k = step * F::kDepth;
    const int row = tile.matrix * shape.rows + tile.row * F::kRows;
    // Rows and indices of the next matrix may follow: those rows are not stored, and the values of
    // those indices are zero.
    const int index_row = tile.matrix * shape.index_rows + k / 8;
    hopper::load_3d(values(), maps.values, barrier, tile.out, k / 2, tile.matrix);
    hopper::load_2d(indices(), maps.indices, barrier, tile.out, index_row);
    for (int part = 0; part < F::kParts; ++part) {
      const int column = k + part * F::kPartDepth;
      if constexpr (F::kSharers > 1) {
        const int first = hopper::block_in_cluster() * kPart;
        hopper::load_2d(x(part) + first * kRowBytes, maps.x, barrier, column, row + first,
                        (1 << F::kSharers) - 1);
      } else {
        hopper::load_2d(x(part), maps.x, barrier, column, row);
      }
    }
  }
  __device__ void wait() const { hopper::wait(full(stage_), parity_); }
  // Signals to one block of the cluster that a warp has read the stage that is `back` before.
  __device__ void release(int block, int back) const {
    const int i = stage_ < back ? stage_ - back + F::kStages : stage_ - back;
    if constexpr (F::kSharers > 1) {
      hopper::arrive_remote(hopper::address_in_block(empty(i), block));
    } else {
      hopper::arrive(empty(i));
    }
  }

  __device__ uint32_t x(int part) const {
    return base_ + stage_ * F::kStage + part * F::kRows * kRowBytes;
  }
  __device__ uint32_t values(int part = 0) const {
    return x(F::kParts) + part * (F::kValuesBytes / F::kParts);
  }
  __device__ uint32_t indices(int part = 0) const {
    return values(F::kParts) + part * (F::kIndicesBytes / F::kParts);
  }

 private:
  __device__ uint32_t full(int i) const { return barriers_ + 16 * i; }
  __device__ uint32_t empty(int i) const { return full(i) + 8; }

  uint32_t base_, barriers_;
  int stage_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace nm_bytes
