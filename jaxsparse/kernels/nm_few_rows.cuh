// The same product for few rows, where reading the weight is all that takes time.
//
// Every warp reads its part of k straight into registers, the next step while it multiplies
// one, so all of a small weight is on its way at once. Rows go through two small buffers of
// each warp; only the blocks of a cluster wait for each other, at the end.
//
// Which output is which row of the tensor core's tile is free. Of eight groups of four lanes,
// group g has outputs 8 g to 8 g + 7, as they lie in memory: outputs 8 g + 2 i and
// 8 g + 2 i + 1 are rows g and g + 8 of tile i.
#pragma once

#include "hopper.cuh"

namespace nm_few_rows {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kOut = 64, kTiles = kOut / 16;  // outputs of a block; the tensor core's tiles
constexpr int kStep = 64;                     // of k, for a warp

template <typename T>
struct Problem {
  const T *x, *values;
  const uint8_t* indices;
  T* y;
  int rows, k, out;
};

// What a kernel is specialised to: at most how many rows, and the blocks of a cluster.
template <int kRows_, int kBlocks_>
struct Form {
  static constexpr int kRows = kRows_, kBlocks = kBlocks_;
};

template <typename F>
struct Memory {
  uint8_t x[kWarps][2][F::kRows * kStep * 2];
  float sums[kWarps][F::kRows][kOut + 4];  // padded against bank conflicts
  // Sums of the blocks of a cluster, for the outputs that this block stores.
  alignas(8) float2 inbox[F::kRows * kOut / 2];
  uint64_t inbox_is_full;  // a barrier
};

// What lane t of four has of a step: eight outputs; in each half of the step, values 2 t,
// 2 t + 1, 2 t + 8 and 2 t + 9; of the indices of the whole step, rows 2 t and 2 t + 1, so
// that lanes 0 and 1 have where the first half's values are, lanes 2 and 3 the second's.
struct Weight {
  uint32_t values[2][4][kTiles];
  uint32_t places[2][kTiles / 2];
};

template <typename T>
__device__ void load(Weight& weight, const Problem<T>& p, int k, int out) {
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = k / 2 + 16 * half + pair + i % 2 + i / 2 * 8;
      const T* from = p.values + static_cast<int64_t>(row) * p.out + out;
      auto& values = weight.values[half][i];
      if (row < p.k / 2) {
        hopper::load_once(values, from);
      } else {
        for (uint32_t& two : values) two = 0;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = k / 8 + pair + i;
    const uint8_t* from = p.indices + static_cast<int64_t>(row) * p.out + out;
    auto& places = weight.places[i];
    if (row < p.k / 8) {
      hopper::load_once(places, from);
    } else {
      for (uint32_t& four : places) four = 0x44444444;  // the first two of each group
    }
  }
}

// Copies a step of x: rows of 128 bytes, whose chunks of 16 are swizzled.
template <typename T, int kRows>
__device__ void copy(uint32_t to, const Problem<T>& p, int k, int first_row) {
#pragma unroll
  for (int i = threadIdx.x % 32; i < kRows * 8; i += 32) {
    const int row = i / 8, chunk = i % 8, at = k + chunk * 8;
    const bool is_there = first_row + row < p.rows && at < p.k;
    const T* from = p.x + (is_there ? static_cast<int64_t>(first_row + row) * p.k + at : 0);
    hopper::copy_16(to + row * 128 + ((chunk ^ row % 8) << 4), from, is_there ? 16 : 0);
  }
}

template <typename T, int kRows>
__device__ void multiply(float (&sums)[kTiles][kRows / 8][4], const Weight& weight, uint32_t x) {
  const int row = threadIdx.x % 8, matrix = threadIdx.x % 32 / 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t columns[kRows / 8][4];
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      const int chunk = (4 * half + matrix) ^ row;
      hopper::load_matrices(columns[n], x + (8 * n + row) * 128 + (chunk << 4));
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const auto& v = weight.values[half];
      const uint32_t a[] = {__byte_perm(v[0][tile], v[1][tile], 0x5410),
                            __byte_perm(v[0][tile], v[1][tile], 0x7632),
                            __byte_perm(v[2][tile], v[3][tile], 0x5410),
                            __byte_perm(v[2][tile], v[3][tile], 0x7632)};
      const uint32_t places = __byte_perm(weight.places[0][tile / 2], weight.places[1][tile / 2],
                                          tile % 2 ? 0x7362 : 0x5140);
#pragma unroll
      for (int n = 0; n < kRows / 8; ++n) {
        half ? hopper::add_sparse<T, 1>(sums[tile][n], a, columns[n], places)
             : hopper::add_sparse<T, 0>(sums[tile][n], a, columns[n], places);
      }
    }
  }
}

// Where warps leave their sums and pick up those of the others.
template <typename T, typename F>
class Sums {
 public:
  __device__ Sums(Memory<F>& memory, const Problem<T>& p, int first_row)
      : memory_(memory), p_(p), first_row_(first_row),
        pairs_(min(F::kRows, p.rows - first_row) * kPairs),
        share_((pairs_ + kBlocks - 1) / kBlocks),
        mine_(min(share_, pairs_ - static_cast<int>(blockIdx.z) * share_)),
        barrier_(hopper::shared_address(&memory.inbox_is_full)) {}

  __device__ void begin() const {
    if (kBlocks == 1) return;
    if (threadIdx.x == 0) {
      hopper::init_barrier(barrier_, 1);
      hopper::publish_barriers();
      hopper::expect_bytes(barrier_, mine_ * kBlocks * sizeof(float2));
    }
    __syncwarp();
    hopper::arrive_cluster_relaxed();
  }
  __device__ void leave(const float (&sums)[kTiles][F::kRows / 8][4]) const {
    const int lane = threadIdx.x % 32;
    auto& mine = memory_.sums[threadIdx.x / 32];
#pragma unroll
    for (int i = 0; i < F::kRows / 4; ++i) {
      const int row = i / 2 * 8 + lane % 4 * 2 + i % 2;
      float2* to = reinterpret_cast<float2*>(&mine[row][lane / 4 * 8]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const auto& sum = sums[tile][i / 2];
        to[tile] = {sum[i % 2], sum[i % 2 + 2]};
      }
    }
  }
  // Of the warps of a block, then of the blocks of a cluster, always in the same order.
  __device__ void add_up() const {
    __syncthreads();
    if (kBlocks > 1) hopper::wait_cluster();  // all have begun
    for (int pair = threadIdx.x; pair < pairs_; pair += kThreads) {
      float2 sum = {};
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        const auto* from = &memory_.sums[warp][pair / kPairs][pair % kPairs * 2];
        const float2 more = *reinterpret_cast<const float2*>(from);
        sum.x += more.x, sum.y += more.y;
      }
      kBlocks == 1 ? store(pair, sum) : send(pair, sum);
    }
    if (kBlocks == 1) return;
    hopper::wait(barrier_, 0);
    for (int i = threadIdx.x; i < mine_; i += kThreads) {
      float2 sum = {};
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const float2 more = memory_.inbox[block * share_ + i];
        sum.x += more.x, sum.y += more.y;
      }
      store(blockIdx.z * share_ + i, sum);
    }
  }

 private:
  static constexpr int kPairs = kOut / 2, kBlocks = F::kBlocks;

  __device__ void send(int pair, float2 sum) const {
    const int block = pair / share_;
    const auto* to = &memory_.inbox[blockIdx.z * share_ + pair % share_];
    hopper::store_async(hopper::address_in_block(hopper::shared_address(to), block), sum,
                        hopper::address_in_block(barrier_, block));
  }
  __device__ void store(int pair, float2 sum) const {
    const int out = blockIdx.x * kOut + pair % kPairs * 2;
    if (out >= p_.out) return;
    T* to = p_.y + static_cast<int64_t>(first_row_ + pair / kPairs) * p_.out + out;
    *reinterpret_cast<uint32_t*>(to) = hopper::two<T>(sum.x, sum.y);
  }

  Memory<F>& memory_;
  const Problem<T>& p_;
  int first_row_, pairs_, share_, mine_;
  uint32_t barrier_;
};

// A block has kOut outputs and kRows rows; the blocks of a cluster, and the warps of each,
// have each a part of k.
template <typename T, typename F>
__global__ __launch_bounds__(kThreads, 2) void product(const Problem<T> p) {
  extern __shared__ __align__(128) uint8_t shared[];
  auto& memory = *reinterpret_cast<Memory<F>*>(shared);
  const int warp = threadIdx.x / 32, first_row = blockIdx.y * F::kRows;
  const Sums<T, F> all(memory, p, first_row);
  all.begin();
  // Outputs that are not there are read again, and not stored.
  const int out = min(blockIdx.x * kOut + threadIdx.x % 32 / 4 * 8, p.out - 8);
  const int steps = (p.k + kStep - 1) / kStep, last = (blockIdx.z + 1) * steps / F::kBlocks;
  const uint32_t x = hopper::shared_address(memory.x[warp]);
  float sums[kTiles][F::kRows / 8][4] = {};
  Weight weights[2];
  const auto fetch = [&](int i, int step) {
    if (step < last) {
      copy<T, F::kRows>(x + i * sizeof memory.x[0][0], p, step * kStep, first_row);
      load(weights[i], p, step * kStep, out);
    }
    hopper::commit_copies();
  };
  int step = blockIdx.z * steps / F::kBlocks + warp;
  fetch(0, step);
  while (step < last) {
#pragma unroll
    for (int i = 0; i < 2; ++i, step += kWarps) {
      fetch(i ^ 1, step + kWarps);
      hopper::wait_copies<1>();
      __syncwarp();
      if (step < last) multiply<T, F::kRows>(sums, weights[i], x + i * sizeof memory.x[0][0]);
      __syncwarp();
    }
  }
  all.leave(sums);
  all.add_up();
}

}  // namespace nm_few_rows
