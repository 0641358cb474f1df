// From bytes of a stage to the registers of a sparse wgmma.
//
// Tensor cores want four bytes of one output in a register, consecutive along k, but in memory
// outputs are consecutive. `ldmatrix.trans` moves pairs of bytes: from rows of 16 outputs it
// gives each lane two neighbouring outputs at two places of k. Two such registers have two
// outputs at four places, and a byte permutation each makes them two outputs' registers.
// So lane / 4 has the outputs 2 i and 2 i + 1 of its warp's 16, as the rows i and i + 8 of the
// tensor cores' tile.
#pragma once

#include "hopper.cuh"

namespace nm_bytes {

// A lane's values and their positions, for the two wgmma of a stage of 128 inputs.
struct Fragments {
  uint32_t values[2][4], places[2];
};

// What a lane reads: rows of a matrix of 128 outputs, whose rows are swizzled.
class Lane {
 public:
  __device__ Lane() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Row 2 t + j of matrix m goes to the lanes t of every four. Their places of k are 4 t to
    // 4 t + 3, two from either matrix, in an order by which no two rows share their banks.
    const int m = lane / 8, t = lane / 2 % 4, j = lane % 2;
    const int k = m / 2 * 16 + t * 4 + (m % 2 ^ t / 2) * 2 + j;
    values_ = address(k, warp);
    // Of every four lanes, the first two have the positions of the first 32 inputs.
    indices_ = address(m / 2 * 8 + t / 2 * 4 + m % 2 * 2 + j, warp);
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

 private:
  __device__ static uint32_t address(int row, int chunk) {
    return row * 128 + ((chunk ^ row % 8) << 4);
  }
  __device__ static void load_transposed(uint32_t (&to)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }

  uint32_t values_, indices_, even_, places_;
};

}  // namespace nm_bytes
