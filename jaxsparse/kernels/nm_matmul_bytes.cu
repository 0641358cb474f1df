// The matmuls of dense rows and 2:4 sparse weights, or of stacks of both, all of eight bits, as an
// XLA FFI call.
#include "bytes_fragments.cuh"
#include "nm_bytes_launch.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using nm_call::Call;

template <typename T, typename V>
ffi::Error choose(const Call& call, int64_t tile_rows, int64_t sharers, int64_t slices) {
  using Lane = nm_bytes::BytesLane<V>;
  using nm_bytes::Form, nm_bytes::launch_tiles, nm_bytes::launch_sliced;
  switch (tile_rows) {
    case 32: return launch_sliced<T, Lane, 32, 1, 14>(call, slices);
    case 64: return launch_sliced<T, Lane, 64, 1, 11>(call, slices);
    case 128: return launch_sliced<T, Lane, 128, 1, 8>(call, slices);
    case 256:
      return sharers == 2 ? launch_tiles<T, Lane, Form<V, 256, 1, 5, 2>>(call)
                          : launch_tiles<T, Lane, Form<V, 256, 1, 5>>(call);
  }
  return ffi::Error::InvalidArgument("no kernel for so many rows");
}

template <typename T>
ffi::Error choose(const Call& call, int64_t tile_rows, int64_t sharers, int64_t slices) {
  return call.type == ffi::S8 ? choose<T, int8_t>(call, tile_rows, sharers, slices)
                              : choose<T, __nv_fp8_e4m3>(call, tile_rows, sharers, slices);
}

ffi::Error product(cudaStream_t stream, int32_t device, ffi::AnyBuffer x,
                   ffi::RemainingArgs arrays, ffi::RemainingRets results, int64_t tile_rows,
                   int64_t sharers, int64_t slices) {
  Call call = {stream, device};
  if (ffi::Error error = nm_call::read(&call, x, arrays, results, true, true); error.failure()) {
    return error;
  }
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  const ffi::DataType type = (*results.get<ffi::AnyBuffer>(0))->element_type();
  return type == ffi::BF16 ? choose<__nv_bfloat16>(call, tile_rows, sharers, slices)
                           : choose<__half>(call, tile_rows, sharers, slices);
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
                                  .Attr<int64_t>("sharers")
                                  .Attr<int64_t>("slices"),
                              {ffi::Traits::kCmdBufferCompatible});
