// Matrix products of dense operands by one warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace hopper {

// d += a b: a is 16 x 16, b is 16 x 8.
template <typename T>
__device__ void add_dense(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
#define ADD_DENSE(type, name)                                                             \
  template <>                                                                             \
  __device__ inline void add_dense<type>(float (&d)[4], const uint32_t (&a)[4],           \
                                         const uint32_t (&b)[2]) {                        \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                            \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"            \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));              \
  }
ADD_DENSE(__nv_bfloat16, "bf16")
ADD_DENSE(__half, "f16")
#undef ADD_DENSE

}  // namespace hopper
