// The matmuls of dense rows and 2:4 sparse weights, all of eight bits, as an XLA FFI call.
#include <algorithm>

#include "launch.cuh"
#include "nm_call.cuh"
#include "nm_matmul_bytes.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using nm_call::Call, nm_call::Operand, nm_call::tiles;

CUresult map_2d(launch::Encode encode, CUtensorMap* map, CUtensorMapDataType type, int bytes,
                const void* data, uint64_t columns, uint64_t rows, uint32_t box_columns,
                uint32_t box_rows, CUtensorMapSwizzle swizzle) {
  const uint64_t sizes[] = {columns, rows}, strides[] = {columns * bytes};
  const uint32_t box[] = {box_columns, box_rows}, steps[] = {1, 1};
  return encode(map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Encodes a matrix of bytes in row-major order that is moved in swizzled boxes of 128 columns.
CUresult map_bytes(launch::Encode encode, CUtensorMap* map, const void* data, uint64_t columns,
                   uint64_t rows, uint32_t box_rows) {
  return map_2d(encode, map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, data, columns, rows, 128, box_rows,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

// Encodes the result, which warps store in boxes of their 16 outputs.
CUresult map_result(launch::Encode encode, CUtensorMap* map, const void* data, uint64_t out,
                    uint64_t rows) {
  return map_2d(encode, map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, data, out, rows, 16,
                nm_bytes::kBoxRows, CU_TENSOR_MAP_SWIZZLE_NONE);
}

template <typename F>
ffi::Error map(const Call& call, const Operand& weight, nm_bytes::Maps* maps) {
  static const launch::Encode encode = launch::find_encode();
  if (!encode) return ffi::Error::Internal("the driver has no cuTensorMapEncodeTiled");
  static_assert(F::kDepth == 128 && F::kOut == 128, "rows of boxes");
  const uint64_t k = weight.kept * 2;  // rows of x may be longer, by zeros
  const bool mapped =
      !map_bytes(encode, &maps->x, call.x, call.k, call.rows, F::kRows / F::kSharers) &&
      !map_bytes(encode, &maps->values, weight.values, weight.out, k / 2, F::kDepth / 2) &&
      !map_bytes(encode, &maps->indices, weight.indices, weight.out, k / 8, F::kDepth / 8) &&
      !map_result(encode, &maps->y, weight.y, weight.out, call.rows);
  return mapped ? ffi::Error::Success()
                : ffi::Error::Internal("cuTensorMapEncodeTiled refused an array");
}

template <typename T, typename V, typename F>
ffi::Error launch_tiles(const Call& call) {
  nm_bytes::Products products;
  products.count = call.count;
  nm_bytes::Shape shape = {static_cast<int>(call.rows), tiles(2 * call.weights[0].kept, F::kDepth),
                           tiles(call.rows, F::kRows), 1};
  for (int i = 0; i < call.count; ++i) {
    const Operand& from = call.weights[i];
    nm_bytes::Weight& weight = products.weights[i];
    weight.scales = from.scales, weight.out = static_cast<int>(from.out);
    shape.groups += tiles(from.out, F::kOut * F::kSharers);
    if (ffi::Error error = map<F>(call, from, &weight.maps); error.failure()) return error;
  }
  constexpr auto kernel = nm_bytes::product<T, V, F>;
  launch::Launch config = {dim3(F::kBlocks), dim3(F::kBlocks), nm_bytes::kThreads, F::kBytes};
  int most = 0;
  RETURN_IF_CUDA_ERROR(launch::most_clusters<kernel>(call.device, config, &most));
  if (most < 1) return ffi::Error::Internal("the GPU has no room for a cluster");
  const int clusters = shape.groups * shape.row_tiles;
  // A cluster of slices has one tile; others have as many as there are.
  config.grid = dim3(F::kBlocks * (F::kSlices > 1 ? clusters : std::min(most, clusters)));
  return launch::run<kernel>(call.stream, call.device, config, products, shape, call.row_scales);
}

template <typename T, typename V>
ffi::Error choose(const Call& call, int64_t tile_rows, int64_t blocks) {
  using nm_bytes::Form;
  switch (tile_rows + blocks) {
    case 32 + 1: return launch_tiles<T, V, Form<32, 14, 1>>(call);
    case 32 + 2: return launch_tiles<T, V, Form<32, 14, 1, 2>>(call);
    case 32 + 3: return launch_tiles<T, V, Form<32, 14, 1, 3>>(call);
    case 32 + 4: return launch_tiles<T, V, Form<32, 14, 1, 4>>(call);
    case 64 + 1: return launch_tiles<T, V, Form<64, 11, 1>>(call);
    case 64 + 2: return launch_tiles<T, V, Form<64, 11, 1, 2>>(call);
    case 64 + 3: return launch_tiles<T, V, Form<64, 11, 1, 3>>(call);
    case 64 + 4: return launch_tiles<T, V, Form<64, 11, 1, 4>>(call);
    case 128 + 1: return launch_tiles<T, V, Form<128, 8, 1>>(call);
    case 256 + 1: return launch_tiles<T, V, Form<256, 5, 1>>(call);
    case 256 + 2: return launch_tiles<T, V, Form<256, 5, 2>>(call);
  }
  return ffi::Error::InvalidArgument("no kernel for so many rows");
}

template <typename T>
ffi::Error choose(const Call& call, int64_t tile_rows, int64_t blocks) {
  return call.type == ffi::S8 ? choose<T, int8_t>(call, tile_rows, blocks)
                              : choose<T, __nv_fp8_e4m3>(call, tile_rows, blocks);
}

ffi::Error product(cudaStream_t stream, int32_t device, ffi::AnyBuffer x,
                   ffi::RemainingArgs arrays, ffi::RemainingRets results, int64_t tile_rows,
                   int64_t blocks) {
  Call call = {stream, device};
  if (ffi::Error error = nm_call::read(&call, x, arrays, results, true, true); error.failure()) {
    return error;
  }
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  const ffi::DataType type = (*results.get<ffi::AnyBuffer>(0))->element_type();
  return type == ffi::BF16 ? choose<__nv_bfloat16>(call, tile_rows, blocks)
                           : choose<__half>(call, tile_rows, blocks);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_nm_matmul_bytes, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<ffi::DeviceOrdinal>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .RemainingArgs()  // scales of rows; values, indices and scales
                                                    // of each weight
                                  .RemainingRets()  // one product for each weight
                                  .Attr<int64_t>("tile_rows")
                                  .Attr<int64_t>("blocks"),
                              {ffi::Traits::kCmdBufferCompatible});
