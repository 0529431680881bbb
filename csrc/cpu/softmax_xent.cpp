// Projection + softmax + cross-entropy, and log-softmax + top-k.
#include "pycap/softmax_xent.h"

#include "gemm.h"
#include "vecmath.h"

namespace pycap::PYCAP_ISA {
namespace {

// The largest of n numbers; NaN if any is NaN.
inline float row_max(const float* x, int64_t n) {
  float top = -__builtin_inff(), nan = 0.0f;
#pragma omp simd reduction(max : top) reduction(+ : nan)
  for (int64_t i = 0; i < n; ++i) {
    top = x[i] > top ? x[i] : top;
    nan += x[i] != x[i] ? 1.0f : 0.0f;
  }
  return nan > 0.0f ? __builtin_nanf("") : top;
}

// Turns one row of logits (without bias) into softmax - onehot(target); returns -log
// softmax[target].
float xent_row(float* row, const float* b, int64_t V, int64_t target) {
  if (b) {
    PYCAP_SIMD for (int64_t v = 0; v < V; ++v) row[v] += b[v];
  }
  const float top = row_max(row, V);
  const float at_target = row[target];
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t v = 0; v < V; ++v) {
    const float e = exp1(row[v] - top);
    row[v] = e;
    sum += e;
  }
  const float inv = 1.0f / sum;
  // Probabilities under 1e-30 become 0: their products would be denormal, which the CPU multiplies
  // many times slower.
  PYCAP_SIMD for (int64_t v = 0; v < V; ++v) {
    const float p = row[v] * inv;
    row[v] = p < 1e-30f ? 0.0f : p;
  }
  row[target] -= 1.0f;
  return logf(sum) - (at_target - top);
}

void forward(float* loss, float* dlogits, const float* h, const float* w, const float* b,
             const int32_t* targets, int64_t M, int64_t H, int64_t V, int threads) {
  sgemm_parallel(false, true, M, V, H, 1.0f, h, H, w, H, 0.0f, dlogits, V, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (M * V > 16384)
  for (int64_t m = 0; m < M; ++m) loss[m] = xent_row(dlogits + m * V, b, V, targets[m]);
}

void backward(float* dh, float* dw, float* db, const float* dlogits, const float* h, const float* w,
              float scale, const float* betas, int64_t M, int64_t H, int64_t V, int threads) {
  if (dh) sgemm_parallel(false, false, M, H, V, scale, dlogits, V, w, H, betas[0], dh, H, threads);
  if (dw) sgemm_parallel(true, false, V, H, M, scale, dlogits, V, h, H, betas[1], dw, H, threads);
  if (db) column_sums(db, dlogits, M, V, V, scale, betas[2], threads);
}

inline bool suppressed(int64_t v, const int64_t* suppress, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    if (suppress[i] == v) return true;
  return false;
}

// Sums exp(x - top) over a row less its suppressed ids (each counted once).
float exp_sum(const float* x, int64_t V, float top, const int64_t* suppress, int64_t n) {
  float sum = 0.0f;
  int64_t begin = 0;
  while (begin <= V) {
    int64_t end = V;  // the next suppressed id at or after begin
    for (int64_t i = 0; i < n; ++i)
      if (suppress[i] >= begin && suppress[i] < end) end = suppress[i];
#pragma omp simd reduction(+ : sum)
    for (int64_t v = begin; v < end; ++v) sum += exp1(x[v] - top);
    begin = end + 1;
  }
  return sum;
}

void log_softmax_topk(float* values, int32_t* indices, const float* logits, const int64_t* suppress,
                      int64_t n_suppress, int64_t M, int64_t V, int64_t k, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (M * V > 16384)
  for (int64_t m = 0; m < M; ++m) {
    const float* x = logits + m * V;
    float* best = values + m * k;
    int32_t* id = indices + m * k;
    const float minus_inf = -__builtin_inff();
    float top = minus_inf;
    int64_t held = 0;
    for (int64_t v = 0; v < V; ++v) {
      // Almost every element stops here; NaN does not.
      if (held == k && k > 0 && x[v] <= best[k - 1]) continue;
      const float value = suppressed(v, suppress, n_suppress) ? minus_inf : x[v];
      if (value > top || value != value) top = value;
      if (held == k && !(k > 0 && value > best[k - 1])) continue;
      int64_t at = held < k ? held++ : k - 1;
      for (; at > 0 && value > best[at - 1]; --at) {
        best[at] = best[at - 1];
        id[at] = id[at - 1];
      }
      best[at] = value;
      id[at] = (int32_t)v;
    }
    const float log_sum = logf(exp_sum(x, V, top, suppress, n_suppress));
    for (int64_t i = 0; i < k; ++i) best[i] = best[i] - top - log_sum;
  }
}

}  // namespace

extern const SoftmaxXentKernels softmax_xent_kernels;
const SoftmaxXentKernels softmax_xent_kernels = {forward, backward, log_softmax_topk};

}  // namespace pycap::PYCAP_ISA
