// The same matmul for few rows, whose run time is that of reading the weight.
//
// Every warp loads its part of k directly into registers, the next steps while it multiplies the
// current one, so all of a small weight is in flight at once. Rows of x pass through as many small
// buffers per warp. Warps, and the blocks of a cluster, synchronise only at the end.
//
// Values are of the type of x, or of 8 bits with a scale for each output. Those are widened in
// registers, and the sums are scaled before they are rounded.
//
// Outputs may be assigned to the rows of a tensor core tile in any order. Of eight groups of four
// lanes, group g has outputs 8 g to 8 g + 7, which are contiguous in memory: outputs 8 g + 2 i
// and 8 g + 2 i + 1 are rows g and g + 8 of tile i.
#pragma once

#include "hopper.cuh"
#include "nm_few_form.cuh"
#include "nm_few_sums.cuh"
#include "sparse_product.cuh"
#include "widen.cuh"

namespace nm_few_rows {

// The data of lane t of four in a step: eight outputs; in each half of the step, values 2 t,
// 2 t + 1, 2 t + 8 and 2 t + 9; of the indices of both halves, rows 2 t and 2 t + 1, so that lanes
// 0 and 1 hold the indices of the first half, lanes 2 and 3 those of the second.
template <typename V>
struct Weight {
  uint32_t values[2][4][kTiles * sizeof(V) / 2];
  uint32_t places[2][kTiles / 2];
};

// The addresses from which this lane loads its weight, step by step. Offsets are products of two
// 32-bit numbers, one instruction each: 64-bit products would delay the loads.
template <typename T, typename V>
class Reader {
 public:
  __device__ Reader(const Problem<T, V>& p, int k) : p_(p) {
    // Beyond the last output the last eight are loaded again, and their sums are not stored.
    const int out = min(blockIdx.x * kOut + threadIdx.x % 32 / 4 * 8, p.out - 8);
    values_ = p.values + static_cast<int64_t>(k / 2 + pair()) * p.out + out;
    indices_ = p.indices + static_cast<int64_t>(k / 8 + pair()) * p.out + out;
  }
  __device__ void next() {
    values_ = value(kWarps * kStep / 2);
    indices_ = index(kWarps * kStep / 8);
  }
  __device__ void load(Weight<V>& weight, int k) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int two_rows = 16 * half + i / 2 * 8;
        auto& values = weight.values[half][i];
        if (pair() + two_rows < (p_.k - k) / 2) {
          hopper::load_once(values, value(two_rows + i % 2));
        } else {
          for (uint32_t& word : values) word = 0;
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
  __device__ const V* value(int row) const {
    return hopper::further(values_, p_.out, row * sizeof(V));
  }
  __device__ const uint8_t* index(int row) const { return hopper::further(indices_, p_.out, row); }

  const Problem<T, V>& p_;
  const V* values_;
  const uint8_t* indices_;
};

// Copies a step of x: rows of 128 bytes, whose chunks of 16 bytes are swizzled.
template <int kRows, typename T, typename V>
__device__ void copy(uint32_t to, const Problem<T, V>& p, int k, int first_row) {
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

// Returns the values of one output in the two rows of k, the first in the low half.
template <typename T, typename V, int kWords>
__device__ uint32_t pair_of(const uint32_t (&row)[kWords], const uint32_t (&next)[kWords],
                            int out) {
  if constexpr (sizeof(V) == 1) {
    return hopper::widen<T, V>(row[out / 4], next[out / 4], out % 4);
  } else {
    return __byte_perm(row[out / 2], next[out / 2], out % 2 ? 0x7632 : 0x5410);
  }
}

template <typename T, typename V, int kRows>
__device__ void multiply(float (&sums)[kTiles][kRows / 8][4], const Weight<V>& weight,
                         uint32_t x) {
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
      const uint32_t a[] = {pair_of<T, V>(v[0], v[1], 2 * tile),
                            pair_of<T, V>(v[0], v[1], 2 * tile + 1),
                            pair_of<T, V>(v[2], v[3], 2 * tile),
                            pair_of<T, V>(v[2], v[3], 2 * tile + 1)};
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

// A block computes kOut outputs of kRows rows. Each block of a cluster, and each warp of a block,
// has its own part of k.
template <typename T, typename V, typename F>
__global__ __launch_bounds__(kThreads, F::kResident) void product(const Problem<T, V> p) {
  constexpr int kSlots = kBuffers<V, F>, kAhead = kSlots - 1;
  extern __shared__ __align__(128) uint8_t shared[];
  auto& memory = *reinterpret_cast<Memory<V, F>*>(shared);
  const int warp = threadIdx.x / 32, first_row = blockIdx.y * F::kRows;
  const int steps = (p.k + kStep - 1) / kStep, last = (blockIdx.z + 1) * steps / F::kBlocks;
  int step = blockIdx.z * steps / F::kBlocks + warp;
  const uint32_t x = hopper::shared_address(memory.x[warp]);
  float sums[kTiles][F::kRows / 8][4] = {};
  Weight<V> weights[kSlots];
  Reader<T, V> reader(p, step * kStep);
  const auto fetch = [&](int i, int next) {  // called for all steps of the warp in order
    if (next < last) {
      reader.load(weights[i], next * kStep);
      reader.next();
      copy<F::kRows>(x + i * sizeof memory.x[0][0], p, next * kStep, first_row);
    }
    hopper::commit_copies();
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch(i, step + i * kWarps);  // before any synchronisation
  const Sums<T, V, F> all(memory, p, first_row);
  all.begin();
  while (step < last) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i, step += kWarps) {
      fetch((i + kAhead) % kSlots, step + kAhead * kWarps);
      hopper::wait_copies<kAhead>();
      __syncwarp();
      if (step < last) {
        multiply<T, V, F::kRows>(sums, weights[i], x + i * sizeof memory.x[0][0]);
      }
      __syncwarp();
    }
  }
  all.leave(sums);
  all.add_up();
}

}  // namespace nm_few_rows
