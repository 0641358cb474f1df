// A weight [k, out] to its 2:4 forms for both products, in one pass and without shared memory.
//
// Each thread has 8 x 8 weights in registers, so it has whole bytes of indices, and rows of 16
// bytes of values, along either axis. A warp has 32 x 64 weights: of whatever it reads or writes,
// neighbouring lanes have 64 bytes in a row, or 32 of indices.
#pragma once

#include <cstdint>

#include "kept_weights.cuh"
#include "mask_bits.cuh"
#include "packed_form.cuh"

namespace compress_both {

using mask_bits::Lines;

// Which weights are kept.
enum class Source {
  kAlongK,        // those of a mask packed along k
  kAlongOut,      // those of a mask packed along out
  kNonzero,       // those that are not zero
  kPacked,        // the same of a weight whose form along k is given, packed
  kMagnitude,     // the two largest of each group along k
  kBest,          // those of the best transposable mask, the first with rows along k
  kBestAlongOut,  // the same with rows along out
  kBestRelus,     // as kBest, of the ReLUs of what is given, but their squares are kept
};

constexpr int kThreads = 128, kWarpK = 32, kWarpOut = 64, kTileK = 64, kTileOut = 128;

template <typename V>
struct Form {  // null if it is not wanted
  V* values;
  uint8_t* indices;
};

template <typename W, typename V>
struct Problem {
  const W* w;           // [batch, k, out], or [k / 16, 9, out] if it is packed
  const uint8_t* mask;  // given, or null
  Form<V> along_k;      // values [batch, k / 2, out], indices [batch, k / 8, out]
  Form<V> along_out;    // the same of the transposed weight
  uint8_t* found;       // the best mask, packed along the axis of its rows, if it is searched
  V* kept;              // what it keeps, with zeros, or null
  uint32_t k, out;      // multiples of 8
};

template <typename V>
__device__ void store(V* row, const uint32_t (&words)[4]) {
  *reinterpret_cast<uint4*>(row) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Stores the slots of a thread, given as rows and as columns.
template <typename V>
__device__ void store_along_k(const Form<V>& form, const uint32_t (&w)[8][4], Lines slot_rows,
                              Lines slot_columns, size_t row, size_t column, size_t out) {
  V* values = form.values + row / 2 * out + column;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t first[4], second[4];
    const uint32_t rows = slot_rows.word[half];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const uint32_t left = mask_bits::column(rows, 2 * p);
      const uint32_t right = mask_bits::column(rows, 2 * p + 1);
      uint32_t has_slot[4], value[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        has_slot[i] = mask_bits::spread(left, right, i), value[i] = w[4 * half + i][p];
      }
      const auto choose = [](uint32_t which, uint32_t a, uint32_t b) {
        return (which & a) | (~which & b);
      };
      first[p] = choose(has_slot[0], value[0], choose(has_slot[1], value[1], value[2]));
      second[p] = choose(has_slot[3], value[3], choose(has_slot[2], value[2], value[1]));
    }
    store(values + 2 * half * out, first);
    store(values + (2 * half + 1) * out, second);
  }
  *reinterpret_cast<uint2*>(form.indices + row / 8 * out + column) =
      make_uint2(mask_bits::codes(slot_columns.word[0]), mask_bits::codes(slot_columns.word[1]));
}

// The same for the transposed weight.
template <typename V>
__device__ void store_along_out(const Form<V>& form, const uint32_t (&w)[8][4], Lines slot_rows,
                                size_t row, size_t column, size_t k) {
  const uint32_t codes[] = {mask_bits::codes(slot_rows.word[0]),
                            mask_bits::codes(slot_rows.word[1])};
  V* values = form.values + column / 2 * k + row;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const mask_bits::Selectors selectors[] = {mask_bits::Selectors(codes[0] >> 4 * half),
                                              mask_bits::Selectors(codes[1] >> 4 * half)};
    uint32_t both[8];  // slots of a row
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      both[i] = mask_bits::permute(w[i][2 * half], w[i][2 * half + 1], selectors[i / 4].of(i % 4));
    }
    uint32_t first[4], second[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      first[p] = mask_bits::permute(both[2 * p], both[2 * p + 1], 0x5410);
      second[p] = mask_bits::permute(both[2 * p], both[2 * p + 1], 0x7632);
    }
    store(values + 2 * half * k, first);
    store(values + (2 * half + 1) * k, second);
  }
  *reinterpret_cast<uint2*>(form.indices + column / 8 * k + row) = make_uint2(codes[0], codes[1]);
}

__device__ inline Lines load_columns(const uint8_t* mask, size_t row, size_t column, size_t out) {
  const uint2 bytes = __ldg(reinterpret_cast<const uint2*>(mask + row / 8 * out + column));
  return {{bytes.x, bytes.y}};
}

__device__ inline Lines load_rows(const uint8_t* mask, size_t row, size_t column, size_t out) {
  Lines rows = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t byte = __ldg(mask + (row + i) * (out / 8) + column / 8);
    rows.word[i / 4] |= byte << 8 * (i % 4);
  }
  return rows;
}

__device__ inline void store_columns(uint8_t* mask, Lines columns, size_t row, size_t column,
                                     size_t out) {
  *reinterpret_cast<uint2*>(mask + row / 8 * out + column) =
      make_uint2(columns.word[0], columns.word[1]);
}

__device__ inline void store_rows(uint8_t* mask, Lines rows, size_t row, size_t column,
                                  size_t out) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    mask[(row + i) * (out / 8) + column / 8] =
        static_cast<uint8_t>(rows.word[i / 4] >> 8 * (i % 4));
  }
}

// Stores what a mask keeps, and zeros.
template <typename V>
__device__ void store_kept(V* kept, const uint32_t (&w)[8][4], Lines rows, size_t row,
                           size_t column, size_t out) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    uint32_t words[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const uint32_t left = mask_bits::column(rows.word[i / 4], 2 * p);
      const uint32_t right = mask_bits::column(rows.word[i / 4], 2 * p + 1);
      words[p] = w[i][p] & mask_bits::spread(left, right, i % 4);
    }
    store(kept + (row + i) * out + column, words);
  }
}

template <typename W, typename F>
__device__ void map_weights(Weights<W>& weights, F function) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (uint32_t& pair : weights.row[i]) pair = map_pair<W>(pair, function);
  }
}

// The slots of all groups: of those along k by rows and by columns, of those along out by rows.
struct Slots {
  Lines rows, columns, rows_along_out;
};

// Returns the slots of a mask for which groups do not keep two, and makes pruned weights zero,
// because some of them have slots.
__device__ inline Slots find_slots(uint32_t (&w)[8][4], Lines rows, Lines columns) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const uint32_t left = mask_bits::column(rows.word[i / 4], 2 * p);
      const uint32_t right = mask_bits::column(rows.word[i / 4], 2 * p + 1);
      w[i][p] &= mask_bits::spread(left, right, i % 4);
    }
  }
  const Lines slot_columns = mask_bits::with_slots(columns);
  return {mask_bits::transpose(slot_columns), slot_columns, mask_bits::with_slots(rows)};
}

// The search takes many registers: more blocks at a time would keep some in memory.
constexpr int blocks_at_a_time(Source source) { return source < Source::kBest ? 0 : 4; }

template <typename W, typename V, Source source>
__global__ void __launch_bounds__(kThreads, blocks_at_a_time(source))
    compress(Problem<W, V> problem) {
  constexpr bool by_columns = source == Source::kAlongK || source == Source::kMagnitude ||
                              source == Source::kBestAlongOut;
  const size_t k = problem.k, out = problem.out, size = k * out, batch = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const size_t row = blockIdx.y * kTileK + warp / 2 * kWarpK + lane / 8 * 8;
  const size_t column = blockIdx.x * kTileOut + warp % 2 * kWarpOut + lane % 8 * 8;
  if (row >= k || column >= out) return;

  Weights<W> weights;
  if constexpr (source == Source::kPacked) {
    load_packed(weights, problem.w, row, column, out);
  } else {
    weights.load(problem.w + batch * size + row * out + column, out);
  }
  if constexpr (source == Source::kBestRelus) {
    map_weights(weights, [](float x) { return x <= 0 ? 0 : x; });  // NaN stays NaN
  }
  const uint8_t* mask = problem.mask + batch * (size / 8);
  uint8_t* found = problem.found + batch * (size / 8);
  Lines lines;
  if constexpr (source == Source::kAlongK) lines = load_columns(mask, row, column, out);
  if constexpr (source == Source::kAlongOut) lines = load_rows(mask, row, column, out);
  if constexpr (source == Source::kNonzero || source == Source::kPacked) {
    lines = nonzero_rows(weights);
  }
  if constexpr (source == Source::kMagnitude) lines = largest_columns(weights);
  if constexpr (source == Source::kBest || source == Source::kBestRelus) {
    lines = best_lines<false>(weights);
  }
  if constexpr (source == Source::kBestAlongOut) lines = best_lines<true>(weights);
  const Lines others = mask_bits::transpose(lines);
  const Lines rows = by_columns ? others : lines, columns = by_columns ? lines : others;
  if constexpr (source == Source::kBest || source == Source::kBestRelus) {
    store_columns(found, columns, row, column, out);
  }
  if constexpr (source == Source::kBestAlongOut) store_rows(found, rows, row, column, out);

  if constexpr (source == Source::kBestRelus) {
    map_weights(weights, [](float x) { return x * x; });
  }
  uint32_t w[8][4];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int p = 0; p < 4; ++p) w[i][p] = weights.template pair<V>(i, p);
  }
  if constexpr (source >= Source::kBest && std::is_same_v<W, V>) {
    if (problem.kept) store_kept(problem.kept + batch * size, w, rows, row, column, out);
  }
  Form<V> along_k = problem.along_k, along_out = problem.along_out;
  Slots slots = {rows, columns, rows};
  if constexpr (source < Source::kMagnitude) {
    const bool keeps_two = (!along_k.values || mask_bits::keeps_two(columns)) &&
                           (!along_out.values || mask_bits::keeps_two(rows));
    if (!keeps_two) slots = find_slots(w, rows, columns);
  }
  if (along_k.values) {
    along_k.values += batch * (size / 2), along_k.indices += batch * (size / 8);
    store_along_k(along_k, w, slots.rows, slots.columns, row, column, out);
  }
  if (along_out.values) {
    along_out.values += batch * (size / 2), along_out.indices += batch * (size / 8);
    store_along_out(along_out, w, slots.rows_along_out, row, column, k);
  }
}

}  // namespace compress_both
