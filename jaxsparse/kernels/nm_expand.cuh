// y[rows, out] = x[rows, k] w for few rows and an 8:16 weight w[k, out] of 16-bit floats, which is
// expanded on its way to the tensor cores. Two groups of 4:8 are one of 8:16, so it multiplies
// 4:8 as well.
//
// The time should be that of reading the weight, 9/16 of the bytes of a dense one. TMA fills a
// ring of stages for each team of warps, which have 64 outputs each and the same part of k; teams
// and the blocks of a cluster have other parts, and synchronise only at the end.
//
// Places of k may be assigned to the columns of a tensor core tile in any order, if x is permuted
// likewise. So lane t of four has the whole group t of every four: the matrix m that ldmatrix
// transposes has the values 2 m and 2 m + 1 of four groups as rows, and registers m = 0 to 3 hold
// the eight values of one group of one output.
//
// Selectors come from a table in shared memory, of which each of sixteen lanes has a copy: lookups
// of half a warp hit each bank once. Without that, shared memory would take longer than the bytes.
#pragma once

#include "dense_product.cuh"
#include "expand_group.cuh"
#include "hopper.cuh"
#include "nm_few_form.cuh"
#include "nm_few_sums.cuh"

namespace nm_expand {

using nm_few::kMostWeights, nm_few::kOut, nm_few::kStep, nm_few::kTiles;

template <typename T>
struct Weight {
  CUtensorMap values, masks;
  T* y;
  int out;
};

// The products of x with several weights, or of stacks, in one launch, as in nm_few::Products.
template <typename T>
struct Products {
  CUtensorMap x;
  Weight<T> weights[kMostWeights];
  int ends[kMostWeights - 1];
  int row_tiles, rows, k;
};

constexpr int kCopies = 16;

// The entries of the two halves of a group, by their byte of the mask.
struct Table {
  expand_group::Entry of_byte[256][2][kCopies];
};

// Rows of values and of x have 128 bytes, those of masks 64; TMA swizzles their chunks of 16
// bytes. Row 4 j + t of the values has value j of group t.
constexpr int kValuesBytes = kStep / 2 * 128, kMasksBytes = kStep / 8 * 64;
template <typename F>
constexpr int kRowsBytes = F::kRows * 128;
template <typename F>
constexpr int kStageBytes = F::kWide * (kValuesBytes + kMasksBytes) + kRowsBytes<F>;
template <typename F>
constexpr int kFreeBytes = 227 * 1024 - sizeof(Table) - sizeof(nm_few::Inbox<F>) - 512;
template <typename F>
constexpr int kMostStages = kFreeBytes<F> / F::kParts / kStageBytes<F>;
template <typename F>
constexpr int kStages = kMostStages<F> < 4 ? kMostStages<F> : 4;

template <typename F>
struct Memory {
  alignas(1024) uint8_t values[F::kParts][kStages<F>][F::kWide][kValuesBytes];
  uint8_t x[F::kParts][kStages<F>][kRowsBytes<F>];
  uint8_t masks[F::kParts][kStages<F>][F::kWide][kMasksBytes];
  union {
    alignas(128) Table table;
    alignas(16) nm_few::WarpSums<F> sums[F::kWarps];  // when all steps are done
  };
  nm_few::Inbox<F> inbox;
  uint64_t is_full[F::kParts][kStages<F>], is_free[F::kParts][kStages<F>];  // barriers
};

template <typename F>
__device__ void fill(Table& table) {
  for (int mask = threadIdx.x; mask < 256; mask += F::kThreads) {
    const auto first = expand_group::first_entry(mask), second = expand_group::second_entry(mask);
    uint4* to = reinterpret_cast<uint4*>(table.of_byte[mask]);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int pair = (i + threadIdx.x) % kCopies;  // eight lanes at a time hit all banks
      const auto& entry = pair < kCopies / 2 ? first : second;
      to[pair] = {entry.selectors, entry.kept, entry.selectors, entry.kept};
    }
  }
}

// Loads four matrices transposed: each lane gets two neighbours of a column of each.
__device__ inline void load_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

// Where this lane, of row g and group t, reads in a stage and in the table.
struct Lane {
  uint32_t values, masks, x, table;

  __device__ Lane() {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // The row 2 t + e of matrix m has values 2 m + e of group t.
    const uint32_t row = lane / 8 * 8 + lane % 2 * 4 + lane % 8 / 2;
    values = row * 128 + row % 8 * 16;
    masks = t * 128 + t * 16 + g;
    x = g * 128 + (2 * t ^ g) * 16;
    table = lane % kCopies * sizeof(expand_group::Entry);
  }
};

// Returns the entry of a byte of a mask, from this lane's copy. The table never changes, so that
// the compiler may move the load.
template <int kHalf>
__device__ inline expand_group::Entry look_up(uint32_t table, uint32_t mask) {
  expand_group::Entry entry;
  asm("ld.shared.v2.u32 {%0, %1}, [%2 + %3];"
      : "=r"(entry.selectors), "=r"(entry.kept)
      : "r"(mask * 256 + table), "n"(kHalf * 128));
  return entry;
}

// Adds the products of a step: two chunks of eight outputs are rows g and g + 8 of a tile.
template <typename T, typename F>
__device__ void multiply(float (&sums)[kTiles][F::kRows / 8][4], const uint8_t* values,
                         const uint8_t* masks, const uint8_t* x, uint32_t table,
                         const Lane& lane) {
  uint4 columns[F::kRows / 8][2];
#pragma unroll
  for (int n = 0; n < F::kRows / 8; ++n) {
    columns[n][0] = *reinterpret_cast<const uint4*>(x + n * 1024 + lane.x);
    columns[n][1] = *reinterpret_cast<const uint4*>(x + n * 1024 + (lane.x ^ 16));
  }
  const uint32_t first = hopper::shared_address(values) + lane.values;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    expand_group::Values v[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t pairs[4];
      load_transposed(pairs, first ^ (2 * tile + i) * 16);
      v[i] = expand_group::values(pairs);
    }
    const uint8_t* mine = masks + (lane.masks ^ tile * 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t w[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t mask = mine[half * 64 + i * 8];
        half ? expand_group::second_half(w[i], v[i], look_up<1>(table, mask))
             : expand_group::first_half(w[i], v[i], look_up<0>(table, mask));
      }
#pragma unroll
      for (int n = 0; n < F::kRows / 8; ++n) {
        const uint4 b = columns[n][half];
        hopper::add_dense<T>(sums[tile][n], {w[0][0], w[1][0], w[0][1], w[1][1]}, {b.x, b.y});
        hopper::add_dense<T>(sums[tile][n], {w[0][2], w[1][2], w[0][3], w[1][3]}, {b.z, b.w});
      }
    }
  }
}

// As nm_few::Sums::leave, for tiles whose outputs follow one another.
template <typename F>
__device__ void leave(nm_few::WarpSums<F>& to, const float (&sums)[kTiles][F::kRows / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < F::kRows / 8 * 4; ++i) {
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2, out = i / 2 % 2 * 8 + lane / 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) to[row][tile * 16 + out] = sums[tile][i / 4][i % 4];
  }
}

// The stages of a team of warps that have the same part of k.
template <typename T, typename F>
class Ring {
 public:
  __device__ Ring(Memory<F>& memory, const Products<T>& all, nm_few::Place place)
      : memory_(memory), all_(all), from_(all.weights[place.weight]), place_(place),
        team_(threadIdx.x / 32 / F::kWide) {}

  // The following two are for the first thread of a team.
  __device__ void init() const {
    for (int i = 0; i < kStages<F>; ++i) {
      hopper::init_barrier(full(i), 1);
      hopper::init_barrier(free(i), F::kWide);
    }
    hopper::publish_barriers();
  }
  __device__ void copy(int slot, int step) const {
    hopper::expect_bytes(full(slot), kStageBytes<F>);
    // Beyond the k of a matrix its values are zero, and its masks may be those of the next.
#pragma unroll
    for (int i = 0; i < F::kWide; ++i) {
      const int out = place_.out + i * kOut;
      hopper::load_4d(hopper::shared_address(memory_.values[team_][slot][i]), from_.values,
                      full(slot), out, step * (kStep / 16), 0, blockIdx.y);
      hopper::load_2d(hopper::shared_address(memory_.masks[team_][slot][i]), from_.masks,
                      full(slot), out, blockIdx.y * (all_.k / 8) + step * (kStep / 8));
    }
    hopper::load_2d(hopper::shared_address(memory_.x[team_][slot]), all_.x, full(slot),
                    step * kStep, blockIdx.y * all_.rows + place_.row);
  }
  __device__ void wait(int slot, int phase) const { hopper::wait(full(slot), phase); }
  // Called by all warps of the team; the first thread then waits for the others, and copies.
  __device__ void refill(int slot, int phase, int step, int last) const {
    __syncwarp();
    if (F::kWide > 1 && threadIdx.x % 32 == 0) hopper::arrive(free(slot));
    if (leads() && step < last) {
      if (F::kWide > 1) hopper::wait(free(slot), phase);
      copy(slot, step);
    }
    __syncwarp();
  }
  static __device__ bool leads() { return threadIdx.x % (32 * F::kWide) == 0; }

 private:
  __device__ uint32_t full(int i) const {
    return hopper::shared_address(&memory_.is_full[team_][i]);
  }
  __device__ uint32_t free(int i) const {
    return hopper::shared_address(&memory_.is_free[team_][i]);
  }

  Memory<F>& memory_;
  const Products<T>& all_;
  const Weight<T>& from_;
  nm_few::Place place_;
  int team_;
};

// A block computes kBlockOut outputs of kRows rows. Each block of a cluster, and each team of
// warps, has its own part of k.
template <typename T, typename F>
__global__ __launch_bounds__(F::kThreads, 1) void product(
    const __grid_constant__ Products<T> all) {
  extern __shared__ __align__(1024) uint8_t shared[];
  auto& memory = *reinterpret_cast<Memory<F>*>(shared);
  const auto place = nm_few::Place::of(all.ends, all.row_tiles, F());
  nm_few::Problem<T, T> p = {};
  p.y = all.weights[place.weight].y, p.out = all.weights[place.weight].out;
  p.rows = all.rows, p.k = all.k, p.block_out = place.out, p.first_row = place.row;
  p.row = blockIdx.y * all.rows + place.row;
  const int warp = threadIdx.x / 32, team = warp / F::kWide, member = warp % F::kWide;
  const int steps = (p.k + kStep - 1) / kStep, last = (blockIdx.z + 1) * steps / F::kBlocks;
  int step = blockIdx.z * steps / F::kBlocks + team;
  const Ring<T, F> ring(memory, all, place);
  if (ring.leads()) {
    ring.init();
    for (int i = 0; i < kStages<F>; ++i) {
      if (step + i * F::kParts < last) ring.copy(i, step + i * F::kParts);
    }
  }
  __syncwarp();
  const nm_few::Sums<T, T, F> totals(memory.sums[0], sizeof memory.sums[0], memory.inbox, p);
  totals.begin();
  fill<F>(memory.table);
  const Lane lane;
  const uint32_t table = hopper::shared_address(&memory.table) + lane.table;
  float sums[kTiles][F::kRows / 8][4] = {};
  __syncthreads();  // barriers and table are there
  for (int slot = 0, phase = 0; step < last; step += F::kParts) {
    ring.wait(slot, phase);
    multiply<T, F>(sums, memory.values[team][slot][member], memory.masks[team][slot][member],
                   memory.x[team][slot], table, lane);
    ring.refill(slot, phase, step + kStages<F> * F::kParts, last);
    if (++slot == kStages<F>) slot = 0, phase ^= 1;
  }
  __syncthreads();  // the table has been read
  leave<F>(memory.sums[warp], sums);
  totals.add_up();
}

}  // namespace nm_expand
