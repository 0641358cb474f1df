// Weights of 8 bits as the 16-bit floats that tensor cores multiply. All of them are exact.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace hopper {

__device__ inline uint32_t bits(__half2 pair) { return reinterpret_cast<const uint32_t&>(pair); }
__device__ inline uint32_t bits(__nv_bfloat162 pair) {
  return reinterpret_cast<const uint32_t&>(pair);
}

// Returns byte `byte` of two words, the first in the low half, as floats T.
template <typename T, typename V>
__device__ uint32_t widen(uint32_t low, uint32_t high, int byte);

template <>
__device__ inline uint32_t widen<__half, __nv_fp8_e4m3>(uint32_t low, uint32_t high, int byte) {
  const auto pair = static_cast<__nv_fp8x2_storage_t>(
      __byte_perm(low, high, byte | (4 + byte) << 4));
  const __half2_raw wide = __nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3);
  return bits(__half2(wide));
}

// The exponent of bfloat16 has four more bits: moved there, a number is 2^120 times too small.
// Each byte is extended by copies of its sign, of which the mask leaves one.
template <>
__device__ inline uint32_t widen<__nv_bfloat16, __nv_fp8_e4m3>(uint32_t low, uint32_t high,
                                                               int byte) {
  uint32_t pair;
  const uint32_t bytes = byte | (8 + byte) << 4 | (4 + byte) << 8 | (12 + byte) << 12;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(pair) : "r"(low), "r"(high), "r"(bytes));
  const uint32_t moved = pair << 4 & 0x87F087F0;
  constexpr uint32_t kScale = 0x7B807B80;  // 2^120 twice
  return bits(__hmul2(reinterpret_cast<const __nv_bfloat162&>(moved),
                      reinterpret_cast<const __nv_bfloat162&>(kScale)));
}

// 1024 + 128 + i, of which the last eight bits are those of i with the sign flipped.
template <>
__device__ inline uint32_t widen<__half, int8_t>(uint32_t low, uint32_t high, int byte) {
  const uint32_t pair = __byte_perm(low, high, byte | byte << 4 | (4 + byte) << 8 | byte << 12);
  const uint32_t biased = (pair & 0x00FF00FF ^ 0x00800080) | 0x64006400;
  constexpr uint32_t kBias = 0x64806480;  // 1152 twice
  return bits(__hsub2(reinterpret_cast<const __half2&>(biased),
                      reinterpret_cast<const __half2&>(kBias)));
}

// bfloat16 has too few bits for the bias, so it is added in float32: 2^23 + 128 + i.
template <>
__device__ inline uint32_t widen<__nv_bfloat16, int8_t>(uint32_t low, uint32_t high, int byte) {
  const auto wide = [&](uint32_t word) {
    const uint32_t biased = __byte_perm(word ^ 0x80808080, 0x4B000000, 0x7540 | byte);
    return __float_as_uint(__uint_as_float(biased) - 8388736.0f);
  };
  return __byte_perm(wide(low), wide(high), 0x7632);  // the upper halves: the lower are zero
}

}  // namespace hopper
