// The matmul of few dense rows and 4:8 or 8:16 sparse weights, or of stacks of both, as an XLA FFI
// call.
#include <cuda_runtime.h>

#include <climits>
#include <type_traits>

#include "nm_call.cuh"
#include "nm_expand.cuh"

namespace {

namespace ffi = xla::ffi;
using nm_call::Call, nm_call::Operand, nm_call::tiles;

// Encodes an array of two to four axes, the fastest first. The strides are those of all axes but
// the first, in bytes.
template <int kAxes>
bool encode(CUtensorMap* map, CUtensorMapDataType type, const void* data,
            const uint64_t (&sizes)[kAxes], const uint64_t (&strides)[kAxes - 1],
            const uint32_t (&box)[kAxes], CUtensorMapSwizzle swizzle) {
  static const launch::Encode encode = launch::find_encode();
  const uint32_t steps[] = {1, 1, 1, 1};
  return encode && !encode(map, type, kAxes, const_cast<void*>(data), sizes, strides, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

template <typename T>
bool map(const Call& call, const Operand& from, nm_expand::Weight<T>* to,
         CUtensorMapDataType type) {
  const uint64_t out = from.out, groups = call.k / 16, row = out * sizeof(T);
  to->y = static_cast<T*>(from.y), to->out = static_cast<int>(out);
  return encode<4>(&to->values, type, from.values, {out, groups, 8, call.matrices},
                   {8 * row, row, 8 * groups * row}, {nm_few::kOut, nm_few::kStep / 16, 8, 1},
                   CU_TENSOR_MAP_SWIZZLE_128B) &&
         encode<2>(&to->masks, CU_TENSOR_MAP_DATA_TYPE_UINT8, from.indices,
                   {out, call.matrices * 2 * groups}, {out}, {nm_few::kOut, nm_few::kStep / 8},
                   CU_TENSOR_MAP_SWIZZLE_64B);
}

template <typename T, typename F>
ffi::Error launch_few(const Call& call) {
  constexpr int kBytes = sizeof(nm_expand::Memory<F>);
  static_assert(kBytes <= 227 * 1024 && nm_expand::kStages<F> > 1);
  const auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  nm_expand::Products<T> products = {};
  products.rows = static_cast<int>(call.rows), products.k = static_cast<int>(call.k);
  products.row_tiles = tiles(call.rows, F::kRows);
  bool mapped = encode<2>(&products.x, type, call.x, {call.k, call.matrices * call.rows},
                          {call.k * sizeof(T)}, {nm_few::kStep, F::kRows},
                          CU_TENSOR_MAP_SWIZZLE_128B);
  for (int& end : products.ends) end = INT_MAX;
  int out_tiles = 0;
  for (int i = 0; i < call.count; ++i) {
    mapped = mapped && map(call, call.weights[i], &products.weights[i], type);
    out_tiles += tiles(call.weights[i].out, F::kBlockOut);
    if (i < call.count - 1) products.ends[i] = out_tiles;
  }
  if (!mapped) return ffi::Error::Internal("the driver encodes no tensor map");
  const dim3 grid(out_tiles * products.row_tiles, call.matrices, F::kBlocks);
  const launch::Launch launch = {grid, dim3(1, 1, F::kBlocks), F::kThreads, kBytes};
  return launch::run<nm_expand::product<T, F>>(call.stream, call.device, launch, products);
}

template <typename T, int kRows, int kWarps, int kWide, int... kChoices>
ffi::Error few(const Call& call) {
  return nm_call::with_blocks<kChoices...>(call.blocks, [&](auto blocks) {
    return launch_few<T, nm_few::Form<kRows, blocks, kWarps, kWide>>(call);
  });
}

template <typename T>
ffi::Error choose(const Call& call, int64_t tile_rows, int64_t wide) {
  switch (tile_rows) {
    case 8: return wide == 2 ? few<T, 8, 12, 2, 1, 2>(call) : few<T, 8, 8, 1, 1, 2, 4>(call);
    case 16: return wide == 2 ? few<T, 16, 12, 2, 1, 2>(call) : few<T, 16, 8, 1, 1, 2, 4>(call);
    default: return ffi::Error::InvalidArgument("no kernel for so many rows");
  }
}

ffi::Error product(cudaStream_t stream, int32_t device, ffi::AnyBuffer x,
                   ffi::RemainingArgs arrays, ffi::RemainingRets results, int64_t tile_rows,
                   int64_t blocks, int64_t wide) {
  Call call = {stream, device};
  call.blocks = blocks;
  if (ffi::Error error = nm_call::read(&call, x, arrays, results, false); error.failure()) {
    return error;
  }
  RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  return x.element_type() == ffi::BF16 ? choose<__nv_bfloat16>(call, tile_rows, wide)
                                       : choose<__half>(call, tile_rows, wide);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxsparse_nm_expand, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<ffi::DeviceOrdinal>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .RemainingArgs()  // values and indices of each weight
                                  .RemainingRets()  // one product for each weight
                                  .Attr<int64_t>("tile_rows")
                                  .Attr<int64_t>("blocks")
                                  .Attr<int64_t>("wide"),
                              {ffi::Traits::kCmdBufferCompatible});
