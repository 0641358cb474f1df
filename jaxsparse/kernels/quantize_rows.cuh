// Rows of 16-bit floats to eight bits with a float32 scale for each, in one pass.
//
// A block has one row, which stays in its registers between the search for its largest magnitude
// and the rounding, so it is read once. Many blocks share a multiprocessor: some wait for memory
// while others search and round. Blocks that take several rows, and load the next one ahead, are
// not faster.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace quantize_rows {

constexpr int kVector = 8;  // numbers that a thread loads at once

// Two numbers of 16 bits as floats, and the largest numbers of both formats.
__device__ inline float2 widen(__nv_bfloat16, uint32_t two) {
  return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000)};
}
__device__ inline float2 widen(__half, uint32_t two) {
  return __half22float2(reinterpret_cast<const __half2&>(two));
}
__device__ inline float largest(int8_t) { return 127; }
__device__ inline float largest(__nv_fp8_e4m3) { return 448; }

// The largest magnitude of a row, as bits: those of magnitudes are ordered as the numbers are, and
// those of NaNs are above all others. The block has at most 1024 threads.
template <int kVectors>
__device__ uint32_t largest_bits(const uint4 (&x)[kVectors]) {
  constexpr uint32_t kMagnitudes = 0x7fff7fff;
  uint32_t pair = 0;
#pragma unroll
  for (const uint4& v : x) {
    pair = __vmaxu2(pair, __vmaxu2(v.x & kMagnitudes, v.y & kMagnitudes));
    pair = __vmaxu2(pair, __vmaxu2(v.z & kMagnitudes, v.w & kMagnitudes));
  }
  const uint32_t mine = __reduce_max_sync(~0u, max(pair & 0xffff, pair >> 16));
  if (blockDim.x == 32) return mine;
  __shared__ uint32_t of_warps[32];
  const int lane = threadIdx.x % 32;
  if (lane == 0) of_warps[threadIdx.x / 32] = mine;
  __syncthreads();
  return __reduce_max_sync(~0u, lane < blockDim.x / 32 ? of_warps[lane] : 0);
}

// The scale of a row, by exact division: one for zeros, and never subnormal.
template <typename V>
__device__ float scale_of(float magnitude) {
  const float scale = magnitude == 0 ? 1 : __fdiv_rn(magnitude, largest(V()));
  return scale < 0x1p-126f ? 0x1p-126f : scale;  // NaN stays
}

// Rounds to nearest, ties to even, within the largest numbers, which products exceed by rounding.
__device__ inline uint32_t round_four(int8_t, float2 low, float2 high) {
  uint32_t four;
  const int v[] = {__float2int_rn(low.x), __float2int_rn(low.y), __float2int_rn(high.x),
                   __float2int_rn(high.y)};
  asm("{\n.reg .b32 upper;\n"
      "cvt.pack.sat.s8.s32.b32 upper, %4, %3, 0;\n"
      "cvt.pack.sat.s8.s32.b32 %0, %2, %1, upper;\n}\n"
      : "=r"(four)
      : "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]));
  return four;
}
__device__ inline uint32_t round_four(__nv_fp8_e4m3, float2 low, float2 high) {
  const uint32_t first = __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3);
  const uint32_t second = __nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3);
  return first | second << 16;
}

template <typename T, typename V>
__device__ uint2 round(const uint4& x, float inverse) {
  const auto scaled = [&](uint32_t two) {
    const float2 v = widen(T(), two);
    return make_float2(__fmul_rn(v.x, inverse), __fmul_rn(v.y, inverse));
  };
  return {round_four(V(), scaled(x.x), scaled(x.y)), round_four(V(), scaled(x.z), scaled(x.w))};
}

// Two numbers of float8 as 16-bit floats, which hold all of them.
__device__ inline uint32_t widen_two(__half, uint32_t two) {
  const __half2 wide(__nv_cvt_fp8x2_to_halfraw2(two & 0xffff, __NV_E4M3));
  return reinterpret_cast<const uint32_t&>(wide);
}
__device__ inline uint32_t widen_two(__nv_bfloat16, uint32_t two) {
  const __half2 half(__nv_cvt_fp8x2_to_halfraw2(two & 0xffff, __NV_E4M3));
  const __nv_bfloat162 wide = __float22bfloat162_rn(__half22float2(half));
  return reinterpret_cast<const uint32_t&>(wide);
}

__device__ inline void store(uint8_t* to, uint2 eight) { *reinterpret_cast<uint2*>(to) = eight; }
template <typename T>
__device__ void store(T* to, uint2 eight) {
  *reinterpret_cast<uint4*>(to) = {widen_two(T(), eight.x), widen_two(T(), eight.x >> 16),
                                   widen_two(T(), eight.y), widen_two(T(), eight.y >> 16)};
}

// Each thread has kVectors vectors of the row of its block; some may be beyond its end. The
// results are bytes of V, or widened to T.
template <typename T, typename V, typename Out, int kVectors>
__global__ __launch_bounds__(1024) void quantize(const T* x, Out* values, float* scales, int k) {
  const int vectors = k / kVector;
  const auto* from = reinterpret_cast<const uint4*>(x + int64_t{k} * blockIdx.x);
  Out* to = values + int64_t{k} * blockIdx.x;
  uint4 row[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    row[i] = at < vectors ? __ldg(from + at) : uint4{};
  }
  const uint32_t bits = largest_bits(row);
  const float scale = scale_of<V>(widen(T(), bits).x);
  const float inverse = __fdiv_rn(1, scale);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = threadIdx.x + i * blockDim.x;
    if (at < vectors) store(to + at * kVector, round<T, V>(row[i], inverse));
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

}  // namespace quantize_rows
