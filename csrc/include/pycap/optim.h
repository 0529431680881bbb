// Multi-tensor optimiser steps, one pass over each tensor: the contract of the CPU kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycap {

// One parameter: all arrays hold n floats and none may alias another. s0, s1: the optimiser's
// states, in/out.
struct OptimTensor {
  float* p;
  const float* g;
  float* s0;
  float* s1;
  int64_t n;
};

struct OptimHyper {
  double lr, a, b, eps, weight_decay, grad_scale, clip;  // clip 0: none
  double correction1, correction2;                       // Adam: 1 - beta1^step, 1 - beta2^step
};

struct OptimKernels {
  void (*sgd)(const OptimTensor* t, int64_t count, const OptimHyper& hp,
              int threads);  // s0 momenta, a momentum
  void (*rmsprop)(const OptimTensor* t, int64_t count, const OptimHyper& hp,
                  int threads);  // s0 squares, a alpha
  void (*adam)(const OptimTensor* t, int64_t count, const OptimHyper& hp,
               int threads);  // s0 m, s1 v, a, b the betas
  // Scratch of sum_squares: one double a chunk.
  size_t (*sum_squares_workspace)(const OptimTensor* t, int64_t count);
  // Sum of squares of all t[i].g in float64, the same for every thread count.
  double (*sum_squares)(const OptimTensor* t, int64_t count, void* ws, int threads);
};

}  // namespace pycap
