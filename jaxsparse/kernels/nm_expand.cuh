// The matmul for few rows and an 8:16 weight of 16-bit floats, which it expands on its way to
// the tensor cores. Two groups of 4:8 are one of 8:16, so it multiplies 4:8 as well.
//
// The run time is that of reading the weight: 9/16 of the bytes of a dense one, if expanding it
// takes fewer than four instructions for each dense weight. It takes two. Hence all that follows:
//
// Outputs may be assigned to the rows of a tensor core tile in any order, and the places of k to
// its columns, if x is permuted likewise. So lane t of four has the whole group t of every four:
// the matrix that ldmatrix transposes has the values 2 m and 2 m + 1 of four groups as rows, so
// that registers m = 0 to 3 hold the eight values of one group of one output.
//
// prmt selects bytes from two registers. The high bytes of eight values fit in two registers, and
// so do their low bytes: two prmt with one selector gather the values of four positions. Eight
// positions have one byte of mask, so a table of 256 entries has the selectors of both fours. A
// byte that a selector cannot make zero, since all eight values are possible, is masked.
#pragma once

#include "hopper.cuh"

namespace nm_expand {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kStep = 64;    // the part of k of one step: four groups
constexpr int kCopies = 8;   // of the table, each for four lanes, against bank conflicts

template <typename T>
struct Problem {
  const T *x, *values;
  const uint8_t* masks;
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

// How four bytes of each of two fours of positions are selected, and which bytes of the four in
// the middle of the group are kept.
struct Entry {
  uint32_t selectors, kept;
};

struct Table {
  Entry first[256][kCopies], second[256][kCopies];  // by the halves of a group's mask
};

template <typename F>
struct Stage {
  alignas(128) uint8_t values[kStep / 2 * F::kOut * 2];
  uint8_t masks[kStep / 8 * F::kOut];
  uint8_t x[F::kRows * kStep * 2];
};

template <typename F>
constexpr int kStages = (F::kBytes - sizeof(Table)) / sizeof(Stage<F>);

template <typename F>
using Sums = float[F::kRows][F::kOut + 4];  // padded against bank conflicts

template <typename F>
struct Memory {
  union {
    Stage<F> stages[kStages<F>];
    alignas(16) Sums<F> sums;  // when all steps are done
  };
  Table table;
};

// Thread i writes the entries of mask i. A kept position selects its value, a pruned one of the
// outer fours the byte 4, which is zero there.
__device__ inline void fill(Table& table) {
  const uint32_t mask = threadIdx.x;
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

// The addresses from which this thread copies 16 bytes at a time, step by step. Chunks of 16 bytes
// are swizzled in their row: what eight lanes read together is in different banks.
template <typename T, typename F>
class Reader {
  static constexpr int kValueChunks = F::kOut / 8, kValueRows = kThreads / kValueChunks;
  static constexpr int kMaskChunks = F::kOut / 16, kMasks = kStep / 8 * kMaskChunks;
  static constexpr int kX = F::kRows * 8;

 public:
  __device__ Reader(const Problem<T>& p, int first_out, int first_row, int k)
      : p_(p), left_(p.k - k) {
    // Beyond the last output the last are copied again, and their sums are not stored.
    const int value = threadIdx.x % kValueChunks, row = threadIdx.x / kValueChunks;
    values_ = p.values + static_cast<int64_t>(k / 2 + row) * p.out +
              min(first_out + value * 8, p.out - 8);
    row_ = row;
    to_ = row * F::kOut * 2 + (value ^ (row / 8 * 2 + row % 2)) * 16;
    const int mask = threadIdx.x % kMaskChunks, mask_row = threadIdx.x / kMaskChunks;
    masks_ = p.masks + static_cast<int64_t>(k / 8 + mask_row) * p.out +
             min(first_out + mask * 16, p.out - 16);
    mask_to_ = mask_row * F::kOut + (mask ^ mask_row / 2) * 16;
    x_ = p.x + static_cast<int64_t>(first_row + x_row()) * p.k + k + x_chunk() * 8;
    x_rows_ = p.rows - first_row - x_row();
  }

  __device__ void copy(Stage<F>& stage) {
    const uint32_t values = hopper::shared_address(stage.values);
#pragma unroll
    for (int i = 0; i < kStep / 2; i += kValueRows) {
      const int swizzle = i / 8 * 2 * 16;
      hopper::copy_16(values + (to_ ^ swizzle) + i * F::kOut * 2,
                      hopper::further(values_, p_.out * 2, i), row_ + i < left_ / 2 ? 16 : 0);
    }
    if (threadIdx.x < kMasks) {
      const int row = threadIdx.x / kMaskChunks;
      hopper::copy_16(hopper::shared_address(stage.masks) + mask_to_, masks_,
                      row < left_ / 8 ? 16 : 0);
    }
    const uint32_t x = hopper::shared_address(stage.x);
    constexpr int kUntouched = kX < kThreads ? kThreads - kX : 0;  // by the other warps
    if (threadIdx.x >= kUntouched) {
#pragma unroll
      for (int i = 0; i < F::kRows; i += kThreads / 8) {
        hopper::copy_16(x + (x_row() + i) * 128 + (x_chunk() ^ x_row() % 8) * 16,
                        hopper::further(x_, p_.k * 2, i),
                        i < x_rows_ && x_chunk() * 8 < left_ ? 16 : 0);
      }
    }
    values_ = hopper::further(values_, p_.out * 2, kStep / 2);
    masks_ = hopper::further(masks_, p_.out, kStep / 8);
    x_ += kStep;
    left_ -= kStep;
  }

 private:
  static __device__ int x_thread() { return threadIdx.x - (kX < kThreads ? kThreads - kX : 0); }
  static __device__ int x_row() { return x_thread() / 8; }
  static __device__ int x_chunk() { return x_thread() % 8; }

  const Problem<T>& p_;
  const T *values_, *x_;
  const uint8_t* masks_;
  int left_, row_, to_, mask_to_, x_rows_;
};

__device__ inline uint32_t perm(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// Interleaves the low and the high bytes of four values.
__device__ inline void join(uint32_t* to, uint32_t low, uint32_t high) {
  to[0] = perm(low, high, 0x5140), to[1] = perm(low, high, 0x7362);
}

// Returns 16 dense weights from the 8 values of a group.
__device__ inline void expand(uint32_t (&to)[8], const uint32_t (&v)[4], Entry first,
                              Entry second) {
  const uint32_t low[] = {perm(v[0], v[1], 0x6420), perm(v[2], v[3], 0x6420)};
  const uint32_t high[] = {perm(v[0], v[1], 0x7531), perm(v[2], v[3], 0x7531)};
  uint32_t selector = first.selectors;
  join(to, perm(low[0], 0, selector), perm(high[0], 0, selector));
  selector >>= 16;
  join(to + 2, perm(low[0], low[1], selector) & first.kept,
       perm(high[0], high[1], selector) & first.kept);
  selector = second.selectors;
  join(to + 4, perm(low[0], low[1], selector) & second.kept,
       perm(high[0], high[1], selector) & second.kept);
  selector >>= 16;
  join(to + 6, perm(low[1], 0, selector), perm(high[1], 0, selector));
}

template <typename T, typename F>
__device__ void multiply(float (&sums)[F::kTiles][F::kRows / 8][4], const Stage<F>& stage,
                         const Table& table) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  // Row 2 t + e of matrix m has values 2 m + e of group t.
  const int row = lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
  const uint32_t values = hopper::shared_address(stage.values) + row * F::kOut * 2;
  const uint8_t* masks = stage.masks + 2 * t * F::kOut + g;
  uint32_t a[F::kTiles][2][8];
#pragma unroll
  for (int tile = 0; tile < F::kTiles; ++tile) {
    const int at = warp * F::kTiles + tile;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t v[4];
      hopper::load_transposed(v, values + ((at * 2 + half) ^ lane % 8) * 16);
      const uint8_t* mask = masks + (at ^ t) * 16 + half * 8;
      expand(a[tile][half], v, table.first[mask[0]][lane % kCopies],
             table.second[mask[F::kOut]][lane % kCopies]);
    }
  }
  // Lane t has the group t of x, too.
  const uint8_t* x = stage.x + g * 128 + (2 * t ^ g) * 16;
  const uint8_t* x_next = stage.x + g * 128 + (2 * t + 1 ^ g) * 16;
#pragma unroll
  for (int n = 0; n < F::kRows / 8; ++n) {
    const uint4 low = *reinterpret_cast<const uint4*>(x + n * 1024);
    const uint4 high = *reinterpret_cast<const uint4*>(x_next + n * 1024);
    const uint32_t b[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int tile = 0; tile < F::kTiles; ++tile) {
      const auto& w = a[tile];
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        hopper::add_dense<T>(sums[tile][n], {w[0][i], w[1][i], w[0][i + 1], w[1][i + 1]},
                             {b[i], b[i + 1]});
      }
    }
  }
}

// Adds up the sums of all blocks of the cluster, and stores them.
template <typename T, typename F>
__device__ void store(const Problem<T>& p, Sums<F>& all, int first_out, int first_row,
                      const float (&sums)[F::kTiles][F::kRows / 8][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int tile = 0; tile < F::kTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < F::kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        all[n * 8 + t * 2 + i % 2][(warp * F::kTiles + tile) * 16 + g + i / 2 * 8] =
            sums[tile][n][i];
      }
    }
  }
  F::kBlocks == 1 ? __syncthreads() : hopper::sync_cluster();
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
  if (F::kBlocks > 1) hopper::sync_cluster();  // others read from here
}

// A block computes kOut outputs of kRows rows; each block of a cluster has its own part of k.
template <typename T, typename F>
__global__ __launch_bounds__(kThreads, F::kResident) void product(const Problem<T> p) {
  constexpr int kSlots = kStages<F>;
  extern __shared__ __align__(128) uint8_t shared[];
  auto& memory = *reinterpret_cast<Memory<F>*>(shared);
  const int first_row = blockIdx.x * F::kRows, first_out = blockIdx.y * F::kOut;
  const int steps = (p.k + kStep - 1) / kStep, last = (blockIdx.z + 1) * steps / F::kBlocks;
  const int first = blockIdx.z * steps / F::kBlocks;
  Reader<T, F> reader(p, first_out, first_row, first * kStep);
#pragma unroll
  for (int i = 0; i < kSlots - 1; ++i) {
    if (first + i < last) reader.copy(memory.stages[i]);
    hopper::commit_copies();
  }
  fill(memory.table);
  float sums[F::kTiles][F::kRows / 8][4] = {};
  int slot = 0, free = kSlots - 1;
  for (int step = first; step < last; ++step) {
    hopper::wait_copies<kSlots - 2>();
    __syncthreads();  // the stage is full, and the one of the last step is free
    if (step + kSlots - 1 < last) reader.copy(memory.stages[free]);
    hopper::commit_copies();
    multiply<T, F>(sums, memory.stages[slot], memory.table);
    free = slot;
    slot = slot + 1 == kSlots ? 0 : slot + 1;
  }
  __syncthreads();
  store<T, F>(p, memory.sums, first_out, first_row, sums);
}

}  // namespace nm_expand
