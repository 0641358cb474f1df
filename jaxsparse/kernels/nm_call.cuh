// The operands of a matmul with compressed weights in an XLA FFI call, and few rows' launch.
#pragma once

#include <climits>
#include <cstdint>
#include <type_traits>

#include "launch.cuh"
#include "nm_few_form.cuh"
#include "xla/ffi/api/ffi.h"

namespace nm_call {

namespace ffi = xla::ffi;

constexpr int kMostWeights = nm_few::kMostWeights;

struct Operand {
  const void *values, *indices;
  const float* scales;  // or null
  void* y;
  uint64_t kept, out;  // of the values: rows of one matrix, and columns
};

struct Call {
  cudaStream_t stream;
  int device;
  const void* x;
  const float* row_scales;  // or null
  uint64_t matrices, rows, k;  // of a stack, or one; and the sizes of each
  int64_t blocks;
  ffi::DataType type;  // of the values
  int count;  // of the weights
  Operand weights[kMostWeights];
};

// Reads perhaps the scales of rows, then values, indices and perhaps scales of each weight. All of
// them, x and the products may have another first axis, of stacked matrices.
inline ffi::Error read(Call* call, ffi::AnyBuffer x, ffi::RemainingArgs arrays,
                       ffi::RemainingRets results, bool scaled, bool scaled_rows = false) {
  const auto sizes = x.dimensions();
  call->x = x.untyped_data(), call->rows = sizes[sizes.size() - 2], call->k = sizes.back();
  call->matrices = sizes.size() == 3 ? sizes[0] : 1;
  if (results.size() > kMostWeights) return ffi::Error::InvalidArgument("too many weights");
  call->count = static_cast<int>(results.size());
  size_t next = 0;
  if (scaled_rows) call->row_scales = arrays.get<ffi::Buffer<ffi::F32>>(next++)->typed_data();
  for (int i = 0; i < call->count; ++i) {
    Operand* weight = &call->weights[i];
    const ffi::AnyBuffer values = *arrays.get<ffi::AnyBuffer>(next++);
    weight->values = values.untyped_data(), call->type = values.element_type();
    const auto shape = values.dimensions();
    weight->kept = shape[shape.size() - 2], weight->out = shape.back();
    weight->indices = arrays.get<ffi::AnyBuffer>(next++)->untyped_data();
    if (scaled) weight->scales = arrays.get<ffi::Buffer<ffi::F32>>(next++)->typed_data();
    weight->y = (*results.get<ffi::AnyBuffer>(i))->untyped_data();
  }
  return ffi::Error::Success();
}

inline int tiles(uint64_t size, int tile) { return static_cast<int>((size + tile - 1) / tile); }

// Calls `launch` with the number of blocks as a compile-time constant.
template <int... kChoices, typename F>
ffi::Error with_blocks(int64_t blocks, F launch) {
  ffi::Error error = ffi::Error::InvalidArgument("no kernel for so many blocks");
  const auto perhaps = [&](auto choice) {
    if (blocks == choice) error = launch(choice);
  };
  (perhaps(std::integral_constant<int, kChoices>{}), ...);
  return error;
}

// Launches a kernel for few rows with `bytes` bytes of shared memory.
template <typename T, typename V, typename F, auto kernel>
ffi::Error launch_few(const Call& call, int bytes) {
  nm_few::Products<T, V> products = {{INT_MAX, INT_MAX, INT_MAX},
                                     tiles(call.rows, F::kRows),
                                     static_cast<int>(call.rows),
                                     static_cast<int>(call.k),
                                     static_cast<const T*>(call.x),
                                     call.row_scales};
  int out_tiles = 0;
  for (int i = 0; i < call.count; ++i) {
    const Operand& weight = call.weights[i];
    products.weights[i] = {static_cast<const V*>(weight.values),
                           static_cast<const uint8_t*>(weight.indices), weight.scales,
                           static_cast<T*>(weight.y), static_cast<int>(weight.out)};
    out_tiles += tiles(weight.out, F::kBlockOut);
    if (i < call.count - 1) products.ends[i] = out_tiles;
  }
  const dim3 grid(out_tiles * products.row_tiles, call.matrices, F::kBlocks);
  const launch::Launch launch = {grid, dim3(1, 1, F::kBlocks), F::kThreads, bytes};
  return launch::run<kernel>(call.stream, call.device, launch, products);
}

}  // namespace nm_call
