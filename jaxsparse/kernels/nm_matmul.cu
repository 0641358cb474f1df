// The product of dense rows and a 2:4 sparse weight, for XLA.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <type_traits>

#include "nm_matmul.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#define RETURN_IF_CUDA_ERROR(call)                                                     \
  if (const cudaError_t error = (call); error != cudaSuccess) {                        \
    return ffi::Error::Internal(std::string(#call ": ") + cudaGetErrorString(error));  \
  }

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                   &result);
  return reinterpret_cast<Encode>(found);
}

// A matrix in row-major order, of which boxes of 128-byte rows are moved.
CUresult map_2d(Encode encode, CUtensorMap* map, CUtensorMapDataType type, const void* data,
                uint64_t columns, uint64_t rows, uint32_t box_rows) {
  const uint64_t sizes[] = {columns, rows}, strides[] = {columns * 2};
  const uint32_t box[] = {64, box_rows}, steps[] = {1, 1};
  return encode(map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

// Indices, a matrix too. Of boxes that are narrower than a tile, several are moved at once.
CUresult map_indices(Encode encode, CUtensorMap* map, const void* data, uint64_t out,
                     uint64_t bytes, uint32_t tile_out, uint32_t depth, uint32_t width) {
  const bool one_box = width == tile_out;
  const uint64_t sizes[] = {one_box ? out : width, bytes, out / width}, strides[] = {out, width};
  const uint32_t box[] = {width, depth / 8, tile_out / width}, steps[] = {1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, one_box ? 2 : 3, const_cast<void*>(data),
                sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

struct Call {
  cudaStream_t stream;
  int device;
  const void *x, *values, *indices;
  void* y;
  uint64_t rows, k, out;
  int64_t blocks;
};

int tiles(uint64_t size, int tile) { return static_cast<int>((size + tile - 1) / tile); }

template <typename T, typename F>
ffi::Error map(const Call& call, nm_matmul::Maps* maps, nm_matmul::Shape* shape) {
  static const Encode encode = find_encode();
  if (!encode) return ffi::Error::Internal("the driver has no cuTensorMapEncodeTiled");
  const auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const bool mapped =
      !map_2d(encode, &maps->x, type, call.x, call.k, call.rows, F::kRows) &&
      !map_2d(encode, &maps->values, type, call.values, call.out, call.k / 2, 32) &&
      !map_indices(encode, &maps->indices, call.indices, call.out, call.k / 8, F::kOut,
                   F::kDepth, F::kBox) &&
      !map_2d(encode, &maps->y, type, call.y, call.out, call.rows, nm_matmul::kStoreRows);
  if (!mapped) return ffi::Error::Internal("cuTensorMapEncodeTiled refused an array");
  *shape = {static_cast<int>(call.rows), static_cast<int>(call.out), tiles(call.k, F::kDepth),
            tiles(call.out, F::kOut), tiles(call.rows, F::kRows)};
  return ffi::Error::Success();
}

template <auto kernel, typename... Args>
ffi::Error launch(const Call& call, dim3 grid, int bytes, unsigned blocks, Args... args) {
  static std::atomic<uint64_t> ready{0};  // one bit for each device
  if (const uint64_t mine = uint64_t{1} << call.device % 64; !(ready & mine)) {
    RETURN_IF_CUDA_ERROR(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    ready |= mine;
  }
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {1, 1, blocks};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(nm_matmul::kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = call.stream;
  config.attrs = &cluster;  // also of one block: without a cluster its barriers are illegal
  config.numAttrs = 1;
  RETURN_IF_CUDA_ERROR(cudaLaunchKernelEx(&config, kernel, args...));
  return ffi::Error::Success();
}

template <typename T, typename F, int kBlocks>
ffi::Error launch_split(const Call& call) {
  nm_matmul::Maps maps;
  nm_matmul::Shape shape;
  if (ffi::Error error = map<T, F>(call, &maps, &shape); error.failure()) return error;
  const dim3 grid(shape.out_tiles, shape.row_tiles, kBlocks);
  return launch<nm_matmul::split<T, F, kBlocks>>(call, grid, F::bytes(0), kBlocks, maps, shape,
                                                 static_cast<T*>(call.y));
}

template <typename T, typename F>
ffi::Error launch_blocks(const Call& call) {
  switch (call.blocks) {
    case 1: return launch_split<T, F, 1>(call);
    case 2: return launch_split<T, F, 2>(call);
    case 4: return launch_split<T, F, 4>(call);
  }
  return ffi::Error::InvalidArgument("no kernel for so many blocks a tile");
}

template <typename T, typename F>
ffi::Error launch_whole(const Call& call) {
  nm_matmul::Maps maps;
  nm_matmul::Shape shape;
  if (ffi::Error error = map<T, F>(call, &maps, &shape); error.failure()) return error;
  int processors = 0;
  RETURN_IF_CUDA_ERROR(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, call.device));
  const dim3 grid(std::min(processors, shape.out_tiles * shape.row_tiles));
  return launch<nm_matmul::whole<T, F>>(call, grid, F::bytes(F::kOutbox), 1, maps, shape);
}

template <typename T>
ffi::Error choose(const Call& call, int64_t tile_rows, int64_t tile_out) {
  using nm_matmul::Form;
  if (call.blocks > 0 && tile_out == 64) {
    switch (tile_rows) {
      case 8: return launch_blocks<T, Form<8, 64, 9>>(call);
      case 16: return launch_blocks<T, Form<16, 64, 8>>(call);
      case 32: return launch_blocks<T, Form<32, 64, 6>>(call);
    }
  } else if (call.blocks > 0) {
    switch (tile_rows) {
      case 64: return launch_blocks<T, Form<64, 128, 6>>(call);
      case 128: return launch_blocks<T, Form<128, 128, 4>>(call);
      case 256: return launch_blocks<T, Form<256, 128, 5>>(call);
    }
  } else {
    switch (tile_rows) {
      case 128: return launch_whole<T, Form<128, 128, 8>>(call);
      case 256: return launch_whole<T, Form<256, 128, 5>>(call);
    }
  }
  return ffi::Error::InvalidArgument("no kernel for tiles of " + std::to_string(tile_rows));
}

ffi::Error product(cudaStream_t stream, int32_t device, ffi::AnyBuffer x, ffi::AnyBuffer values,
                   ffi::AnyBuffer indices, ffi::Result<ffi::AnyBuffer> y, int64_t tile_rows,
                   int64_t tile_out, int64_t blocks) {
  Call call = {stream, device, x.untyped_data(), values.untyped_data(), indices.untyped_data(),
               y->untyped_data()};
  call.rows = x.dimensions()[0], call.k = x.dimensions()[1], call.out = values.dimensions()[1];
  call.blocks = blocks;
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  return x.element_type() == ffi::BF16 ? choose<__nv_bfloat16>(call, tile_rows, tile_out)
                                       : choose<__half>(call, tile_rows, tile_out);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_nm_matmul, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<ffi::DeviceOrdinal>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // values
                                  .Arg<ffi::AnyBuffer>()  // indices
                                  .Ret<ffi::AnyBuffer>()  // y
                                  .Attr<int64_t>("tile_rows")
                                  .Attr<int64_t>("tile_out")
                                  .Attr<int64_t>("blocks"),
                              {ffi::Traits::kCmdBufferCompatible});
