// How warps read matrices of bytes whose rows have 128, as TMA swizzles them.
#pragma once

#include <cstdint>

namespace nm_bytes {

// The offset of 16 bytes.
__device__ inline uint32_t swizzled(int row, int chunk) {
  return row * 128 + ((chunk ^ row % 8) << 4);
}

// Each lane gives the address of 16 bytes, those of 8 lanes a matrix of pairs; lane l gets the pairs
// l / 4 of the rows 2 (l % 4) and 2 (l % 4) + 1 of each matrix.
__device__ inline void load_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
__device__ inline uint32_t load_transposed(uint32_t address) {
  uint32_t to;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(to)
               : "r"(address)
               : "memory");
  return to;
}

}  // namespace nm_bytes
