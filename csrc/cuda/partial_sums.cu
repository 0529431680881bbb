// Sums of partial sums: a block takes some columns, and several of its threads share each.
#include "launch.h"
#include "partial_sums.h"

namespace pycap::gpu {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kMostRows = 32;  // the eight columns of a row are then 128 bytes

__device__ __forceinline__ void add(float4& sum, const float4& x) {
  sum.x += x.x;
  sum.y += x.y;
  sum.z += x.z;
  sum.w += x.w;
}

// blockDim (columns, rows): thread row i of a column adds parts i, i + rows, ...; row 0 adds the
// rows. Few columns and many parts (64 filters of three channels have 432 columns, of four numbers
// each, and some 400 parts) then still occupy the GPU.
__global__ void __launch_bounds__(kThreads) sum_kernel(float4* out,             // [columns]
                                                       const float4* partials,  // [splits, columns]
                                                       int64_t columns, int splits, float beta) {
  PYCAP_SHARED(float4, sums, [kThreads]);
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  float4 sum = make_float4(0, 0, 0, 0);
  if (column < columns)
#pragma unroll 4
    for (int split = threadIdx.y; split < splits; split += blockDim.y)
      add(sum, partials[split * columns + column]);
  sums[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (unsigned row = 1; row < blockDim.y; ++row) add(sum, sums[row * blockDim.x + threadIdx.x]);
  if (beta != 0) {
    const float4 old = out[column];
    sum.x += beta * old.x;
    sum.y += beta * old.y;
    sum.z += beta * old.z;
    sum.w += beta * old.w;
  }
  out[column] = sum;
}

}  // namespace

void sum_partials(float* out, const float* partials, int64_t n, int splits, float beta,
                  cudaStream_t stream) {
  if (n % 4)
    throw std::invalid_argument("sum_partials: n = " + std::to_string(n) +
                                " must be a multiple of 4");
  unsigned rows = 1;
  while (rows < kMostRows && static_cast<int>(2 * rows) <= splits) rows *= 2;
  const unsigned columns = kThreads / rows;
  launch("sum_partials", sum_kernel, {blocks_for(n / 4, columns), dim3(columns, rows), 0, stream},
         reinterpret_cast<float4*>(out), reinterpret_cast<const float4*>(partials), n / 4, splits,
         beta);
}

}  // namespace pycap::gpu
