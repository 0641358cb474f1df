#include "jaxsparse/kernels/nm_matmul_bytes.cuh"
template __global__ void nm_bytes::product<__nv_bfloat16, __nv_fp8_e4m3, nm_bytes::Form<256, 4, 2>>(const __grid_constant__ nm_bytes::Maps, const nm_bytes::Shape, const float*, const float*);
