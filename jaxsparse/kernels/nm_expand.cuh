// The matmul for few rows and an 8:16 weight of 16-bit floats, which it expands on its way to
// the tensor cores. Two groups of 4:8 are one of 8:16, so it multiplies 4:8 as well.
//
// The time should be that of reading the weight, 9/16 of the bytes of a dense one. Each dense
// weight has less than three of the instructions that one multiprocessor has time for meanwhile.
// Hence TMA copies, and all that follows:
//
// Outputs may be assigned to the rows of a tensor core tile in any order, and the places of k to
// its columns, if x is permuted likewise. So lane t of four has the whole group t of every four:
// the matrix m that ldmatrix transposes has the values 2 m and 2 m + 1 of four groups as rows, and
// registers m = 0 to 3 hold the eight values of one group of one output.
//
// prmt selects bytes of two registers. The high bytes of eight values fit in two registers, and
// so do their low bytes: two prmt with one selector gather the values of four positions. Eight
// positions have one byte of mask, so a table of 256 entries has the selectors of both fours. The
// outer fours of a group can only have four of the values, and select zeros from a second
// register. The inner fours can have all eight, and are masked.
#pragma once

#include "hopper.cuh"

namespace nm_expand {

constexpr int kWarps = 8, kThreads = 32 * kWarps + 32;  // the last warp copies
constexpr int kStep = 64;   // the part of k of one step: four groups
constexpr int kCopies = 4;  // of the table, each for eight lanes, against bank conflicts

struct Maps {
  CUtensorMap x, values, masks;
};

template <typename T>
struct Problem {
  T* y;
  int rows, k, out;
};

// The template parameters of a kernel: the maximum number of rows, the tensor core tiles of 16
// outputs of a warp, the blocks of a cluster, and the blocks that are resident on a
// multiprocessor.
template <int kRows_, int kTiles_, int kBlocks_, int kResident_>
struct Form {
  static constexpr int kRows = kRows_, kTiles = kTiles_, kBlocks = kBlocks_;
  static constexpr int kResident = kResident_, kOut = kWarps * 16 * kTiles;
  static constexpr int kBytes = (kResident == 1 ? 227 : 228 / kResident - 1) * 1024;
};

// How four bytes of each of two fours of positions are selected, and which bytes of the inner one
// are kept.
struct Entry {
  uint32_t selectors, kept;
};

struct Table {
  Entry first[256][kCopies], second[256][kCopies];  // by the halves of a group's mask
};

// Rows have 128 bytes, whose chunks of 16 bytes are swizzled by TMA. Row 4 j + t of the values has
// value j of group t.
template <typename F>
struct Stage {
  uint8_t values[F::kOut / 64][kStep / 2][128];
  uint8_t masks[F::kOut / 128][kStep / 8][128];
  uint8_t x[F::kRows][128];
};

template <typename F>
constexpr int kStages =
    (F::kBytes - 1024 - static_cast<int>(sizeof(Table))) / static_cast<int>(sizeof(Stage<F>));

template <typename F>
using Sums = float[F::kRows][F::kOut + 4];  // padded against bank conflicts

template <typename F>
struct Memory {
  union {
    alignas(1024) Stage<F> stages[kStages<F>];
    Sums<F> sums;  // when all steps are done
  };
  Table table;
  uint64_t is_full[kStages<F>], is_free[kStages<F>];  // barriers
};

// Thread i writes the entries of mask i. A kept position selects its value, a pruned one of an
// outer four the byte 4, which is zero there.
__device__ inline void fill(Table& table) {
  const uint32_t mask = threadIdx.x;
  if (mask > 255) return;
  Entry first = {}, second = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool is_kept = mask >> i & 1;
    const uint32_t before = __popc(mask & (1 << i) - 1), from = __popc(mask >> i);
    const uint32_t outer = is_kept ? (i < 4 ? before : 4 - from) : 4;
    const uint32_t inner = is_kept ? (i < 4 ? 8 - from : before) : 0;
    first.selectors |= (i < 4 ? outer : inner) << 4 * i;
    second.selectors |= (i < 4 ? inner : outer) << 4 * i;
    if (is_kept) (i < 4 ? second : first).kept |= 0xFFu << i % 4 * 8;
  }
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int copy = (i + threadIdx.x) % kCopies;
    table.first[mask][copy] = first, table.second[mask][copy] = second;
  }
}

// As __byte_perm, which masks the selector first.
__device__ inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
  return bytes;
}

// Interleaves the low and the high bytes of four values.
__device__ inline void join(uint32_t* to, uint32_t low, uint32_t high) {
  to[0] = permute(low, high, 0x5140), to[1] = permute(low, high, 0x7362);
}

// Returns 16 dense weights from the 8 values of a group.
__device__ inline void expand(uint32_t (&to)[8], const uint32_t (&v)[4], Entry first,
                              Entry second) {
  const uint32_t low[] = {permute(v[0], v[1], 0x6420), permute(v[2], v[3], 0x6420)};
  const uint32_t high[] = {permute(v[0], v[1], 0x7531), permute(v[2], v[3], 0x7531)};
  uint32_t selector = first.selectors;
  join(to, permute(low[0], 0, selector), permute(high[0], 0, selector));
  selector >>= 16;
  join(to + 2, permute(low[0], low[1], selector) & first.kept,
       permute(high[0], high[1], selector) & first.kept);
  selector = second.selectors;
  join(to + 4, permute(low[0], low[1], selector) & second.kept,
       permute(high[0], high[1], selector) & second.kept);
  selector >>= 16;
  join(to + 6, permute(low[1], 0, selector), permute(high[1], 0, selector));
}

// Keeps a number in a register: the compiler would compute it again in each step.
__device__ inline void keep(int& number) { asm volatile("" : "+r"(number)); }

// Where in a stage this lane reads.
template <typename F>
class Lane {
 public:
  __device__ Lane(const Table& table) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    table_ = hopper::shared_address(&table.first[0][lane % kCopies]);
    // Row 2 t + e of matrix m has values 2 m + e of group t.
    const int row = lane / 8 * 8 + lane % 2 * 4 + lane % 8 / 2;
#pragma unroll
    for (int tile = 0; tile < F::kTiles; ++tile) {
      const int at = warp * F::kTiles + tile;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int chunk = at % 4 * 2 + i ^ row % 8;
        values_[tile][i] = (at / 4 * (kStep / 2) + row) * 128 + chunk * 16;
        const int mask = 2 * t + i;
        masks_[tile][i] = (at / 8 * (kStep / 8) + mask) * 128 + (at % 8 ^ mask) * 16 + g;
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) x_[i] = g * 128 + (2 * t + i ^ g) * 16;
    keep(table_), keep(x_[0]), keep(x_[1]);
#pragma unroll
    for (int tile = 0; tile < F::kTiles; ++tile) {
      keep(values_[tile][0]), keep(values_[tile][1]), keep(masks_[tile][0]), keep(masks_[tile][1]);
    }
  }

  // Loads and expands the group of 16 x 64 weights of which this lane has a row.
  __device__ void load(uint32_t (&a)[8], const Stage<F>& stage, int tile, int half) const {
    uint32_t v[4];
    hopper::load_transposed(v, hopper::shared_address(&stage.values) + values_[tile][half]);
    const uint8_t* masks = &stage.masks[0][0][0] + half * 8;
    expand(a, v, entry<0>(masks[masks_[tile][0]]), entry<1>(masks[masks_[tile][1]]));
  }

  // Loads the group t of row g of eight.
  __device__ void load_x(uint32_t (&b)[8], const Stage<F>& stage, int eight) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(&stage.x[eight * 8][0] + x_[i]);
      b[4 * i] = v.x, b[4 * i + 1] = v.y, b[4 * i + 2] = v.z, b[4 * i + 3] = v.w;
    }
  }

 private:
  template <int half>
  __device__ Entry entry(uint32_t mask) const {
    Entry entry;
    asm("ld.shared.v2.u32 {%0, %1}, [%2 + %3];"
        : "=r"(entry.selectors), "=r"(entry.kept)
        : "r"(table_ + mask * static_cast<uint32_t>(sizeof(Table::first[0]))),
          "n"(half * static_cast<int>(sizeof(Table::first))));
    return entry;
  }

  int table_, values_[F::kTiles][2], masks_[F::kTiles][2], x_[2];
};

template <typename T, typename F>
__device__ void multiply(float (&sums)[F::kTiles][F::kRows / 8][4], const Stage<F>& stage,
                         const Lane<F>& lane) {
  uint32_t a[F::kTiles][2][8];
#pragma unroll
  for (int tile = 0; tile < F::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) lane.load(a[tile][half], stage, tile, half);
  }
#pragma unroll
  for (int n = 0; n < F::kRows / 8; ++n) {
    uint32_t b[8];
    lane.load_x(b, stage, n);
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
#pragma unroll
      for (int tile = 0; tile < F::kTiles; ++tile) {
        const auto& w = a[tile];
        hopper::add_dense<T>(sums[tile][n], {w[0][i], w[1][i], w[0][i + 1], w[1][i + 1]},
                             {b[i], b[i + 1]});
      }
    }
  }
}

// Copies all steps of this block, as soon as stages are free.
template <typename F>
__device__ void copy(const Maps& maps, Memory<F>& memory, int first, int last, int first_out,
                     int first_row) {
  int slot = 0, phase = 1;
  for (int step = first; step < last; ++step) {
    auto& stage = memory.stages[slot];
    const uint32_t full = hopper::shared_address(&memory.is_full[slot]);
    hopper::wait(hopper::shared_address(&memory.is_free[slot]), phase);
    hopper::expect_bytes(full, sizeof stage);
#pragma unroll
    for (int i = 0; i < F::kOut / 64; ++i) {
      hopper::load_3d(hopper::shared_address(stage.values[i]), maps.values, full,
                      first_out + i * 64, step * (kStep / 16), 0);
    }
#pragma unroll
    for (int i = 0; i < F::kOut / 128; ++i) {
      hopper::load_2d(hopper::shared_address(stage.masks[i]), maps.masks, full,
                      first_out + i * 128, step * (kStep / 8));
    }
    hopper::load_2d(hopper::shared_address(stage.x), maps.x, full, step * kStep, first_row);
    if (++slot == kStages<F>) slot = 0, phase ^= 1;
  }
}

// Leaves the sums of this warp in the memory of its block.
template <typename F>
__device__ void leave(Sums<F>& all, const float (&sums)[F::kTiles][F::kRows / 8][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int tile = 0; tile < F::kTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < F::kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int out = (warp * F::kTiles + tile) * 16 + g + i / 2 * 8;
        all[n * 8 + t * 2 + i % 2][out] = sums[tile][n][i];
      }
    }
  }
}

// Adds up the sums of all blocks of the cluster, each block for its share of the outputs.
template <typename T, typename F>
__device__ void add_up(const Problem<T>& p, const Sums<F>& all, int first_out, int first_row) {
  constexpr int kShare = F::kOut / F::kBlocks;
  const int rows = min(F::kRows, p.rows - first_row);
  for (int i = threadIdx.x; i < rows * kShare / 2; i += kThreads) {
    const int row = i / (kShare / 2), out = blockIdx.z * kShare + i % (kShare / 2) * 2;
    const uint32_t mine = hopper::shared_address(&all[row][out]);
    float2 sum = {};
#pragma unroll
    for (int block = 0; block < F::kBlocks; ++block) {
      const float2 more = hopper::load_cluster(hopper::address_in_block(mine, block));
      sum.x += more.x, sum.y += more.y;
    }
    if (first_out + out < p.out) {
      T* to = p.y + static_cast<int64_t>(first_row + row) * p.out + first_out + out;
      *reinterpret_cast<uint32_t*>(to) = hopper::two<T>(sum.x, sum.y);
    }
  }
}

// A block computes kOut outputs of kRows rows; each block of a cluster has its own part of k.
template <typename T, typename F>
__global__ __launch_bounds__(kThreads, F::kResident) void product(
    const __grid_constant__ Maps maps, const Problem<T> p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& memory = *reinterpret_cast<Memory<F>*>(shared);
  const int row_tiles = (p.rows + F::kRows - 1) / F::kRows;
  // Blocks of the same outputs follow one another, so that the cache has their weights.
  const int first_row = blockIdx.x % row_tiles * F::kRows;
  const int first_out = blockIdx.x / row_tiles * F::kOut;
  const int steps = (p.k + kStep - 1) / kStep, last = (blockIdx.z + 1) * steps / F::kBlocks;
  const int first = blockIdx.z * steps / F::kBlocks;
  float sums[F::kTiles][F::kRows / 8][4] = {};
  if (threadIdx.x / 32 == kWarps) {
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < kStages<F>; ++i) {
        hopper::init_barrier(hopper::shared_address(&memory.is_full[i]), 1);
        hopper::init_barrier(hopper::shared_address(&memory.is_free[i]), kWarps);
      }
      hopper::publish_barriers();
    }
    __syncwarp();
    hopper::arrive_threads(1, kThreads);
    if (threadIdx.x % 32 == 0) copy<F>(maps, memory, first, last, first_out, first_row);
    __syncwarp();
  } else {
    fill(memory.table);
    const Lane<F> lane(memory.table);
    hopper::sync_threads(1, kThreads);
    int slot = 0, phase = 0;
    for (int step = first; step < last; ++step) {
      hopper::wait(hopper::shared_address(&memory.is_full[slot]), phase);
      multiply<T, F>(sums, memory.stages[slot], lane);
      __syncwarp();
      if (threadIdx.x % 32 == 0) hopper::arrive(hopper::shared_address(&memory.is_free[slot]));
      if (++slot == kStages<F>) slot = 0, phase ^= 1;
    }
  }
  __syncthreads();  // all stages have been read
  if (threadIdx.x / 32 < kWarps) leave<F>(memory.sums, sums);
  F::kBlocks == 1 ? __syncthreads() : hopper::sync_cluster();
  add_up<T, F>(p, memory.sums, first_out, first_row);
  if (F::kBlocks > 1) hopper::sync_cluster();  // others read the sums of this block
}

}  // namespace nm_expand
