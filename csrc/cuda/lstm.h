// The LSTM's recurrence on a GPU, all steps of a sequence in one launch (docs/math/lstm.md). What
// comes before (x w_x^T) and after (the gradients of weights and inputs) are products of other
// kernels.
//
// T: float, bf16 or half. T steps, N sequences, H hidden units; gates stacked i, f, g, o. Pointers
// to T and `gates` lie at multiples of 16 bytes; those marked "or null" may be null. Nothing may
// alias. Nothing is allocated, and the host waits for nothing: launches can be captured in a CUDA
// graph.
#pragma once
#include <string>

#include "launch.h"
#include "products.h"
#include "types.h"

namespace pycap::gpu {

template <class T>
struct LstmForward {
  T* h;                 // [T,N,H] out
  float* c;             // [T,N,H] out
  float* gates;         // [T,N,4H] in: x w_x^T, masked steps may be NaN; out: activated, masked 0
  const float* b;       // [4H]
  const T* h0;          // [N,H] or null: zeros
  const float* c0;      // [N,H] or null: zeros
  const T* w_h;         // [4H,H]
  const uint8_t* mask;  // [T,N] or null; where 0, the state is carried over
  int* arrived;         // scratch: lstm_forward_workspace bytes
  int steps, n;
  bool exact;  // float: Products::tf32x3
};

template <class T>
struct LstmBackward {
  float* gates;         // [T,N,4H] in: activated; out: the gradients of the pre-activations
  T* dh0;               // [N,H] or null; out: beta_h * dh0 + gradient; with beta_h 0 not read
  float* dc0;           // [N,H] or null; the same with beta_c
  const T* dh;          // [T,N,H] or null
  const float* dc_n;    // [N,H] or null
  const float* c;       // [T,N,H]
  const float* c0;      // [N,H] or null: zeros
  const T* w_h;         // [4H,H]
  const uint8_t* mask;  // [T,N] or null
  void* workspace;      // scratch: lstm_backward_workspace bytes, at a multiple of 16
  int steps, n;
  float beta_h, beta_c;
  bool exact;
};

// Bytes of scratch for n sequences.
size_t lstm_forward_workspace(int n);
template <class T>
size_t lstm_backward_workspace(int n, int hidden);

enum class LstmForm { kCooperative = 0, kCluster = 1 };

// Two forms, by how the blocks, which hold the weights among them, exchange the state after each
// step. obstacle: why the current GPU cannot run the form for so many hidden units, or "". forward,
// backward: steps and n are positive, hidden is one without an obstacle; they throw CudaError and
// std::invalid_argument.

// Through global memory, in a cooperative launch: sm_80 and newer.
template <class T>
struct LstmCooperative {
  static std::string obstacle(bool backward, int hidden);
  static void forward(const LstmForward<T>& with, int hidden, cudaStream_t stream);
  static void backward(const LstmBackward<T>& with, int hidden, cudaStream_t stream);
};

// Through the shared memory of a cluster of blocks: sm_90. Batches larger than the clusters that
// run at once take turns.
template <class T>
struct LstmCluster {
  static std::string obstacle(bool backward, int hidden);
  static void forward(const LstmForward<T>& with, int hidden, cudaStream_t stream);
  static void backward(const LstmBackward<T>& with, int hidden, cudaStream_t stream);
};

}  // namespace pycap::gpu
