// Convolution: picks the algorithm for a shape.
#include "pycap/conv2d.h"

#include "conv_direct.h"
#include "conv_im2col.h"
#include "conv_table.h"
#include "winograd.h"

namespace pycap::PYCAP_ISA {
namespace {

int forced = kAutomatic;

ConvAlgorithm choose(const ConvShape& s) {
  if (forced == kIm2col || (forced == kDirect && direct_fits(s)) ||
      (forced == kWinograd && winograd_fits(s)))
    return static_cast<ConvAlgorithm>(forced);
  const int64_t pixels = s.H * s.W;
  const bool large =
      pixels >= kWinogradLeastPixels || (pixels >= 4 && s.N * pixels >= kWinogradLeastSmallPixels);
  if (winograd_fits(s) && large) return kWinograd;
  return direct_fits(s) ? kDirect : kIm2col;
}

void force(ConvAlgorithm algorithm, const int64_t* blocks) {
  forced = algorithm;
  winograd_force_blocks(blocks);
}

size_t forward_workspace(const ConvShape& s, bool pool, int threads) {
  switch (choose(s)) {
    case kWinograd:
      return winograd_workspace(s, false, threads);
    case kDirect:
      return direct_forward_workspace(s, threads);
    default:
      return im2col_forward_workspace(s, pool, threads);
  }
}

void run_forward(float* y, uint8_t* argmax, const float* x, const float* w, const float* form,
                 const float* b, const ConvShape& s, bool relu, void* ws, int threads) {
  switch (choose(s)) {
    case kWinograd:
      return winograd_forward(y, argmax, x, w, form, b, s, relu, ws, threads);
    case kDirect:
      return direct_forward(y, argmax, x, w, b, s, relu, ws, threads);
    default:
      return im2col_forward(y, x, w, {b, relu, argmax}, s, ws, threads);
  }
}

void forward(float* y, const float* x, const float* w, const float* form, const float* b,
             const ConvShape& s, bool relu, void* ws, int threads) {
  run_forward(y, nullptr, x, w, form, b, s, relu, ws, threads);
}

void pool_forward(float* y, uint8_t* argmax, const float* x, const float* w, const float* form,
                  const float* b, const ConvShape& s, void* ws, int threads) {
  run_forward(y, argmax, x, w, form, b, s, true, ws, threads);
}

size_t filter_floats(const ConvShape& s) {
  return winograd_fits(s) ? winograd_filter_floats(s) : 0;
}

size_t backward_data_workspace(const ConvShape& s, bool, int threads) {
  return choose(s) == kWinograd ? winograd_workspace(s, true, threads)
                                : im2col_backward_data_workspace(s, threads);
}

void backward_data(float* dx, const float* dy, const float* w, const float* y,
                   const uint8_t* argmax, const ConvShape& s, float beta, void* ws, int threads) {
  if (choose(s) == kWinograd)
    winograd_backward_data(dx, dy, w, y, argmax, s, beta, ws, threads);
  else
    im2col_backward_data(dx, dy, w, y, argmax, s, beta, ws, threads);
}

size_t backward_weight_workspace(const ConvShape& s, bool, int threads) {
  switch (choose(s)) {
    case kWinograd:
      return winograd_weight_workspace(s, threads);
    case kDirect:
      return direct_weight_workspace(s, threads);
    default:
      return im2col_backward_weight_workspace(s, threads);
  }
}

void backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                     const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                     void* ws, int threads) {
  const auto kernel = choose(s) == kWinograd ? winograd_backward_weight
                      : choose(s) == kDirect ? direct_backward_weight
                                             : im2col_backward_weight;
  kernel(dw, db, dy, x, y, argmax, s, beta_w, beta_b, ws, threads);
}

const char* algorithm(const ConvShape& s, int pass, int threads) {
  const ConvAlgorithm a = choose(s);
  if (a == kWinograd) {
    if (pass == 2) return "winograd-4x4";
    return winograd_shares(s, pass == 1, threads) ? "winograd-4x4 shared" : "winograd-4x4 private";
  }
  return a == kDirect && pass != 1 ? "direct" : "im2col";
}

}  // namespace

extern const Conv2dKernels conv2d_kernels;
const Conv2dKernels conv2d_kernels = {filter_floats,
                                      winograd_prepare_filters,
                                      forward_workspace,
                                      forward,
                                      pool_forward,
                                      backward_data_workspace,
                                      backward_data,
                                      backward_weight_workspace,
                                      backward_weight,
                                      algorithm,
                                      force};

}  // namespace pycap::PYCAP_ISA
