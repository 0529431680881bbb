// Sums over the parts that a gradient was made in, always in the same order.
#pragma once
#include "platform.h"

namespace pycap::gpu {

// out [n] = beta * out + the sum of partials [splits, n]; with beta 0 the old out is not read.
// Float32; n a multiple of 4, both arrays at multiples of 16 bytes, not overlapping.
void sum_partials(float* out, const float* partials, int64_t n, int splits, float beta,
                  cudaStream_t stream);

}  // namespace pycap::gpu
