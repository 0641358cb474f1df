// How the warps and blocks of the kernels for few rows add up their sums.
#pragma once

#include "hopper.cuh"
#include "nm_few_form.cuh"

namespace nm_few {

// The sums of a warp, with rows padded against bank conflicts.
template <typename F>
using WarpSums = float[F::kRows][kOut + 4];

// Sums of the blocks of a cluster, for the outputs that this block stores.
template <typename F>
struct Inbox {
  static constexpr int kRows = F::kBlocks > 1 ? F::kRows : 1;  // one block needs none
  alignas(16) float sums[F::kBlocks][kRows][F::kBlockOut / F::kBlocks];
  uint64_t is_full;  // a barrier
};

// The exchange of partial sums between warps, four at a time. They are always added in the same
// order: over the warps of a block, then over the blocks of a cluster.
template <typename T, typename V, typename F>
class Sums {
  static_assert(F::kBlockOut % (4 * F::kBlocks) == 0, "a block stores fours of each row");

 public:
  // `first` are the sums of the first warp; those of the next are `stride` bytes after them.
  __device__ Sums(WarpSums<F>& first, int stride, Inbox<F>& inbox, const Problem<T, V>& p)
      : first_(first), stride_(stride / sizeof(float)), inbox_(inbox), p_(p),
        rows_(min(F::kRows, p.rows - p.first_row)),
        barrier_(hopper::shared_address(&inbox.is_full)) {}

  __device__ void begin() const {
    if (kBlocks == 1) return;
    if (threadIdx.x == 0) {
      hopper::init_barrier(barrier_, 1);
      hopper::publish_barriers();
      hopper::expect_bytes(barrier_, rows_ * F::kBlockOut * sizeof(float));
    }
    hopper::arrive_cluster_relaxed();
  }
  __device__ void leave(const float (&sums)[kTiles][F::kRows / 8][4]) const {
    const int lane = threadIdx.x % 32;
    float* mine = &first_[0][0] + threadIdx.x / 32 * stride_;
#pragma unroll
    for (int i = 0; i < F::kRows / 4; ++i) {
      const int row = i / 2 * 8 + lane % 4 * 2 + i % 2;
      float2* to = reinterpret_cast<float2*>(mine + row * (kOut + 4) + lane / 4 * 8);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const auto& sum = sums[tile][i / 2];
        to[tile] = {sum[i % 2], sum[i % 2 + 2]};
      }
    }
  }
  __device__ void add_up() const {
    __syncthreads();
    if (kBlocks > 1) hopper::wait_cluster();  // all blocks have started
    constexpr int kColumns = F::kBlockOut / 4;
    const int out = threadIdx.x % kColumns * 4, column = out / kOut;
    const float* mine = &first_[0][out % kOut] + column * stride_;
    for (int row = threadIdx.x / kColumns; row < rows_; row += F::kThreads / kColumns) {
      const float4 sum = add<F::kParts>(mine + row * (kOut + 4), F::kWide * stride_);
      if constexpr (kBlocks == 1) store(row, out, sum);
      if constexpr (kBlocks > 1) send(row, out, sum);
    }
    if constexpr (kBlocks > 1) add_up_blocks();
  }

 private:
  static constexpr int kBlocks = F::kBlocks, kShare = F::kBlockOut / kBlocks;

  __device__ void send(int row, int out, float4 sum) const {
    const int block = out / kShare;
    const auto* to = &inbox_.sums[blockIdx.z][row][out % kShare];
    hopper::store_async(hopper::address_in_block(hopper::shared_address(to), block), sum,
                        hopper::address_in_block(barrier_, block));
  }
  __device__ void add_up_blocks() const {
    constexpr int kColumns = kShare / 4;
    const int out = threadIdx.x % kColumns * 4;
    for (int row = threadIdx.x / kColumns; row < rows_; row += F::kThreads / kColumns) {
      hopper::wait_for_cluster(barrier_, 0);
      const float4 sum = add<kBlocks>(&inbox_.sums[0][row][out], F::kRows * kShare);
      store(row, blockIdx.z * kShare + out, sum);
    }
  }
  template <int kParts>
  static __device__ float4 add(const float* first, int stride) {
    float4 sum = {};
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float4 more = *reinterpret_cast<const float4*>(first + i * stride);
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    return sum;
  }
  __device__ void store(int row, int out, float4 sum) const {
    out += p_.block_out;
    if (out >= p_.out) return;
    if (p_.row_scales) {
      const float scale = p_.row_scales[p_.row + row];
      sum.x *= scale, sum.y *= scale, sum.z *= scale, sum.w *= scale;
    }
    if (p_.scales) {
      const float* scales = p_.scales + blockIdx.y * p_.out;
      const float4 scale = *reinterpret_cast<const float4*>(scales + out);
      sum.x *= scale.x, sum.y *= scale.y, sum.z *= scale.z, sum.w *= scale.w;
    }
    T* to = p_.y + static_cast<int64_t>(p_.row + row) * p_.out + out;
    *reinterpret_cast<uint2*>(to) = {hopper::two<T>(sum.x, sum.y),
                                     hopper::two<T>(sum.z, sum.w)};
  }

  WarpSums<F>& first_;
  int stride_;
  Inbox<F>& inbox_;
  const Problem<T, V>& p_;
  int rows_;
  uint32_t barrier_;
};

}  // namespace nm_few
