// Convolution: picks the algorithm for a shape.
#include "pycap/conv2d.h"

#include "conv_im2col.h"
#include "winograd.h"

namespace pycap::PYCAP_ISA {
namespace {

// Winograd multiplies a quarter as often; on maps smaller than a tile most of what it computes is thrown away.
bool use_winograd(const ConvShape& s) { return winograd_fits(s) && s.H * s.W >= 9; }

size_t forward_workspace(const ConvShape& s, bool pool, int threads) {
  return use_winograd(s) ? winograd_workspace(s, false, threads)
                         : im2col_forward_workspace(s, pool, threads);
}

void forward(float* y, const float* x, const float* w, const float* b, const ConvShape& s,
             bool relu, void* ws, int threads) {
  if (use_winograd(s))
    winograd_forward(y, nullptr, x, w, b, s, relu, ws, threads);
  else
    im2col_forward(y, x, w, {b, relu, nullptr}, s, ws, threads);
}

void pool_forward(float* y, uint8_t* argmax, const float* x, const float* w, const float* b,
                  const ConvShape& s, void* ws, int threads) {
  if (use_winograd(s))
    winograd_forward(y, argmax, x, w, b, s, true, ws, threads);
  else
    im2col_forward(y, x, w, {b, true, argmax}, s, ws, threads);
}

size_t backward_data_workspace(const ConvShape& s, bool, int threads) {
  return use_winograd(s) ? winograd_workspace(s, true, threads)
                         : im2col_backward_data_workspace(s, threads);
}

void backward_data(float* dx, const float* dy, const float* w, const float* y,
                   const uint8_t* argmax, const ConvShape& s, float beta, void* ws, int threads) {
  if (use_winograd(s))
    winograd_backward_data(dx, dy, w, y, argmax, s, beta, ws, threads);
  else
    im2col_backward_data(dx, dy, w, y, argmax, s, beta, ws, threads);
}

size_t backward_weight_workspace(const ConvShape& s, bool, int threads) {
  return use_winograd(s) ? winograd_weight_workspace(s, threads)
                         : im2col_backward_weight_workspace(s, threads);
}

void backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                     const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                     void* ws, int threads) {
  if (use_winograd(s))
    winograd_backward_weight(dw, db, dy, x, y, argmax, s, beta_w, beta_b, ws, threads);
  else
    im2col_backward_weight(dw, db, dy, x, y, argmax, s, beta_w, beta_b, ws, threads);
}

const char* algorithm(const ConvShape& s, int, int) {
  return use_winograd(s) ? "winograd-4x4" : "im2col";
}

}  // namespace

extern const Conv2dKernels conv2d_kernels;
const Conv2dKernels conv2d_kernels = {forward_workspace,       forward,
                                      pool_forward,            backward_data_workspace,
                                      backward_data,           backward_weight_workspace,
                                      backward_weight,         algorithm};

}  // namespace pycap::PYCAP_ISA
