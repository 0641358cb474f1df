// The same product for few rows, where reading the weight is all that takes time.
//
// Every warp reads its part of k straight into registers, the next step while it multiplies
// one, so all of a small weight is on its way at once. Rows go through two small buffers of
// each warp; warps, and the blocks of a cluster, wait for each other at the end only.
//
// Which output is which row of the tensor core's tile is free. Of eight groups of four lanes,
// group g has outputs 8 g to 8 g + 7, as they lie in memory: outputs 8 g + 2 i and
// 8 g + 2 i + 1 are rows g and g + 8 of tile i.
#pragma once

#include "hopper.cuh"
#include "sparse_product.cuh"

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

// What a kernel is specialised to: at most how many rows, the blocks of a cluster, and how
// many blocks a multiprocessor has room for: for 16 rows one alone takes more registers.
template <int kRows_, int kBlocks_, int kResident_>
struct Form {
  static constexpr int kRows = kRows_, kBlocks = kBlocks_, kResident = kResident_;
};

template <typename F>
struct Memory {
  alignas(128) uint8_t x[kWarps][2][F::kRows * kStep * 2];
  alignas(16) float sums[kWarps][F::kRows][kOut + 4];  // padded against bank conflicts
  // Sums of the blocks of a cluster, for the outputs that this block stores.
  alignas(16) float inbox[F::kBlocks][F::kRows][kOut / F::kBlocks];
  uint64_t inbox_is_full;  // a barrier
};

// What lane t of four has of a step: eight outputs; in each half of the step, values 2 t,
// 2 t + 1, 2 t + 8 and 2 t + 9; of the indices of the whole step, rows 2 t and 2 t + 1, so
// that lanes 0 and 1 have where the first half's values are, lanes 2 and 3 the second's.
struct Weight {
  uint32_t values[2][4][kTiles];
  uint32_t places[2][kTiles / 2];
};

// Where this lane reads its weight, step by step of its warp. Products of 32 bits and 32,
// one instruction each, lead from there: with those of 64 bits loads would begin late.
template <typename T>
class Reader {
 public:
  __device__ Reader(const Problem<T>& p, int k) : p_(p) {
    // Outputs that are not there are read again, and not stored.
    const int out = min(blockIdx.x * kOut + threadIdx.x % 32 / 4 * 8, p.out - 8);
    values_ = p.values + static_cast<int64_t>(k / 2 + pair()) * p.out + out;
    indices_ = p.indices + static_cast<int64_t>(k / 8 + pair()) * p.out + out;
  }
  __device__ void next() {
    values_ = value(kWarps * kStep / 2);
    indices_ = index(kWarps * kStep / 8);
  }
  __device__ void load(Weight& weight, int k) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int two_rows = 16 * half + i / 2 * 8;
        auto& values = weight.values[half][i];
        if (pair() + two_rows < (p_.k - k) / 2) {
          hopper::load_once(values, value(two_rows + i % 2));
        } else {
          for (uint32_t& two : values) two = 0;
        }
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      auto& places = weight.places[row];
      if (pair() + row < (p_.k - k) / 8) {
        hopper::load_once(places, index(row));
      } else {
        for (uint32_t& four : places) four = 0x44444444;  // the first two of each group
      }
    }
  }

 private:
  static __device__ int pair() { return threadIdx.x % 4 * 2; }
  __device__ const T* value(int row) const {
    return hopper::further(values_, p_.out, row * sizeof(T));
  }
  __device__ const uint8_t* index(int row) const { return hopper::further(indices_, p_.out, row); }

  const Problem<T>& p_;
  const T* values_;
  const uint8_t* indices_;
};

// Copies a step of x: rows of 128 bytes, whose chunks of 16 are swizzled.
template <typename T, int kRows>
__device__ void copy(uint32_t to, const Problem<T>& p, int k, int first_row) {
  const int row = threadIdx.x % 32 / 8, chunk = threadIdx.x % 8, at = k + chunk * 8;
  const int left = at < p.k ? p.rows - first_row - row : 0;
  const T* from = p.x + static_cast<int64_t>(first_row + row) * p.k + at;
#pragma unroll
  for (int i = 0; i < kRows; i += 4) {
    const int place = chunk ^ (row + i % 8);  // its row, modulo 8: row is 3 at most
    hopper::copy_16(to + (row + i) * 128 + place * 16, hopper::further(from, p.k * sizeof(T), i),
                    i < left ? 16 : 0);
  }
}

template <typename T, int kRows>
__device__ void multiply(float (&sums)[kTiles][kRows / 8][4], const Weight& weight, uint32_t x) {
  const int row = threadIdx.x % 8, matrix = threadIdx.x % 32 / 8;
  x += row * 128 + ((matrix ^ row) << 4);  // of the second half: four chunks on, swizzled
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t columns[kRows / 8][4];
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
      hopper::load_matrices(columns[n], (x ^ (half << 6)) + n * 1024);
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

// Where warps leave their sums and pick up those of the others, four at a time. Always in
// the same order: of the warps of a block, then of the blocks of a cluster.
template <typename T, typename F>
class Sums {
  static_assert(F::kRows * kOut / 4 <= kThreads, "a thread adds up four outputs of a row");
  static_assert(kOut % (4 * F::kBlocks) == 0, "a block stores fours of each row");

 public:
  __device__ Sums(Memory<F>& memory, const Problem<T>& p, int first_row)
      : memory_(memory), p_(p), first_row_(first_row), rows_(min(F::kRows, p.rows - first_row)),
        barrier_(hopper::shared_address(&memory.inbox_is_full)) {}

  __device__ void begin() const {
    if (kBlocks == 1) return;
    if (threadIdx.x == 0) {
      hopper::init_barrier(barrier_, 1);
      hopper::publish_barriers();
      hopper::expect_bytes(barrier_, rows_ * kOut * sizeof(float));
    }
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
  __device__ void add_up() const {
    __syncthreads();
    if (kBlocks > 1) hopper::wait_cluster();  // all have begun
    const int row = threadIdx.x / (kOut / 4), out = threadIdx.x % (kOut / 4) * 4;
    if (row < rows_) {
      const float4 sum = add<kWarps>(&memory_.sums[0][row][out], sizeof memory_.sums[0]);
      kBlocks == 1 ? store(row, out, sum) : send(row, out, sum);
    }
    if (kBlocks > 1) add_up_blocks();
  }

 private:
  static constexpr int kBlocks = F::kBlocks, kShare = kOut / kBlocks;

  __device__ void send(int row, int out, float4 sum) const {
    const int block = out / kShare;
    const auto* to = &memory_.inbox[blockIdx.z][row][out % kShare];
    hopper::store_async(hopper::address_in_block(hopper::shared_address(to), block), sum,
                        hopper::address_in_block(barrier_, block));
  }
  __device__ void add_up_blocks() const {
    const int row = threadIdx.x / (kShare / 4), out = threadIdx.x % (kShare / 4) * 4;
    if (row >= rows_) return;
    hopper::wait_for_cluster(barrier_, 0);
    const float4 sum = add<kBlocks>(&memory_.inbox[0][row][out], sizeof memory_.inbox[0]);
    store(row, blockIdx.z * kShare + out, sum);
  }
  template <int kParts>
  static __device__ float4 add(const float* first, int stride) {
    float4 sum = {};
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float4 more = *reinterpret_cast<const float4*>(first + i * stride / sizeof(float));
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    return sum;
  }
  __device__ void store(int row, int out, float4 sum) const {
    out += blockIdx.x * kOut;
    if (out >= p_.out) return;
    T* to = p_.y + static_cast<int64_t>(first_row_ + row) * p_.out + out;
    *reinterpret_cast<uint2*>(to) = {hopper::two<T>(sum.x, sum.y),
                                     hopper::two<T>(sum.z, sum.w)};
  }

  Memory<F>& memory_;
  const Problem<T>& p_;
  int first_row_, rows_;
  uint32_t barrier_;
};

// A block has kOut outputs and kRows rows; the blocks of a cluster, and the warps of each,
// have each a part of k.
template <typename T, typename F>
__global__ __launch_bounds__(kThreads, F::kResident) void product(const Problem<T> p) {
  extern __shared__ __align__(128) uint8_t shared[];
  auto& memory = *reinterpret_cast<Memory<F>*>(shared);
  const int warp = threadIdx.x / 32, first_row = blockIdx.y * F::kRows;
  const int steps = (p.k + kStep - 1) / kStep, last = (blockIdx.z + 1) * steps / F::kBlocks;
  int step = blockIdx.z * steps / F::kBlocks + warp;
  const uint32_t x = hopper::shared_address(memory.x[warp]);
  float sums[kTiles][F::kRows / 8][4] = {};
  Weight weights[2];
  Reader<T> reader(p, step * kStep);
  const auto fetch = [&](int i, int next) {  // all of the warp's steps, in their order
    if (next < last) {
      reader.load(weights[i], next * kStep);
      reader.next();
      copy<T, F::kRows>(x + i * sizeof memory.x[0][0], p, next * kStep, first_row);
    }
    hopper::commit_copies();
  };
  fetch(0, step);  // before anything that can wait
  const Sums<T, F> all(memory, p, first_row);
  all.begin();
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
