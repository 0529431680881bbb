// 2-D convolution over NHWC float32: the contract of the CPU kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycap {

// Images are [N,H,W,C], weights [K,R,S,C], outputs [N,P,Q,K] with P = (H + 2*pad - R) / stride + 1
// and Q alike.
struct ConvShape {
  int64_t N, H, W, C, K, R, S, stride, pad, P, Q;
};

enum ConvAlgorithm { kAutomatic, kIm2col, kDirect, kWinograd };

// All arrays are C-contiguous and none may alias another. `ws` is scratch, 64-byte aligned, at
// least as large as the matching *_workspace says, its contents meaningless before and after. b may
// be null (no bias).
//
// argmax is uint8 [N,P/2,Q/2,ceil(K/4)]: the winner (2*row + column, the first of equals) of
// channel k stands in bits 2*(k%4) of byte k/4.
//
// `form` is a form of w that reads faster and may be kept while w does not change, or null.
struct Conv2dKernels {
  // Floats of the form, which depends on w, stride and pad only; 0: there is none.
  size_t (*filter_floats)(const ConvShape& s);
  // form [filter_floats] out; w [K,R,S,C] in.
  void (*prepare_filters)(float* form, const float* w, const ConvShape& s, int threads);

  size_t (*forward_workspace)(const ConvShape& s, bool pool, int threads);
  // y [N,P,Q,K] out; x [N,H,W,C] in; w [K,R,S,C] in; b [K] in or null.
  void (*forward)(float* y, const float* x, const float* w, const float* form, const float* b,
                  const ConvShape& s, bool relu, void* ws, int threads);
  // bias, ReLU and a 2x2/2 max-pool fused: y [N,P/2,Q/2,K] out; argmax out.
  void (*pool_forward)(float* y, uint8_t* argmax, const float* x, const float* w, const float* form,
                       const float* b, const ConvShape& s, void* ws, int threads);

  // `masked`: y or argmax is given.
  size_t (*backward_data_workspace)(const ConvShape& s, bool masked, int threads);
  // dx [N,H,W,C] = beta*dx + grad (beta 0: not read). Without argmax: dy [N,P,Q,K] in, y the same
  // shape (its zeros mask dy) or null. With argmax: dy and y are pooled maps [N,P/2,Q/2,K].
  void (*backward_data)(float* dx, const float* dy, const float* w, const float* y,
                        const uint8_t* argmax, const ConvShape& s, float beta, void* ws,
                        int threads);

  size_t (*backward_weight_workspace)(const ConvShape& s, bool masked, int threads);
  // dw [K,R,S,C] = beta_w*dw + grad, or null; db [K] = beta_b*db + grad, or null. The sum over
  // images is taken in an order that depends on the shape and on `threads` only.
  void (*backward_weight)(float* dw, float* db, const float* dy, const float* x, const float* y,
                          const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                          void* ws, int threads);
  // Name of the algorithm that serves `pass` (0 forward, 1 data, 2 weight) for this shape.
  const char* (*algorithm)(const ConvShape& s, int pass, int threads);

  // For measuring only, while no kernel runs: use `algorithm` wherever it can serve, and Winograd
  // with `blocks` (shared, tiles, inputs, outputs: conv_table.h); kAutomatic and null: the table's.
  void (*force)(ConvAlgorithm algorithm, const int64_t* blocks);
};

}  // namespace pycap
