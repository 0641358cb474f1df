// How TMA moves the arrays of nm_matmul.cuh.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "launch.cuh"

namespace nm_matmul {

using launch::Encode;

// Encodes a matrix in row-major order that is moved in boxes with rows of 128 bytes.
inline CUresult map_2d(Encode encode, CUtensorMap* map, CUtensorMapDataType type,
                       const void* data, uint64_t columns, uint64_t rows, uint32_t box_rows) {
  const uint64_t sizes[] = {columns, rows}, strides[] = {columns * 2};
  const uint32_t box[] = {64, box_rows}, steps[] = {1, 1};
  return encode(map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Encodes a stack of such matrices.
inline CUresult map_3d(Encode encode, CUtensorMap* map, CUtensorMapDataType type,
                       const void* data, uint64_t columns, uint64_t rows, uint64_t matrices,
                       uint32_t box_rows) {
  const uint64_t sizes[] = {columns, rows, matrices}, strides[] = {columns * 2, columns * rows * 2};
  const uint32_t box[] = {64, box_rows, 1}, steps[] = {1, 1, 1};
  return encode(map, type, 3, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Encodes the indices, a matrix too. If boxes are narrower than a tile, several move at once.
inline CUresult map_indices(Encode encode, CUtensorMap* map, const void* data, uint64_t out,
                            uint64_t bytes, uint32_t tile_out, uint32_t depth, uint32_t width) {
  const bool one_box = width == tile_out;
  const uint64_t sizes[] = {one_box ? out : width, bytes, out / width}, strides[] = {out, width};
  const uint32_t box[] = {width, depth / 8, tile_out / width}, steps[] = {1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, one_box ? 2 : 3, const_cast<void*>(data),
                sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace nm_matmul
