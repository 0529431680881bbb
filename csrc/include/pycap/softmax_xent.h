// Vocabulary projection with softmax cross-entropy, and log-softmax + top-k: the contract of the
// CPU kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycap {

struct SoftmaxXentKernels {
  // loss [M] out = -log softmax(h w^T + b)[target]; dlogits [M,V] out = softmax - onehot(target); h
  // [M,H]; w [V,H]; b [V] or null; targets int32 [M], checked: 0 <= target < V. No aliasing.
  void (*forward)(float* loss, float* dlogits, const float* h, const float* w, const float* b,
                  const int32_t* targets, int64_t M, int64_t H, int64_t V, int threads);
  // dh [M,H], dw [V,H], db [V] (null: not wanted) = beta*old + scale*grad; betas in that order.
  void (*backward)(float* dh, float* dw, float* db, const float* dlogits, const float* h,
                   const float* w, float scale, const float* betas, int64_t M, int64_t H, int64_t V,
                   int threads);
  // values [M,k], indices int32 [M,k] out, descending, equal values in order of id; logits [M,V]
  // in; suppress [n_suppress] ids of probability 0; 0 <= k <= V.
  void (*log_softmax_topk)(float* values, int32_t* indices, const float* logits,
                           const int64_t* suppress, int64_t n_suppress, int64_t M, int64_t V,
                           int64_t k, int threads);
};

}  // namespace pycap
