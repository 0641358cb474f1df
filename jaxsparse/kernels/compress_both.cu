// A weight, or a stack of weights, to its 2:4 forms, as an XLA FFI call.
#include <cuda_runtime.h>

#include <string>
#include <string_view>

#include "compress_both.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using compress_both::Source;

// The arrays of a call, of which only some may be there.
struct Call {
  cudaStream_t stream;
  const void* w;
  const void* mask;
  void *values_along_k, *indices_along_k, *values_along_out, *indices_along_out, *found, *kept;
  uint32_t batch, k, out;
};

template <Source source, typename W, typename V>
ffi::Error launch(const Call& call) {
  using namespace compress_both;
  const Problem<W, V> problem = {
      static_cast<const W*>(call.w),
      static_cast<const uint8_t*>(call.mask),
      {static_cast<V*>(call.values_along_k), static_cast<uint8_t*>(call.indices_along_k)},
      {static_cast<V*>(call.values_along_out), static_cast<uint8_t*>(call.indices_along_out)},
      static_cast<uint8_t*>(call.found),
      static_cast<V*>(call.kept),
      call.k,
      call.out};
  const auto tiles = [](uint32_t size, int tile) { return (size + tile - 1) / tile; };
  const dim3 grid(tiles(call.out, kTileOut), tiles(call.k, kTileK), call.batch);
  compress<W, V, source><<<grid, kThreads, 0, call.stream>>>(problem);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return ffi::Error::Internal(cudaGetErrorString(error));
  return ffi::Error::Success();
}

template <Source source>
ffi::Error by_dtypes(const Call& call, ffi::DataType w, ffi::DataType values) {
  if (w == ffi::BF16 && values == w) return launch<source, __nv_bfloat16, __nv_bfloat16>(call);
  if (w == ffi::F16 && values == w) return launch<source, __half, __half>(call);
  constexpr bool narrow = source == Source::kMagnitude || source == Source::kPacked ||
                          source == Source::kBestRelus;
  if constexpr (!narrow) {
    if (w == ffi::F32 && values == ffi::BF16) return launch<source, float, __nv_bfloat16>(call);
    if (w == ffi::F32 && values == ffi::F16) return launch<source, float, __half>(call);
  }
  return ffi::Error::InvalidArgument("no kernel for these dtypes");
}

ffi::Error by_source(const Call& call, std::string_view source, ffi::DataType w,
                     ffi::DataType values) {
  if (source == "along_k") return by_dtypes<Source::kAlongK>(call, w, values);
  if (source == "along_out") return by_dtypes<Source::kAlongOut>(call, w, values);
  if (source == "nonzero") return by_dtypes<Source::kNonzero>(call, w, values);
  if (source == "packed") return by_dtypes<Source::kPacked>(call, values, values);
  if (source == "magnitude") return by_dtypes<Source::kMagnitude>(call, w, values);
  if (source == "best") return by_dtypes<Source::kBest>(call, w, values);
  if (source == "best_along_out") return by_dtypes<Source::kBestAlongOut>(call, w, values);
  if (source == "best_relus") return by_dtypes<Source::kBestRelus>(call, w, values);
  return ffi::Error::InvalidArgument("no kernel for this source");
}

// Results are values and indices for each form that is wanted, then the mask that is found, and
// what it keeps.
ffi::Error compress(cudaStream_t stream, ffi::AnyBuffer w, ffi::RemainingArgs mask,
                    ffi::RemainingRets results, std::string_view source, bool along_k,
                    bool along_out) {
  Call call = {stream, w.untyped_data()};
  if (mask.size()) call.mask = mask.get<ffi::AnyBuffer>(0)->untyped_data();
  size_t next = 0;
  const auto result = [&] { return (*results.get<ffi::AnyBuffer>(next++))->untyped_data(); };
  const ffi::DataType values = (*results.get<ffi::AnyBuffer>(0))->element_type();
  if (along_k) call.values_along_k = result(), call.indices_along_k = result();
  if (along_out) call.values_along_out = result(), call.indices_along_out = result();
  if (next < results.size()) call.found = result();
  if (next < results.size()) call.kept = result();
  call.batch = w.dimensions()[0], call.k = w.dimensions()[1], call.out = w.dimensions()[2];
  if (source == "packed") call.k = call.batch * 16, call.batch = 1;
  return by_source(call, source, w.element_type(), values);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_compress_both, compress,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Arg<ffi::AnyBuffer>()  // w [batch, k, out], or packed
                                  .RemainingArgs()        // mask, if it is given
                                  .RemainingRets()
                                  .Attr<std::string_view>("source")
                                  .Attr<bool>("along_k")
                                  .Attr<bool>("along_out"),
                              {ffi::Traits::kCmdBufferCompatible});
