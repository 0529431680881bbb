// Between float32 and bfloat16: the contract of the CPU kernels.
#pragma once
#include <cstdint>

#include "pycap/bf16.h"

namespace pycap {

// y [n] = beta*y + x [n], rounded once (beta 0: y is not read). No aliasing.
struct CastKernels {
  void (*to_bf16)(bf16* y, const float* x, int64_t n, float beta, int threads);
  void (*to_float)(float* y, const bf16* x, int64_t n, float beta, int threads);
  void (*float_to_float)(float* y, const float* x, int64_t n, float beta, int threads);
  void (*bf16_to_bf16)(bf16* y, const bf16* x, int64_t n, float beta, int threads);
};

}  // namespace pycap
