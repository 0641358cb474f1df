// The launch of a kernel of nm_matmul_bytes.cuh.
#pragma once

#include <algorithm>

#include "launch.cuh"
#include "nm_call.cuh"
#include "nm_matmul_bytes.cuh"
#include "xla/ffi/api/ffi.h"

namespace nm_bytes {

namespace ffi = xla::ffi;
using nm_call::Call, nm_call::Operand, nm_call::tiles;

// Encodes a matrix of two axes, or a stack of matrices with three.
inline CUresult map_axes(int axes, launch::Encode encode, CUtensorMap* map,
                         CUtensorMapDataType type, int bytes, const void* data,
                         const uint64_t (&sizes)[3], uint32_t box_columns, uint32_t box_rows,
                         CUtensorMapSwizzle swizzle) {
  const uint64_t row = sizes[0] * bytes, strides[] = {row, row * sizes[1]};
  const uint32_t box[] = {box_columns, box_rows, 1}, steps[] = {1, 1, 1};
  return encode(map, type, axes, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Encodes bytes in row-major order that are moved in swizzled boxes of 128 columns.
inline CUresult map_bytes(int axes, launch::Encode encode, CUtensorMap* map, const void* data,
                          const uint64_t (&sizes)[3], uint32_t box_rows) {
  return map_axes(axes, encode, map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, data, sizes, 128, box_rows,
                  CU_TENSOR_MAP_SWIZZLE_128B);
}

template <typename X, typename F>
ffi::Error map(const Call& call, const Operand& weight, Maps* maps) {
  static const launch::Encode encode = launch::find_encode();
  if (!encode) return ffi::Error::Internal("the driver has no cuTensorMapEncodeTiled");
  static_assert(F::kOut == 128, "rows of boxes");
  constexpr auto kType = sizeof(X) == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                        : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  const uint64_t kept = weight.kept, index_rows = kept / 4, out = weight.out;
  const uint64_t n = call.matrices;
  // Rows of x may be longer than those of the weight, by zeros. Warps store boxes of 16 outputs.
  const bool mapped =
      !map_axes(2, encode, &maps->x, kType, sizeof(X), call.x, {call.k, n * call.rows},
                F::kPartDepth, F::kRows / F::kSharers, CU_TENSOR_MAP_SWIZZLE_128B) &&
      !map_bytes(3, encode, &maps->values, weight.values, {out, kept, n}, F::kDepth / 2) &&
      !map_bytes(2, encode, &maps->indices, weight.indices, {out, n * index_rows},
                 F::kDepth / 8) &&
      !map_axes(3, encode, &maps->y, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, weight.y,
                {out, call.rows, n}, 16, kBoxRows, CU_TENSOR_MAP_SWIZZLE_NONE);
  return mapped ? ffi::Error::Success()
                : ffi::Error::Internal("cuTensorMapEncodeTiled refused an array");
}

template <typename T, typename Lane, typename F>
ffi::Error launch_tiles(const Call& call) {
  Products products;
  products.count = call.count;
  const uint64_t k = 2 * call.weights[0].kept;
  Shape shape = {static_cast<int>(call.rows), tiles(k, F::kDepth), tiles(call.rows, F::kRows),
                 static_cast<int>(call.matrices), static_cast<int>(k / 8)};
  for (int i = 0; i < call.count; ++i) {
    const Operand& from = call.weights[i];
    Weight& weight = products.weights[i];
    weight.scales = from.scales, weight.out = static_cast<int>(from.out);
    shape.groups += tiles(from.out, F::kOut * F::kSharers);
    if (ffi::Error error = map<typename Lane::Row, F>(call, from, &weight.maps); error.failure()) {
      return error;
    }
  }
  constexpr auto kernel = product<T, Lane, F>;
  launch::Launch config = {dim3(F::kBlocks), dim3(F::kBlocks), kThreads, F::kBytes};
  int most = 0;
  RETURN_IF_CUDA_ERROR(launch::most_clusters<kernel>(call.device, config, &most));
  if (most < 1) return ffi::Error::Internal("the GPU has no room for a cluster");
  const int clusters = shape.groups * shape.row_tiles * shape.matrices;
  // A cluster of slices has one tile; others have as many as there are.
  config.grid = dim3(F::kBlocks * (F::kSlices > 1 ? clusters : std::min(most, clusters)));
  return launch::run<kernel>(call.stream, call.device, config, products, shape, call.row_scales);
}

// Launches small tiles, of which up to three blocks have slices each.
template <typename T, typename Lane, int kRows, int kParts, int kStages>
ffi::Error launch_sliced(const Call& call, int64_t slices) {
  return nm_call::with_blocks<1, 2, 3>(slices, [&](auto count) {
    using F = Form<typename Lane::Row, kRows, kParts, kStages, 1, count>;
    return launch_tiles<T, Lane, F>(call);
  });
}

}  // namespace nm_bytes
