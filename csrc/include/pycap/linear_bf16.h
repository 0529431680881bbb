// Dense layer on bfloat16 activations: the contract of the CPU kernels.
#pragma once
#include <cstddef>
#include <cstdint>

#include "pycap/bf16.h"

namespace pycap {

// As LinearKernels; x, y, dx, dy are bfloat16, w, b, dw, db float32. `rounded` (null: w is rounded
// on the way) is w as bfloat16 [O,I], which may be kept while w does not change; w is not read
// then. Sums are float32, rounded once when stored.
struct LinearBf16Kernels {
  void (*round)(bf16* rounded, const float* w, int64_t count, int threads);
  size_t (*forward_workspace)(int64_t M, int64_t I, int64_t O, int threads);
  void (*forward)(bf16* y, const bf16* x, const float* w, const bf16* rounded, const float* b,
                  int64_t M, int64_t I, int64_t O, bool relu, void* ws, int threads);
  size_t (*backward_workspace)(int64_t M, int64_t I, int64_t O, int threads);
  void (*backward_data)(bf16* dx, const bf16* dy, const float* w, const bf16* y, int64_t M,
                        int64_t I, int64_t O, float beta, void* ws, int threads);
  void (*backward_weight)(float* dw, float* db, const bf16* dy, const bf16* x, const bf16* y,
                          int64_t M, int64_t I, int64_t O, float beta_w, float beta_b, void* ws,
                          int threads);
};

}  // namespace pycap
