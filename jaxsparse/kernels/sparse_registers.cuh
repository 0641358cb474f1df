// wgmma with a 2:4 sparse operand in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace hopper {

template <typename V>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<int8_t> {
  using type = int32_t;
};

// The compiler does not move reads of a sum before this, and so not before a wait for it.
__device__ inline void keep_behind(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }
__device__ inline void keep_behind(int32_t& sum) { asm volatile("" : "+r"(sum)::"memory"); }

// d += a b: a is 64 x 64 of eight bits, or 64 x 32 of 16, and 2:4 sparse; the kColumns columns of b
// are contiguous. The positions of a's values (in PTX: the metadata) are held by all lanes, those
// of 16 bits by lanes 2 * kSelector and 2 * kSelector + 1 of every four.
template <typename V, int kColumns, int kSelector>
struct RegistersProduct;

#define R4(i) "%" #i "0,%" #i "1,%" #i "2,%" #i "3"
#define R6(i) R4(i) ",%" #i "4,%" #i "5"
#define R10(i) R6(i) ",%" #i "6,%" #i "7,%" #i "8,%" #i "9"
#define R30 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," R10(1) "," R10(2)
#define R90 R30 "," R10(3) "," R10(4) "," R10(5) "," R10(6) "," R10(7) "," R10(8)
#define REGISTERS_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," R6(1)
#define REGISTERS_32 R30 ",%30,%31"
#define REGISTERS_64 R30 "," R10(3) "," R10(4) "," R10(5) "," R4(6)
#define REGISTERS_128 \
  R90 "," R10(9) "," R10(10) "," R10(11) ",%120,%121,%122,%123,%124,%125,%126,%127"

#define SUMS_4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define SUMS_16(c, i) SUMS_4(c, i), SUMS_4(c, i + 4), SUMS_4(c, i + 8), SUMS_4(c, i + 12)
#define SUMS_32(c, i) SUMS_16(c, i), SUMS_16(c, i + 16)
#define SUMS_64(c, i) SUMS_32(c, i), SUMS_32(c, i + 32)
#define SUMS_128(c, i) SUMS_64(c, i), SUMS_64(c, i + 64)

#define REGISTERS_PRODUCT(V, depth, names, c, signs, columns, sums, a0, a1, a2, a3, b_, p_, s_) \
  template <int kSelector>                                                                     \
  struct RegistersProduct<V, columns, kSelector> {                                             \
    __device__ static void add(SumOf<V>::type (&d)[sums], const uint32_t (&a)[4],              \
                               uint64_t b, uint32_t places) {                                  \
      asm volatile("wgmma.mma_async.sp.sync.aligned.m64n" #columns depth "." names             \
                   " {" REGISTERS_##sums "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #b_     \
                   ", %" #p_ ", %" #s_ ", 1" signs ";"                                         \
                   : SUMS_##sums(c, 0)                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(places),          \
                     "n"(kSelector));                                                          \
    }                                                                                          \
  };
#define REGISTERS_PRODUCTS(V, depth, names, c, signs)                                          \
  REGISTERS_PRODUCT(V, depth, names, c, signs, 32, 16, 16, 17, 18, 19, 20, 21, 22)             \
  REGISTERS_PRODUCT(V, depth, names, c, signs, 64, 32, 32, 33, 34, 35, 36, 37, 38)             \
  REGISTERS_PRODUCT(V, depth, names, c, signs, 128, 64, 64, 65, 66, 67, 68, 69, 70)            \
  REGISTERS_PRODUCT(V, depth, names, c, signs, 256, 128, 128, 129, 130, 131, 132, 133, 134)

REGISTERS_PRODUCTS(__nv_fp8_e4m3, "k64", "f32.e4m3.e4m3", "+f", ", 1, 1")
REGISTERS_PRODUCTS(int8_t, "k64", "s32.s8.s8", "+r", "")
REGISTERS_PRODUCTS(__nv_bfloat16, "k32", "f32.bf16.bf16", "+f", ", 1, 1, 0")
REGISTERS_PRODUCTS(__half, "k32", "f32.f16.f16", "+f", ", 1, 1, 0")

#undef R4
#undef R6
#undef R10
#undef R30
#undef R90
#undef REGISTERS_16
#undef REGISTERS_32
#undef REGISTERS_64
#undef REGISTERS_128
#undef SUMS_4
#undef SUMS_16
#undef SUMS_32
#undef SUMS_64
#undef SUMS_128

}  // namespace hopper
