// LSTM over a whole sequence: the contract of the CPU kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycap {

// i,f,o = sigmoid, g = tanh of x w_x^T + h_prev w_h^T + b; c = f*c_prev + i*g; h = o*tanh(c). T, N,
// I, H may be 0.
struct LstmShape {
  int64_t T, N, I, H;
};

// No array may alias another, but h0/c0 may be any input. `ws`: scratch as lstm_*_workspace says.
struct LstmKernels {
  size_t (*forward_workspace)(const LstmShape& s, int threads);
  // h, c [T,N,H] out; gates [T,N,4H] out: activated i,f,g,o (zeros where masked); x [T,N,I]; h0, c0
  // [N,H] or null (zeros); w_x [4H,I]; w_h [4H,H]; b [4H]; mask uint8 [T,N] or null: 0 carries the
  // state over.
  void (*forward)(float* h, float* c, float* gates, const float* x, const float* h0,
                  const float* c0, const float* w_x, const float* w_h, const float* b,
                  const uint8_t* mask, const LstmShape& s, void* ws, int threads);
  size_t (*backward_workspace)(const LstmShape& s, int threads);
  // Gradients (null: not wanted), each = beta*old + grad, betas in the order dx, dw_x, dw_h, db,
  // dh0, dc0: dx [T,N,I], dw_x [4H,I], dw_h [4H,H], db [4H], dh0, dc0 [N,H]. gates in/out:
  // overwritten by the gradients of the pre-activations (0 where masked). dh [T,N,H] or null; dc_n
  // [N,H] or null: gradient of c[T-1]. h may be null when T is 1.
  void (*backward)(float* dx, float* dw_x, float* dw_h, float* db, float* dh0, float* dc0,
                   float* gates, const float* dh, const float* dc_n, const float* x, const float* h,
                   const float* c, const float* h0, const float* c0, const float* w_x,
                   const float* w_h, const uint8_t* mask, const float* betas, const LstmShape& s,
                   void* ws, int threads);
};

}  // namespace pycap
