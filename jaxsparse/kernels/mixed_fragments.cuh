// From bytes of a stage to the registers of a sparse wgmma of 16 bits, to which they are widened.
//
// `ldmatrix.trans` gives each lane two neighbouring outputs at two places of k, as four bytes. Those
// of one output are what tensor cores want in one register, as 16 bits each. So lane / 4 has the
// outputs 2 i and 2 i + 1 of its warp's 16, as the rows i and i + 8 of the tensor cores' tile.
#pragma once

#include "shared_matrices.cuh"
#include "sparse_registers.cuh"
#include "widen.cuh"

namespace nm_bytes {

// What a lane multiplies, of values V and rows T.
template <typename T, typename V>
class MixedLane {
 public:
  using Row = T;
  using Sum = float;

  // A lane's values and their positions, for the two wgmma of a stage of 64 inputs.
  struct Fragments {
    uint32_t values[2][4], places;
  };

  __device__ MixedLane() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    values_ = swizzled(lane, warp), indices_ = swizzled(lane % 8, warp);
    // Opaque to the compiler, which would else compute them anew in each stage.
    asm volatile("" : "+r"(values_), "+r"(indices_));
  }

  __device__ void load(Fragments& to, uint32_t values, uint32_t indices) const {
    uint32_t pairs[4];
    load_transposed(pairs, values + values_);
    const uint32_t bytes = load_transposed(indices + indices_);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t* two = to.values[i / 2] + i % 2 * 2;
      two[0] = hopper::widen<T, V>(pairs[i], pairs[i] >> 16, 0);
      two[1] = hopper::widen<T, V>(pairs[i], pairs[i] >> 16, 1);
    }
    const uint32_t places = __byte_perm(bytes, 0, 0x3120);
    // Beyond the weight all bits are zero: two equal positions, but the second must be higher.
    to.places = places | (~(places >> 2 | places >> 3) & 0x11111111) << 2;
  }

  // Lanes 0 and 1 of every four have the positions of the first wgmma.
  template <int kRows>
  __device__ static void add(Sum (&sums)[kRows / 2], const Fragments& fragments, uint64_t x) {
    using First = hopper::RegistersProduct<T, kRows, 0>;
    using Second = hopper::RegistersProduct<T, kRows, 1>;
    First::add(sums, fragments.values[0], x, fragments.places);
    Second::add(sums, fragments.values[1], x + (64 >> 4), fragments.places);
  }

 private:
  uint32_t values_, indices_;
};

}  // namespace nm_bytes
