// The matmul for few rows and a weight of eight bits, with a scale for each output.
//
// A step has half the bytes of one of 16-bit values, so more steps must be in flight than
// registers hold. Every warp copies its part of k to stages of its own in shared memory, and
// widens the values on their way to the tensor cores. Outputs are assigned to lanes as in
// nm_few_rows.cuh.
#pragma once

#include "hopper.cuh"
#include "nm_few_form.cuh"
#include "nm_few_sums.cuh"
#include "sparse_product.cuh"
#include "widen.cuh"

namespace nm_few_bytes {

using namespace nm_few;

template <typename F>
struct Stage {
  alignas(128) uint8_t values[kStep / 2 * kOut];
  uint8_t indices[kStep / 8 * kOut];
  uint8_t x[F::kRows * kStep * 2];
};

constexpr int kStages = 3;  // of each warp

template <typename F>
union WarpMemory {
  Stage<F> stages[kStages];
  WarpSums<F> sums;  // when all steps are done
};

template <typename F>
struct Memory {
  alignas(128) WarpMemory<F> warps[F::kWarps];
  Inbox<F> inbox;
};

// Where an output of a row is in a stage. Two rows of 64 bytes share a line, whose four parts are
// swizzled: the four lanes that read the same outputs, of every other row, hit different banks.
__device__ inline int offset(int row, int out) {
  const int line = row / 2, part = (row % 2 * 2 + out / 32) ^ line % 4;
  return line * 128 + part * 32 + out % 32;
}

// The addresses from which this lane copies 16 bytes of each eighth row, step by step.
template <typename T, typename V, typename F>
class Reader {
 public:
  __device__ Reader(const Problem<T, V>& p, int k) : p_(p) {
    // Beyond the last output the last 16 are copied again, and their sums are not stored.
    const int out = min(p.first_out + chunk(), p.out - 16);
    const int first = blockIdx.y * (p.k / 8) + k / 8;  // of the indices, over all matrices
    values_ = p.values + static_cast<int64_t>(4 * first + row()) * p.out + out;
    indices_ = p.indices + static_cast<int64_t>(first + row()) * p.out + out;
  }
  __device__ void next() {
    values_ = hopper::further(values_, p_.out, F::kParts * kStep / 2);
    indices_ = hopper::further(indices_, p_.out, F::kParts * kStep / 8);
  }
  __device__ void copy(Stage<F>& stage, int k) const {
    const uint32_t values = hopper::shared_address(stage.values);
#pragma unroll
    for (int i = 0; i < kStep / 2; i += 8) {
      hopper::copy_16(values + offset(row() + i, chunk()), hopper::further(values_, p_.out, i),
                      row() + i < (p_.k - k) / 2 ? 16 : 0);
    }
    hopper::copy_16(hopper::shared_address(stage.indices) + offset(row(), chunk()), indices_,
                    row() < (p_.k - k) / 8 ? 16 : 0);
    copy_x<F::kRows>(hopper::shared_address(stage.x), p_, k);
  }

 private:
  static __device__ int row() { return threadIdx.x % 32 / 4; }
  static __device__ int chunk() { return threadIdx.x % 4 * 16; }

  const Problem<T, V>& p_;
  const V* values_;
  const uint8_t* indices_;
};

// Loads eight outputs of a row.
__device__ inline void load(uint32_t (&to)[2], const uint8_t* rows, int row) {
  const auto* from = rows + offset(row, threadIdx.x % 32 / 4 * 8);
  const uint2 v = *reinterpret_cast<const uint2*>(from);
  to[0] = v.x, to[1] = v.y;
}

template <typename T, typename V, typename F>
__device__ void multiply(float (&sums)[kTiles][F::kRows / 8][4], const Stage<F>& stage) {
  const int pair = threadIdx.x % 4 * 2;
  uint32_t places[2][2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    load(places[row], stage.indices, pair + row);
    // Beyond the weight all bits are zero: two equal positions, but the second must be higher.
    for (uint32_t& four : places[row]) four |= (~(four >> 2 | four >> 3) & 0x11111111) << 2;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t columns[F::kRows / 8][4], v[4][2];
    load_x<F::kRows>(columns, hopper::shared_address(stage.x), half);
#pragma unroll
    for (int i = 0; i < 4; ++i) load(v[i], stage.values, 16 * half + i / 2 * 8 + pair + i % 2);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const auto widen = [&](int row, int byte) {
        return hopper::widen<T, V>(v[row][tile / 2], v[row + 1][tile / 2], tile % 2 * 2 + byte);
      };
      const uint32_t a[] = {widen(0, 0), widen(0, 1), widen(2, 0), widen(2, 1)};
      const uint32_t mine = __byte_perm(places[0][tile / 2], places[1][tile / 2],
                                        tile % 2 ? 0x7362 : 0x5140);
#pragma unroll
      for (int n = 0; n < F::kRows / 8; ++n) {
        half ? hopper::add_sparse<T, 1>(sums[tile][n], a, columns[n], mine)
             : hopper::add_sparse<T, 0>(sums[tile][n], a, columns[n], mine);
      }
    }
  }
}

// A block computes kBlockOut outputs of kRows rows. Each block of a cluster, and each warp of a
// block that has the same outputs as others, has its own part of k.
template <typename T, typename V, typename F>
__global__ __launch_bounds__(F::kThreads, F::kResident) void product(
    const __grid_constant__ Products<T, V> all) {
  const auto p = Problem<T, V>::of(all, F());
  constexpr int kSlots = kStages, kAhead = kSlots - 1;
  extern __shared__ __align__(128) uint8_t shared[];
  auto& memory = *reinterpret_cast<Memory<F>*>(shared);
  const int warp = threadIdx.x / 32, part = warp / F::kWide;
  const int steps = (p.k + kStep - 1) / kStep, last = (blockIdx.z + 1) * steps / F::kBlocks;
  int step = blockIdx.z * steps / F::kBlocks + part;
  auto& stages = memory.warps[warp].stages;
  float sums[kTiles][F::kRows / 8][4] = {};
  Reader<T, V, F> reader(p, step * kStep);
  const auto fetch = [&](int i, int next) {  // called for all steps of the warp in order
    if (next < last) {
      reader.copy(stages[i], next * kStep);
      reader.next();
    }
    hopper::commit_copies();
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch(i, step + i * F::kParts);  // before any synchronisation
  const Sums<T, V, F> totals(memory.warps[0].sums, sizeof memory.warps[0], memory.inbox, p);
  totals.begin();
  while (step < last) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i, step += F::kParts) {
      fetch((i + kAhead) % kSlots, step + kAhead * F::kParts);
      hopper::wait_copies<kAhead>();
      __syncwarp();
      if (step < last) multiply<T, V, F>(sums, stages[i]);
      __syncwarp();
    }
  }
  totals.leave(sums);
  totals.add_up();
}

}  // namespace nm_few_bytes
