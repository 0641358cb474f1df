// The tiles of the kernels for many rows.
#pragma once

#include "hopper.cuh"

namespace nm_matmul {

constexpr int kConsumers = 256;  // threads: two warpgroups
constexpr int kThreads = kConsumers + 32;
constexpr int kStoreRows = 32;  // rows that one store writes

// The template parameters of a kernel. In a tile of 128 outputs, each warpgroup has 64 outputs
// and the full depth; in a tile of 64 outputs, each has all outputs and half of the depth.
template <int kRows_, int kOut_, int kStages_>
struct Form {
  static constexpr int kRows = kRows_, kOut = kOut_, kStages = kStages_;
  static constexpr int kHalves = 128 / kOut;       // of the depth
  static constexpr int kDepth = 64 * kHalves;      // of k, in a stage
  static constexpr int kValuesBytes = 128 * 64;    // half of the depth, two bytes each
  static constexpr int kIndicesBytes = 128 * 8;    // four bits per group of four
  // Outputs per row of a box of indices. Long rows load faster; short rows are read from shared
  // memory without bank conflicts.
  static constexpr int kBox = kOut == 64 ? 64 : 16;
  static constexpr int kBoxBytes = kBox * kDepth / 8;
  static constexpr int kRowsBytes = kRows * 64 * 2;  // half of the depth
  static constexpr int kStage = kValuesBytes + kIndicesBytes + kHalves * kRowsBytes;
  static constexpr int kRing = kStages * kStage;
  static constexpr int kOutbox = 4 * kStoreRows * 128;
  // Sums of a tile, for the other blocks of a cluster: rows padded against bank conflicts.
  static constexpr int kSumsRow = kOut + 4, kSums = kRows * kSumsRow;
  static constexpr int bytes(int more) { return 1024 + kRing + more + kStages * 16; }
};

struct Maps {
  CUtensorMap x, values, indices, y;
};

constexpr int kMostWeights = 4;

// A weight of the products of x that are computed in one launch.
struct Weight {
  Maps maps;
  void* y;
  const float* scales;  // of the outputs, or null
  int out;
};

struct Products {
  Weight weights[kMostWeights];
  int count;
};

// What the products have in common. There may be stacks of matrices, whose rows together count in
// 32 bits.
struct Shape {
  int rows, steps, row_tiles, matrices;
  int index_rows;  // of the indices of one matrix
  int groups;      // of tiles of all weights that share their rows
};

struct Tile {
  int out, row, matrix, weight;
};

// Sets the output and the weight of a tile. The tiles of one weight follow those of another, in
// groups of kSharers.
template <typename F, int kSharers>
__device__ void find_weight(Tile& tile, int group, const Products& all) {
  constexpr int kOut = F::kOut * kSharers;
  int i = 0;
  for (; i < all.count - 1; ++i) {
    const int groups = (all.weights[i].out + kOut - 1) / kOut;
    if (group < groups) break;
    group -= groups;
  }
  tile.weight = i, tile.out = group * kOut;
  if (kSharers > 1) tile.out += hopper::block_in_cluster() * F::kOut;
}

// Returns the tile of this block. The tiles of a cluster are neighbours with the same rows. Tiles
// that run at the same time share rows and outputs, so that they hit the L2 cache.
template <typename F, int kSharers>
__device__ Tile tile_at(int index, const Products& all, const Shape& shape) {
  constexpr int kBand = 16 / kSharers;
  Tile tile;
  tile.matrix = index / (shape.groups * shape.row_tiles);
  index -= tile.matrix * shape.groups * shape.row_tiles;
  const int per_band = kBand * shape.row_tiles, band = index / per_band;
  const int width = min(kBand, shape.groups - band * kBand), within = index % per_band;
  tile.row = within / width;
  find_weight<F, kSharers>(tile, band * kBand + within % width, all);
  return tile;
}

}  // namespace nm_matmul
