// Convolution of any shape by patches and GEMM (im2col), and its gradients.
#pragma once
#include "conv_rows.h"
#include "gemm.h"

namespace pycap::PYCAP_ISA {

struct ConvEpilogue {
  const float* b;
  bool relu;
  uint8_t* argmax;  // null: no pooling
};

size_t im2col_forward_workspace(const ConvShape& s, bool pool, int threads);
void im2col_forward(float* y, const float* x, const float* w, const ConvEpilogue& e,
                    const ConvShape& s, void* ws, int threads);
size_t im2col_backward_data_workspace(const ConvShape& s, int threads);
void im2col_backward_data(float* dx, const float* dy, const float* w, const float* y,
                          const uint8_t* argmax, const ConvShape& s, float beta, void* ws,
                          int threads);
size_t im2col_backward_weight_workspace(const ConvShape& s, int threads);
void im2col_backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                            const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                            void* ws, int threads);

}  // namespace pycap::PYCAP_ISA
