// The matmuls of dense rows and 2:4 sparse weights, or of stacks of both, as an XLA FFI call.
#include <cuda_runtime.h>

#include <algorithm>
#include <string_view>
#include <type_traits>

#include "nm_call.cuh"
#include "nm_few_bytes.cuh"
#include "nm_few_rows.cuh"
#include "nm_matmul.cuh"
#include "tensor_maps.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using launch::Launch, launch::run;
using nm_call::Call, nm_call::Operand, nm_call::tiles, nm_call::with_blocks;

static_assert(nm_call::kMostWeights == nm_matmul::kMostWeights);

template <typename T, typename F, int kSharers>
ffi::Error map(const Call& call, const Operand& weight, nm_matmul::Maps* maps) {
  using nm_matmul::map_2d, nm_matmul::map_3d, nm_matmul::map_indices;
  static const launch::Encode encode = launch::find_encode();
  if (!encode) return ffi::Error::Internal("the driver has no cuTensorMapEncodeTiled");
  const auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const bool mapped =
      !map_2d(encode, &maps->x, type, call.x, call.k, call.matrices * call.rows,
              F::kRows / kSharers) &&
      !map_3d(encode, &maps->values, type, weight.values, weight.out, call.k / 2, call.matrices,
              32) &&
      !map_indices(encode, &maps->indices, weight.indices, weight.out,
                   call.matrices * call.k / 8, F::kOut, F::kDepth, F::kBox) &&
      !map_3d(encode, &maps->y, type, weight.y, weight.out, call.rows, call.matrices,
              nm_matmul::kStoreRows);
  return mapped ? ffi::Error::Success()
                : ffi::Error::Internal("cuTensorMapEncodeTiled refused an array");
}

template <typename T, typename F, int kSharers>
ffi::Error map_all(const Call& call, nm_matmul::Products* products, nm_matmul::Shape* shape) {
  products->count = call.count;
  *shape = {static_cast<int>(call.rows), tiles(call.k, F::kDepth), tiles(call.rows, F::kRows),
            static_cast<int>(call.matrices), static_cast<int>(call.k / 8)};
  for (int i = 0; i < call.count; ++i) {
    const Operand& from = call.weights[i];
    nm_matmul::Weight& weight = products->weights[i];
    weight.y = from.y, weight.out = static_cast<int>(from.out);
    shape->groups += tiles(from.out, F::kOut * kSharers);
    if (ffi::Error error = map<T, F, kSharers>(call, from, &weight.maps); error.failure()) {
      return error;
    }
  }
  return ffi::Error::Success();
}

template <typename T, typename V, typename F>
ffi::Error launch_few(const Call& call) {
  if constexpr (sizeof(V) == 1) {
    constexpr auto kernel = nm_few_bytes::product<T, V, F>;
    return nm_call::launch_few<T, V, F, kernel>(call, sizeof(nm_few_bytes::Memory<F>));
  } else {
    constexpr auto kernel = nm_few_rows::product<T, F>;
    return nm_call::launch_few<T, V, F, kernel>(call, sizeof(nm_few_rows::Memory<F>));
  }
}

template <typename T, typename F, int kBlocks>
ffi::Error launch_split(const Call& call) {
  nm_matmul::Products products;
  nm_matmul::Shape shape;
  if (ffi::Error error = map_all<T, F, 1>(call, &products, &shape); error.failure()) return error;
  const dim3 grid(shape.groups, shape.row_tiles, shape.matrices * kBlocks);
  const Launch launch = {grid, dim3(1, 1, kBlocks), nm_matmul::kThreads, F::bytes(0)};
  return run<nm_matmul::split<T, F, kBlocks>>(call.stream, call.device, launch, products, shape);
}

template <typename T, typename F, int kSharers>
ffi::Error launch_whole(const Call& call) {
  nm_matmul::Products products;
  nm_matmul::Shape shape;
  if (ffi::Error error = map_all<T, F, kSharers>(call, &products, &shape); error.failure()) {
    return error;
  }
  constexpr auto kernel = nm_matmul::whole<T, F, kSharers>;
  Launch launch = {dim3(kSharers), dim3(kSharers), nm_matmul::kThreads, F::bytes(F::kOutbox)};
  int most = 0;
  RETURN_IF_CUDA_ERROR(launch::most_clusters<kernel>(call.device, launch, &most));
  if (most < 1) return ffi::Error::Internal("the GPU has no room for a cluster of two blocks");
  const int clusters = shape.groups * shape.row_tiles * shape.matrices;
  launch.grid = dim3(kSharers * std::min(most, clusters));
  return run<kernel>(call.stream, call.device, launch, products, shape);
}

template <typename T, int kRows, int kWarps, int kWide, int... kChoices>
ffi::Error few_of_bytes(const Call& call) {
  return with_blocks<kChoices...>(call.blocks, [&](auto blocks) {
    using F = nm_few::Form<kRows, blocks, kWarps, kWide>;
    return call.type == ffi::S8 ? launch_few<T, int8_t, F>(call)
                                : launch_few<T, __nv_fp8_e4m3, F>(call);
  });
}

template <typename T, int kRows, int kWarps, int kWide, int... kChoices>
ffi::Error few_of_halves(const Call& call) {
  return with_blocks<kChoices...>(call.blocks, [&](auto blocks) {
    return launch_few<T, T, nm_few::Form<kRows, blocks, kWarps, kWide>>(call);
  });
}

template <typename T, int kRows>
ffi::Error few(const Call& call, int64_t warps, int64_t wide) {
  const bool bytes = call.type == ffi::S8 || call.type == ffi::F8E4M3FN;
  if (bytes) {
    return wide == 2 ? few_of_bytes<T, kRows, 8, 2, 1>(call)
                     : few_of_bytes<T, kRows, 8, 1, 1, 2, 4>(call);
  }
  if (warps == 16) return few_of_halves<T, kRows, 16, 1, 1, 2, 4>(call);
  return wide == 2 ? few_of_halves<T, kRows, 8, 2, 1>(call)
                   : few_of_halves<T, kRows, 8, 1, 1, 2>(call);
}

template <typename T, int kRows, int kOut, int kStages, int... kChoices>
ffi::Error split(const Call& call) {
  using F = nm_matmul::Form<kRows, kOut, kStages>;
  return with_blocks<kChoices...>(call.blocks,
                                  [&](auto blocks) { return launch_split<T, F, blocks>(call); });
}

template <typename T, int kRows, int kStages, int... kChoices>
ffi::Error whole(const Call& call) {
  using F = nm_matmul::Form<kRows, 128, kStages>;
  return with_blocks<kChoices...>(call.blocks,
                                  [&](auto blocks) { return launch_whole<T, F, blocks>(call); });
}

template <typename T>
ffi::Error choose(const Call& call, std::string_view kernel, int64_t tile_rows, int64_t warps,
                  int64_t wide) {
  if (kernel == "few") {
    switch (tile_rows) {
      case 8: return few<T, 8>(call, warps, wide);
      case 16: return few<T, 16>(call, warps, wide);
    }
  } else if (kernel == "split") {
    switch (tile_rows) {
      case 32: return split<T, 32, 64, 6, 1, 2, 3, 4>(call);
      case 64: return split<T, 64, 128, 6, 1, 2, 3, 4>(call);
      case 128: return split<T, 128, 128, 4, 1, 2, 3, 4>(call);
      case 256: return split<T, 256, 128, 5, 1, 2, 3>(call);
    }
  } else if (kernel == "whole") {
    switch (tile_rows) {
      case 128: return whole<T, 128, 8, 1>(call);
      case 256: return whole<T, 256, 5, 1, 2>(call);
    }
  }
  return ffi::Error::InvalidArgument("no kernel for so many rows");
}

ffi::Error product(cudaStream_t stream, int32_t device, ffi::AnyBuffer x,
                   ffi::RemainingArgs arrays, ffi::RemainingRets results,
                   std::string_view kernel, int64_t tile_rows, int64_t blocks, int64_t warps,
                   int64_t wide, bool scaled, bool scaled_rows) {
  Call call = {stream, device};
  call.blocks = blocks;
  if (ffi::Error error = nm_call::read(&call, x, arrays, results, scaled, scaled_rows);
      error.failure()) {
    return error;
  }
  if (scaled && kernel != "few") {
    return ffi::Error::InvalidArgument("no kernel for so many rows with scales");
  }
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  return x.element_type() == ffi::BF16 ? choose<__nv_bfloat16>(call, kernel, tile_rows, warps, wide)
                                       : choose<__half>(call, kernel, tile_rows, warps, wide);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_nm_matmul, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<ffi::DeviceOrdinal>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .RemainingArgs()  // perhaps scales of rows; values, indices,
                                                    // perhaps scales of each
                                  .RemainingRets()  // one product for each weight
                                  .Attr<std::string_view>("kernel")
                                  .Attr<int64_t>("tile_rows")
                                  .Attr<int64_t>("blocks")
                                  .Attr<int64_t>("warps")
                                  .Attr<int64_t>("wide")
                                  .Attr<bool>("scaled")
                                  .Attr<bool>("scaled_rows"),
                              {ffi::Traits::kCmdBufferCompatible});
