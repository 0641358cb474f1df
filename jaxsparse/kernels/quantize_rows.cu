// Rows of 16-bit floats to eight bits with a scale for each, as an XLA FFI call. Values of float8
// are widened to the dtype of the rows if the result has it.
#include "launch.cuh"
#include "quantize_rows.cuh"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

struct Call {
  cudaStream_t stream;
  const void* x;
  void* values;
  float* scales;
  int rows, k, threads;
};

template <typename T, typename V, typename Out, int kVectors>
ffi::Error launch_rows(const Call& call) {
  quantize_rows::quantize<T, V, Out, kVectors><<<call.rows, call.threads, 0, call.stream>>>(
      static_cast<const T*>(call.x), static_cast<Out*>(call.values), call.scales, call.k);
  RETURN_IF_CUDA_ERROR(cudaGetLastError());
  return ffi::Error::Success();
}

template <typename T, typename V, typename Out>
ffi::Error choose(const Call& call) {
  const int per_pass = call.threads * quantize_rows::kVector;
  switch ((call.k + per_pass - 1) / per_pass) {
    case 1: return launch_rows<T, V, Out, 1>(call);
    case 2: return launch_rows<T, V, Out, 2>(call);
    case 3: return launch_rows<T, V, Out, 3>(call);
    case 4: return launch_rows<T, V, Out, 4>(call);
    case 5: return launch_rows<T, V, Out, 5>(call);
    case 6: return launch_rows<T, V, Out, 6>(call);
    case 7: return launch_rows<T, V, Out, 7>(call);
    case 8: return launch_rows<T, V, Out, 8>(call);
  }
  return ffi::Error::InvalidArgument("no kernel for so long rows");
}

template <typename T>
ffi::Error choose(const Call& call, ffi::DataType values) {
  if (values == ffi::S8) return choose<T, int8_t, uint8_t>(call);
  if (values == ffi::F8E4M3FN) return choose<T, __nv_fp8_e4m3, uint8_t>(call);
  return choose<T, __nv_fp8_e4m3, T>(call);  // widened
}

ffi::Error quantize(cudaStream_t stream, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> values,
                    ffi::Result<ffi::Buffer<ffi::F32>> scales, int64_t threads) {
  const Call call = {stream,
                     x.untyped_data(),
                     values->untyped_data(),
                     scales->typed_data(),
                     static_cast<int>(x.dimensions()[0]),
                     static_cast<int>(x.dimensions()[1]),
                     static_cast<int>(threads)};
  return x.element_type() == ffi::BF16 ? choose<__nv_bfloat16>(call, values->element_type())
                                       : choose<__half>(call, values->element_type());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_quantize_rows, quantize,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Arg<ffi::AnyBuffer>()         // x [rows, k]
                                  .Ret<ffi::AnyBuffer>()         // values [rows, k]
                                  .Ret<ffi::Buffer<ffi::F32>>()  // scales [rows, 1]
                                  .Attr<int64_t>("threads"),
                              {ffi::Traits::kCmdBufferCompatible});
