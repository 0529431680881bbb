// Dense layer y = relu?(x w^T + b): the contract of the CPU kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycap {

// x [M,I], w [O,I], b [O] or null, y and dy [M,O]. No array may alias another. `ws`: scratch as the
// *_workspace says.
struct LinearKernels {
  void (*forward)(float* y, const float* x, const float* w, const float* b, int64_t M, int64_t I,
                  int64_t O, bool relu, int threads);
  // Scratch of both backwards: the masked dy, when y is given.
  size_t (*backward_workspace)(int64_t M, int64_t I, int64_t O, bool masked, int threads);
  // dx [M,I] = beta*dx + grad; y: the forward's output, whose zeros mask dy, or null.
  void (*backward_data)(float* dx, const float* dy, const float* w, const float* y, int64_t M,
                        int64_t I, int64_t O, float beta, void* ws, int threads);
  // dw [O,I] = beta_w*dw + grad or null; db [O] = beta_b*db + grad or null.
  void (*backward_weight)(float* dw, float* db, const float* dy, const float* x, const float* y,
                          int64_t M, int64_t I, int64_t O, float beta_w, float beta_b, void* ws,
                          int threads);
};

}  // namespace pycap
