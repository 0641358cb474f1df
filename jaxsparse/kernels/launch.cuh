// What the host does to launch a kernel from an XLA FFI call: tensor maps and clusters.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <atomic>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace launch {

namespace ffi = xla::ffi;

#define RETURN_IF_CUDA_ERROR(call)                                                          \
  if (const cudaError_t error = (call); error != cudaSuccess) {                             \
    return xla::ffi::Error::Internal(std::string(#call ": ") + cudaGetErrorString(error));  \
  }

using Encode = decltype(&cuTensorMapEncodeTiled);

// Returns the driver's function, or null if it has none.
inline Encode find_encode() {
  void* encode = nullptr;
  cudaDriverEntryPointQueryResult result;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault,
                                   &result);
  return reinterpret_cast<Encode>(encode);
}

// The launch configuration of a kernel.
struct Launch {
  dim3 grid, cluster;
  int threads, bytes;

  cudaLaunchConfig_t config(cudaStream_t stream, cudaLaunchAttribute* attribute) const {
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim = {cluster.x, cluster.y, cluster.z};
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = attribute;  // even for one block: all launches are alike
    config.numAttrs = 1;
    return config;
  }
};

// Allows a kernel to use more shared memory than the default limit.
template <auto kernel>
cudaError_t allow(int device, int bytes) {
  static std::atomic<uint64_t> allowed{0};  // one bit per device
  const uint64_t mine = uint64_t{1} << device % 64;
  if (allowed & mine) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (!error) allowed |= mine;
  return error;
}

template <auto kernel, typename... Args>
ffi::Error run(cudaStream_t stream, int device, const Launch& launch, Args... args) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = launch.config(stream, &attribute);
  RETURN_IF_CUDA_ERROR(allow<kernel>(device, launch.bytes));
  RETURN_IF_CUDA_ERROR(cudaLaunchKernelEx(&config, kernel, args...));
  return ffi::Error::Success();
}

// Gets the number of clusters of a kernel that run at the same time.
template <auto kernel>
cudaError_t most_clusters(int device, const Launch& launch, int* clusters) {
  static std::atomic<int> counts[64];
  std::atomic<int>& mine = counts[device % 64];
  cudaError_t error = cudaSuccess;
  if (!mine) {
    cudaLaunchAttribute attribute;
    const cudaLaunchConfig_t config = launch.config(nullptr, &attribute);
    int count = 0;
    error = allow<kernel>(device, launch.bytes);
    if (!error) error = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
    mine = count;
  }
  *clusters = mine;
  return error;
}

}  // namespace launch
