// The matmul of few dense rows and a 4:8 or 8:16 sparse weight, as an XLA FFI call.
#include <cuda_runtime.h>

#include <atomic>
#include <string>

#include "nm_expand.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#define RETURN_IF_CUDA_ERROR(call)                                                     \
  if (const cudaError_t error = (call); error != cudaSuccess) {                        \
    return ffi::Error::Internal(std::string(#call ": ") + cudaGetErrorString(error));  \
  }

struct Call {
  cudaStream_t stream;
  int device;
  const void *x, *values, *masks;
  void* y;
  int64_t rows, k, out, blocks;
};

template <typename T, int kRows, int kTiles, int kBlocks, int kResident>
ffi::Error launch(const Call& call) {
  using F = nm_expand::Form<kRows, kTiles, kBlocks, kResident>;
  constexpr auto kernel = nm_expand::product<T, F>;
  constexpr int bytes = sizeof(nm_expand::Memory<F>);
  static_assert(bytes <= F::kBytes);
  static std::atomic<uint64_t> allowed{0};  // one bit per device
  const uint64_t mine = uint64_t{1} << call.device % 64;
  if (!(allowed & mine)) {
    RETURN_IF_CUDA_ERROR(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    allowed |= mine;
  }
  const nm_expand::Problem<T> problem = {
      static_cast<const T*>(call.x),     static_cast<const T*>(call.values),
      static_cast<const uint8_t*>(call.masks), static_cast<T*>(call.y),
      static_cast<int>(call.rows),       static_cast<int>(call.k),
      static_cast<int>(call.out)};
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {1, 1, kBlocks};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((call.rows + kRows - 1) / kRows, (call.out + F::kOut - 1) / F::kOut,
                        kBlocks);
  config.blockDim = dim3(nm_expand::kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = call.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  RETURN_IF_CUDA_ERROR(cudaLaunchKernelEx(&config, kernel, problem));
  return ffi::Error::Success();
}

template <typename T, int kRows, int kTiles, int kResident>
ffi::Error with_blocks(const Call& call) {
  switch (call.blocks) {
    case 1: return launch<T, kRows, kTiles, 1, kResident>(call);
    case 2: return launch<T, kRows, kTiles, 2, kResident>(call);
    case 4: return launch<T, kRows, kTiles, 4, kResident>(call);
    case 8: return launch<T, kRows, kTiles, 8, kResident>(call);
    default: return ffi::Error::InvalidArgument("no kernel for so many blocks");
  }
}

template <typename T>
ffi::Error choose(const Call& call, int64_t form) {
  switch (form) {
    case 8: return with_blocks<T, 8, 1, 2>(call);
    case 16: return with_blocks<T, 16, 1, 2>(call);
    case 32: return with_blocks<T, 32, 1, 2>(call);
    case 64: return with_blocks<T, 64, 1, 2>(call);
    case 1008: return with_blocks<T, 8, 2, 1>(call);
    case 1016: return with_blocks<T, 16, 2, 1>(call);
    case 1032: return with_blocks<T, 32, 2, 1>(call);
    case 1064: return with_blocks<T, 64, 2, 1>(call);
    default: return ffi::Error::InvalidArgument("no kernel for so many rows");
  }
}

ffi::Error product(cudaStream_t stream, int32_t device, ffi::AnyBuffer x, ffi::AnyBuffer values,
                   ffi::AnyBuffer masks, ffi::Result<ffi::AnyBuffer> y, int64_t tile_rows,
                   int64_t blocks) {
  const Call call = {stream,
                     device,
                     x.untyped_data(),
                     values.untyped_data(),
                     masks.untyped_data(),
                     y->untyped_data(),
                     x.dimensions()[0],
                     x.dimensions()[1],
                     values.dimensions()[1],
                     blocks};
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  return x.element_type() == ffi::BF16 ? choose<__nv_bfloat16>(call, tile_rows)
                                       : choose<__half>(call, tile_rows);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_nm_expand, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<ffi::DeviceOrdinal>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // values
                                  .Arg<ffi::AnyBuffer>()  // masks
                                  .Ret<ffi::AnyBuffer>()  // y
                                  .Attr<int64_t>("tile_rows")
                                  .Attr<int64_t>("blocks"),
                              {ffi::Traits::kCmdBufferCompatible});
