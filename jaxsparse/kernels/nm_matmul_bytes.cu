// The matmuls of dense rows and 2:4 sparse weights, or of stacks of both, all of eight bits, as an
// XLA FFI call.
#include <algorithm>

#include "launch.cuh"
#include "nm_call.cuh"
#include "nm_matmul_bytes.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using nm_call::Call, nm_call::Operand, nm_call::tiles;

// Encodes a matrix of two axes, or a stack of matrices with three.
CUresult map_axes(int axes, launch::Encode encode, CUtensorMap* map, CUtensorMapDataType type,
                  int bytes, const void* data, const uint64_t (&sizes)[3], uint32_t box_columns,
                  uint32_t box_rows, CUtensorMapSwizzle swizzle) {
  const uint64_t row = sizes[0] * bytes, strides[] = {row, row * sizes[1]};
  const uint32_t box[] = {box_columns, box_rows, 1}, steps[] = {1, 1, 1};
  return encode(map, type, axes, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Encodes bytes in row-major order that are moved in swizzled boxes of 128 columns.
CUresult map_bytes(int axes, launch::Encode encode, CUtensorMap* map, const void* data,
                   const uint64_t (&sizes)[3], uint32_t box_rows) {
  return map_axes(axes, encode, map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, data, sizes, 128, box_rows,
                  CU_TENSOR_MAP_SWIZZLE_128B);
}

template <typename F>
ffi::Error map(const Call& call, const Operand& weight, nm_bytes::Maps* maps) {
  static const launch::Encode encode = launch::find_encode();
  if (!encode) return ffi::Error::Internal("the driver has no cuTensorMapEncodeTiled");
  static_assert(F::kDepth == 128 && F::kOut == 128, "rows of boxes");
  const uint64_t kept = weight.kept, index_rows = kept / 4, out = weight.out;
  const uint64_t n = call.matrices;
  // Rows of x may be longer than those of the weight, by zeros. Warps store boxes of 16 outputs.
  const bool mapped =
      !map_bytes(2, encode, &maps->x, call.x, {call.k, n * call.rows}, F::kRows / F::kSharers) &&
      !map_bytes(3, encode, &maps->values, weight.values, {out, kept, n}, F::kDepth / 2) &&
      !map_bytes(2, encode, &maps->indices, weight.indices, {out, n * index_rows},
                 F::kDepth / 8) &&
      !map_axes(3, encode, &maps->y, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, weight.y,
                {out, call.rows, n}, 16, nm_bytes::kBoxRows, CU_TENSOR_MAP_SWIZZLE_NONE);
  return mapped ? ffi::Error::Success()
                : ffi::Error::Internal("cuTensorMapEncodeTiled refused an array");
}

template <typename T, typename V, typename F>
ffi::Error launch_tiles(const Call& call) {
  nm_bytes::Products products;
  products.count = call.count;
  const uint64_t k = 2 * call.weights[0].kept;
  nm_bytes::Shape shape = {static_cast<int>(call.rows), tiles(k, F::kDepth),
                           tiles(call.rows, F::kRows), static_cast<int>(call.matrices),
                           static_cast<int>(k / 8)};
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
  const int clusters = shape.groups * shape.row_tiles * shape.matrices;
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
