// The matmul of few dense rows and a 4:8 or 8:16 sparse weight, as an XLA FFI call.
#include <cuda_runtime.h>

#include <type_traits>

#include "launch.cuh"
#include "nm_expand.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// Encodes an array of two or three axes, the fastest first, that is moved in boxes with rows of 128
// bytes, which are swizzled. The strides are those of all axes but the first, in bytes.
template <int kAxes>
bool encode(CUtensorMap* map, CUtensorMapDataType type, const void* data,
            const uint64_t (&sizes)[kAxes], const uint64_t (&strides)[kAxes - 1],
            const uint32_t (&box)[kAxes]) {
  static const launch::Encode encode = launch::find_encode();
  const uint32_t steps[] = {1, 1, 1};
  return encode && !encode(map, type, kAxes, const_cast<void*>(data), sizes, strides, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

struct Call {
  cudaStream_t stream;
  int device;
  const void *x, *values, *masks;
  void* y;
  uint64_t rows, k, out;
  int64_t blocks;
};

template <typename T, typename F>
bool map(const Call& call, nm_expand::Maps* maps) {
  const auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  constexpr uint32_t kStep = nm_expand::kStep, kGroup = 16;
  const uint64_t k = call.k, out = call.out, row = out * sizeof(T);
  return encode<2>(&maps->x, type, call.x, {k, call.rows}, {k * sizeof(T)}, {kStep, F::kRows}) &&
         encode<3>(&maps->values, type, call.values, {out, k / kGroup, 8}, {8 * row, row},
                   {64, kStep / kGroup, 8}) &&
         encode<2>(&maps->masks, CU_TENSOR_MAP_DATA_TYPE_UINT8, call.masks, {out, k / 8}, {out},
                   {128, kStep / 8});
}

template <typename T, int kRows, int kTiles, int kBlocks, int kResident>
ffi::Error run(const Call& call) {
  using F = nm_expand::Form<kRows, kTiles, kBlocks, kResident>;
  constexpr int kBytes = sizeof(nm_expand::Memory<F>);
  static_assert(kBytes <= F::kBytes && nm_expand::kStages<F> > 1);
  nm_expand::Maps maps;
  if (!map<T, F>(call, &maps)) return ffi::Error::Internal("the driver encodes no tensor map");
  const nm_expand::Problem<T> problem = {static_cast<T*>(call.y), static_cast<int>(call.rows),
                                         static_cast<int>(call.k), static_cast<int>(call.out)};
  const auto tiles = [](uint64_t size, int tile) {
    return static_cast<unsigned>((size + tile - 1) / tile);
  };
  const dim3 grid(tiles(call.rows, kRows) * tiles(call.out, F::kOut), 1, kBlocks);
  const launch::Launch launch = {grid, dim3(1, 1, kBlocks), nm_expand::kThreads, kBytes};
  return launch::run<nm_expand::product<T, F>>(call.stream, call.device, launch, maps, problem);
}

template <typename T, int kRows, int kTiles, int kResident>
ffi::Error with_blocks(const Call& call) {
  switch (call.blocks) {
    case 1: return run<T, kRows, kTiles, 1, kResident>(call);
    case 2: return run<T, kRows, kTiles, 2, kResident>(call);
    case 4: return run<T, kRows, kTiles, 4, kResident>(call);
    case 8: return run<T, kRows, kTiles, 8, kResident>(call);
    default: return ffi::Error::InvalidArgument("no kernel for so many blocks");
  }
}

template <typename T>
ffi::Error choose(const Call& call, int64_t tile_rows) {
  switch (tile_rows) {
    case 8: return with_blocks<T, 8, 1, 3>(call);
    case 16: return with_blocks<T, 16, 1, 3>(call);
    case 32: return with_blocks<T, 32, 2, 2>(call);
    case 64: return with_blocks<T, 64, 2, 1>(call);
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
                     static_cast<uint64_t>(x.dimensions()[0]),
                     static_cast<uint64_t>(x.dimensions()[1]),
                     static_cast<uint64_t>(values.dimensions()[1]),
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
