// What a kernel fetches from memory into the L2 cache for the kernel after it.
//
// Memory is idle while one kernel ends and the next ones start. So a kernel that has requested
// all of its own data asks for the beginning of the next weights.
#pragma once

#include <cstdint>

namespace ahead {

constexpr int kMost = 12;       // arrays
constexpr int kChunk = 4096;  // bytes of one request

struct Ahead {
  const uint8_t* from[kMost];
  int chunks[kMost];
  int count;
};

// Issues this thread's part of the requests, of all threads that call it.
__device__ inline void fetch(const Ahead& ahead, int thread, int threads) {
  for (int i = 0; i < ahead.count; ++i) {
    for (int chunk = thread; chunk < ahead.chunks[i]; chunk += threads) {
      const uint8_t* from = ahead.from[i] + static_cast<int64_t>(chunk) * kChunk;
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "n"(kChunk)
                   : "memory");
    }
  }
}

}  // namespace ahead
