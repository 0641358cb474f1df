// Matrix products with a 2:4 sparse operand, by one warp (mma) or by four (wgmma).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace hopper {

// Describes a tile with swizzled rows of 128 bytes: eight rows are contiguous, in 1024 bytes.
__device__ inline uint64_t descriptor(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | kEightRows << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d += a b, by one warp: a is 16 x 32 and 2:4 sparse, b is 32 x 8. The positions of a's values
// (in PTX: the metadata) are held by lanes 2 * kSelector and 2 * kSelector + 1 of every four.
template <typename T, int kSelector>
__device__ void add_sparse(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                           uint32_t places);
#define ADD_SPARSE(type, name, selector)                                                       \
  template <>                                                                                  \
  __device__ inline void add_sparse<type, selector>(                                           \
      float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t places) {        \
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." name "." name   \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11},"                \
                 " {%0, %1, %2, %3}, %12, " #selector ";"                                      \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),           \
                   "r"(b[2]), "r"(b[3]), "r"(places));                                         \
  }
ADD_SPARSE(__nv_bfloat16, "bf16", 0)
ADD_SPARSE(__nv_bfloat16, "bf16", 1)
ADD_SPARSE(__half, "f16", 0)
ADD_SPARSE(__half, "f16", 1)

// d += a b: a is 64 x 32 and 2:4 sparse, b is 32 x kColumns; the columns of both are contiguous.
// Lanes 2 * kSelector and 2 * kSelector + 1 of every four hold the positions of a's values.
template <typename T, int kColumns, int kSelector>
struct SparseProduct;

#define R4(i) "%" #i "0,%" #i "1,%" #i "2,%" #i "3"
#define R10(i) R4(i) ",%" #i "4,%" #i "5,%" #i "6,%" #i "7,%" #i "8,%" #i "9"
#define REGISTERS_4 "%0,%1,%2,%3"
#define REGISTERS_8 REGISTERS_4 ",%4,%5,%6,%7"
#define REGISTERS_16 REGISTERS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define REGISTERS_32 REGISTERS_16 ",%16,%17,%18,%19," R10(2) ",%30,%31"
#define REGISTERS_64                                                                     \
  REGISTERS_32 ",%32,%33,%34,%35,%36,%37,%38,%39," R10(4) "," R10(5) "," R4(6)
#define REGISTERS_128                                                                    \
  REGISTERS_64 ",%64,%65,%66,%67,%68,%69," R10(7) "," R10(8) "," R10(9) "," R10(10)      \
  "," R10(11) ",%120,%121,%122,%123,%124,%125,%126,%127"

#define SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_8(i) SUMS_4(i), SUMS_4(i + 4)
#define SUMS_16(i) SUMS_8(i), SUMS_8(i + 8)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)
#define SUMS_64(i) SUMS_32(i), SUMS_32(i + 32)
#define SUMS_128(i) SUMS_64(i), SUMS_64(i + 64)

#define SPARSE_PRODUCT(type, name, columns, sums, a_, b_, places_, selector_)                 \
  template <int kSelector>                                                                    \
  struct SparseProduct<type, columns, kSelector> {                                            \
    __device__ static void add(float (&d)[sums], uint64_t a, uint64_t b, uint32_t places) {   \
      asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #columns "k32.f32." name "." name   \
                   " {" REGISTERS_##sums "}, %" #a_ ", %" #b_ ", %" #places_ ", %" #selector_ \
                   ", 1, 1, 1, 1, 0;"                                                         \
                   : SUMS_##sums(0)                                                           \
                   : "l"(a), "l"(b), "r"(places), "n"(kSelector));                            \
    }                                                                                         \
  };
#define SPARSE_PRODUCTS(type, name)                          \
  SPARSE_PRODUCT(type, name, 32, 16, 16, 17, 18, 19)         \
  SPARSE_PRODUCT(type, name, 64, 32, 32, 33, 34, 35)         \
  SPARSE_PRODUCT(type, name, 128, 64, 64, 65, 66, 67)        \
  SPARSE_PRODUCT(type, name, 256, 128, 128, 129, 130, 131)

SPARSE_PRODUCTS(__nv_bfloat16, "bf16")
SPARSE_PRODUCTS(__half, "f16")

#undef R4
#undef R10

}  // namespace hopper
