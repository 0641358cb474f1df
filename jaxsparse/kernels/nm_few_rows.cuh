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
#include "nm_few_form.cuh"
#include "nm_few_sums.cuh"
#include "sparse_product.cuh"

namespace nm_few_rows {

using namespace nm_few;

template <typename F>
struct Memory {
  alignas(128) uint8_t x[F::kWarps][2][F::kRows * kStep * 2];
  alignas(16) WarpSums<F> sums[F::kWarps];
  Inbox<F> inbox;
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
template <typename T, typename F>
class Reader {
 public:
  __device__ Reader(const Problem<T, T>& p, int k) : p_(p) {
    // Beyond the last output the last eight are loaded again, and their sums are not stored.
    const int out = min(p.first_out + static_cast<int>(threadIdx.x) % 32 / 4 * 8, p.out - 8);
    const int row = blockIdx.y * (p.k / 8) + k / 8;  // of the indices, over all matrices
    values_ = p.values + static_cast<int64_t>(4 * row + pair()) * p.out + out;
    indices_ = p.indices + static_cast<int64_t>(row + pair()) * p.out + out;
  }
  __device__ void next() {
    values_ = value(F::kParts * kStep / 2);
    indices_ = index(F::kParts * kStep / 8);
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

  const Problem<T, T>& p_;
  const T* values_;
  const uint8_t* indices_;
};

template <typename T, int kRows>
__device__ void multiply(float (&sums)[kTiles][kRows / 8][4], const Weight& weight, uint32_t x) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t columns[kRows / 8][4];
    load_x<kRows>(columns, x, half);
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

// A block computes kBlockOut outputs of kRows rows. Each block of a cluster, and each warp of a
// block that has the same outputs as others, has its own part of k.
template <typename T, typename F>
__global__ __launch_bounds__(F::kThreads, F::kResident) void product(
    const __grid_constant__ Products<T, T> all) {
  const auto p = Problem<T, T>::of(all, F());
  extern __shared__ __align__(128) uint8_t shared[];
  auto& memory = *reinterpret_cast<Memory<F>*>(shared);
  const int warp = threadIdx.x / 32, part = warp / F::kWide;
  const int steps = (p.k + kStep - 1) / kStep, last = (blockIdx.z + 1) * steps / F::kBlocks;
  int step = blockIdx.z * steps / F::kBlocks + part;
  const uint32_t x = hopper::shared_address(memory.x[warp]);
  float sums[kTiles][F::kRows / 8][4] = {};
  Weight weights[2];
  Reader<T, F> reader(p, step * kStep);
  const auto fetch = [&](int i, int next) {  // called for all steps of the warp in order
    if (next < last) {
      reader.load(weights[i], next * kStep);
      reader.next();
      copy_x<F::kRows>(x + i * sizeof memory.x[0][0], p, next * kStep);
    }
    hopper::commit_copies();
  };
  fetch(0, step);  // before any synchronisation
  const Sums<T, T, F> totals(memory.sums[0], sizeof memory.sums[0], memory.inbox, p);
  totals.begin();
  while (step < last) {
#pragma unroll
    for (int i = 0; i < 2; ++i, step += F::kParts) {
      fetch(i ^ 1, step + F::kParts);
      hopper::wait_copies<1>();
      __syncwarp();
      if (step < last) multiply<T, F::kRows>(sums, weights[i], x + i * sizeof memory.x[0][0]);
      __syncwarp();
    }
  }
  totals.leave(sums);
  totals.add_up();
}

}  // namespace nm_few_rows
