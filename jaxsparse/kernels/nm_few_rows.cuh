// The same matmul for few rows, whose run time is that of reading the weight.
//
// Every warp loads its part of k directly into registers, the next step while it multiplies the
// current one, so all of a small weight is in flight at once. Rows of x pass through two small
// buffers per warp. Warps, and the blocks of a cluster, synchronise only at the end.
//
// Outputs may be assigned to the rows of a tensor core tile in any order. Of eight groups of four
// lanes, group g has outputs 8 g to 8 g + 7, which are contiguous in memory: outputs 8 g + 2 i
// and 8 g + 2 i + 1 are rows g and g + 8 of tile i.
#pragma once

#include "hopper.cuh"
#include "sparse_product.cuh"

namespace nm_few_rows {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kOut = 64, kTiles = kOut / 16;  // outputs of a block; tensor core tiles
constexpr int kStep = 64;                     // the part of k of one step of a warp

template <typename T>
struct Problem {
  const T *x, *values;
  const uint8_t* indices;
  T* y;
  int rows, k, out;
};

// The template parameters of a kernel: the maximum number of rows, the blocks of a cluster, and
// the blocks that are resident on a multiprocessor: with 16 rows, a single block uses more
// registers.
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

// The data of lane t of four in a step: eight outputs; in each half of the step, values 2 t,
// 2 t + 1, 2 t + 8 and 2 t + 9; of the indices of both halves, rows 2 t and 2 t + 1, so that lanes
// 0 and 1 hold the indices of the first half, lanes 2 and 3 those of the second.
struct Weight {
  uint32_t values[2][4][kTiles];
  uint32_t places[2][kTiles / 2];
};

// The addresses from which this lane loads its weight, step by step. Offsets are products of two
// 32-bit numbers, one instruction each: 64-bit products would delay the loads.
template <typename T>
class Reader {
 public:
  __device__ Reader(const Problem<T>& p, int k) : p_(p) {
    // Beyond the last output the last eight are loaded again, and their sums are not stored.
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
        for (uint32_t& four : places) four = 0x44444444;  // positions 0 and 1 of each group
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

// Copies a step of x: rows of 128 bytes, whose chunks of 16 bytes are swizzled.
template <typename T, int kRows>
__device__ void copy(uint32_t to, const Problem<T>& p, int k, int first_row) {
  const int row = threadIdx.x % 32 / 8, chunk = threadIdx.x % 8, at = k + chunk * 8;
  const int left = at < p.k ? p.rows - first_row - row : 0;
  const T* from = p.x + static_cast<int64_t>(first_row + row) * p.k + at;
#pragma unroll
  for (int i = 0; i < kRows; i += 4) {
    const int place = chunk ^ (row + i % 8);  // the row modulo 8, since `row` is at most 3
    hopper::copy_16(to + (row + i) * 128 + place * 16, hopper::further(from, p.k * sizeof(T), i),
                    i < left ? 16 : 0);
  }
}

template <typename T, int kRows>
__device__ void multiply(float (&sums)[kTiles][kRows / 8][4], const Weight& weight, uint32_t x) {
  const int row = threadIdx.x % 8, matrix = threadIdx.x % 32 / 8;
  x += row * 128 + ((matrix ^ row) << 4);  // the second half is four chunks on, swizzled
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

// The exchange of partial sums between warps, four at a time. They are always added in the same
// order: over the warps of a block, then over the blocks of a cluster.
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
    if (kBlocks > 1) hopper::wait_cluster();  // all blocks have started
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

// A block computes kOut outputs of kRows rows. Each block of a cluster, and each warp of a block,
// has its own part of k.
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
  const auto fetch = [&](int i, int next) {  // called for all steps of the warp in order
    if (next < last) {
      reader.load(weights[i], next * kStep);
      reader.next();
      copy<T, F::kRows>(x + i * sizeof memory.x[0][0], p, next * kStep, first_row);
    }
    hopper::commit_copies();
  };
  fetch(0, step);  // before any synchronisation
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
