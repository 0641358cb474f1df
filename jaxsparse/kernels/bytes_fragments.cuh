// From bytes of a stage to the registers of a sparse wgmma of eight bits.
//
// Tensor cores want four bytes of one output in a register, consecutive along k, but in memory
// outputs are consecutive. `ldmatrix.trans` moves pairs of bytes: from rows of 16 outputs it
// gives each lane two neighbouring outputs at two places of k. Two such registers have two
// outputs at four places, and a byte permutation each makes them two outputs' registers.
// So lane / 4 has the outputs 2 i and 2 i + 1 of its warp's 16, as the rows i and i + 8 of the
// tensor cores' tile.
#pragma once

#include "shared_matrices.cuh"
#include "sparse_registers.cuh"

namespace nm_bytes {

// What a lane multiplies, of values V and rows of the same type.
template <typename V>
class BytesLane {
 public:
  using Row = V;
  using Sum = typename hopper::SumOf<V>::type;

  // A lane's values and their positions, for the two wgmma of a stage of 128 inputs.
  struct Fragments {
    uint32_t values[2][4], places[2];
  };

  __device__ BytesLane() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Row 2 t + j of matrix m goes to the lanes t of every four. Their places of k are 4 t to
    // 4 t + 3, two from either matrix, in an order by which no two rows share their banks.
    const int m = lane / 8, t = lane / 2 % 4, j = lane % 2;
    const int k = m / 2 * 16 + t * 4 + (m % 2 ^ t / 2) * 2 + j;
    values_ = swizzled(k, warp);
    // Of every four lanes, the first two have the positions of the first 32 inputs.
    indices_ = swizzled(m / 2 * 8 + t / 2 * 4 + m % 2 * 2 + j, warp);
    const int own = lane % 4;
    even_ = own < 2 ? 0x6420 : 0x2064;
    places_ = own % 2 ? 0x7531 : 0x6420;
    // Opaque to the compiler, which would else compute them anew in each stage.
    asm volatile("" : "+r"(values_), "+r"(indices_), "+r"(even_), "+r"(places_));
  }

  __device__ void load(Fragments& to, uint32_t values, uint32_t indices) const {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_transposed(pairs, values + i * 32 * 128 + values_);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t first = pairs[j / 2 * 2], second = pairs[j / 2 * 2 + 1];
        to.values[i][j] = __byte_perm(first, second, even_ + j % 2 * 0x1111);
      }
    }
    load_transposed(pairs, indices + indices_);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t places = __byte_perm(pairs[2 * i], pairs[2 * i + 1], places_);
      // Beyond the weight all bits are zero: two equal positions, but the second must be higher.
      to.places[i] = places | (~(places >> 2 | places >> 3) & 0x11111111) << 2;
    }
  }

  template <int kRows>
  __device__ static void add(Sum (&sums)[kRows / 2], const Fragments& fragments, uint64_t x) {
    using Product = hopper::RegistersProduct<V, kRows, 0>;
    Product::add(sums, fragments.values[0], x, fragments.places[0]);
    Product::add(sums, fragments.values[1], x + (64 >> 4), fragments.places[1]);
  }

 private:
  uint32_t values_, indices_, even_, places_;
};

}  // namespace nm_bytes
