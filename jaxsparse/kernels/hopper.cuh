// What this library uses of Hopper's instructions: barriers, TMA and sparse wgmma.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace hopper {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Lets other threads, other blocks and TMA see barriers that this thread has made.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
               "r"(bytes));
}

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier));
}

// At a barrier of any block of the cluster. It orders no writes, and need not: what it tells
// is that reads are over, whose results have been used. With a release it would take long.
__device__ inline void arrive_remote(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier));
}

__device__ inline void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ inline void load_2d(uint32_t to, const CUtensorMap& map, uint32_t barrier, int c0,
                               int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}

// To the same address in all blocks of the cluster that the mask names.
__device__ inline void load_2d(uint32_t to, const CUtensorMap& map, uint32_t barrier, int c0,
                               int c1, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "h"(blocks)
      : "memory");
}

__device__ inline void load_3d(uint32_t to, const CUtensorMap& map, uint32_t barrier, int c0,
                               int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

__device__ inline void store_2d(const CUtensorMap& map, uint32_t from, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];\n"
      "cp.async.bulk.commit_group;" ::"l"(&map),
      "r"(from), "r"(c0), "r"(c1)
      : "memory");
}

// Waits until all but so many of this thread's stores have read their source.
template <int kPending>
__device__ inline void wait_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Makes writes to shared memory visible to TMA.
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ inline void arrive_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
// Says that this block has begun, and nothing of its writes.
__device__ inline void arrive_cluster_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void wait_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ inline void sync_cluster() {
  arrive_cluster();
  wait_cluster();
}

__device__ inline uint32_t block_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The same shared address in another block of the cluster.
__device__ inline uint32_t address_in_block(uint32_t address, uint32_t block) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(mapped)
               : "r"(address), "r"(block));
  return mapped;
}

__device__ inline float2 load_cluster(uint32_t address) {
  float2 v;
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
               : "=f"(v.x), "=f"(v.y)
               : "r"(address)
               : "memory");
  return v;
}

// Stores to any block of the cluster, and tells a barrier of that block how many bytes.
__device__ inline void store_async(uint32_t address, float2 v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          address),
      "f"(v.x), "f"(v.y), "r"(barrier)
      : "memory");
}

__device__ inline uint32_t load_byte(uint32_t address) {
  uint32_t byte;
  asm volatile("ld.shared::cta.u8 %0, [%1];" : "=r"(byte) : "r"(address) : "memory");
  return byte;
}

__device__ inline void store_transposed(uint32_t address, uint32_t a, uint32_t b, uint32_t c,
                                        uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// Reads what nobody reads again.
__device__ inline void load_once(uint32_t (&v)[4], const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "l"(from));
}
__device__ inline void load_once(uint32_t (&v)[2], const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
               : "=r"(v[0]), "=r"(v[1])
               : "l"(from));
}

// Copies 16 bytes to shared memory, of which so many are read and the others are zero.
__device__ inline void copy_16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four matrices of 8 rows of 16 bytes; a lane's address is that of a row.
__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}

template <typename T>
__device__ inline uint32_t two(float low, float high);
template <>
__device__ inline uint32_t two<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
template <>
__device__ inline uint32_t two<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Of a tile whose rows of 128 bytes are swizzled: eight rows follow each other in 1024 bytes.
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

// d += a b, by one warp: a is 16 x 32 and 2:4 sparse, b is 32 x 8. Where a's values are (PTX:
// the metadata) is held, in every four lanes, by lanes 2 * kSelector and the next.
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

// d += a b: a is 64 x 32 and 2:4 sparse, b is 32 x kColumns; the columns of both are
// contiguous. In every four lanes, lanes 2 * kSelector and the next hold where a's values are.
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
  SPARSE_PRODUCT(type, name, 8, 4, 4, 5, 6, 7)               \
  SPARSE_PRODUCT(type, name, 16, 8, 8, 9, 10, 11)            \
  SPARSE_PRODUCT(type, name, 32, 16, 16, 17, 18, 19)         \
  SPARSE_PRODUCT(type, name, 64, 32, 32, 33, 34, 35)         \
  SPARSE_PRODUCT(type, name, 128, 64, 64, 65, 66, 67)        \
  SPARSE_PRODUCT(type, name, 256, 128, 128, 129, 130, 131)

SPARSE_PRODUCTS(__nv_bfloat16, "bf16")
SPARSE_PRODUCTS(__half, "f16")

#undef R4
#undef R10

}  // namespace hopper
