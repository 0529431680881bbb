// Optimiser steps over lists of tensors, cut into chunks that the threads share.
#include "pycap/optim.h"

#include "common.h"

namespace pycap::PYCAP_ISA {
namespace {

constexpr int64_t kChunk = 16384;

// The hyperparameters as floats; differences such as 1 - beta2 are taken in double, where they are
// exact enough.
struct Rates {
  float lr, a, not_a, b, not_b, eps, weight_decay, grad_scale, limit;
};

Rates rates(const OptimHyper& hp, double lr) {
  return {(float)lr,
          (float)hp.a,
          (float)(1.0 - hp.a),
          (float)hp.b,
          (float)(1.0 - hp.b),
          (float)hp.eps,
          (float)hp.weight_decay,
          (float)hp.grad_scale,
          hp.clip > 0.0 ? (float)hp.clip : __builtin_inff()};
}

inline float effective(float g, float p, const Rates& r) {
  float v = g * r.grad_scale;
  v = v > r.limit ? r.limit : v;
  v = v < -r.limit ? -r.limit : v;
  return v + r.weight_decay * p;
}

// Calls body(tensor, begin, end) for every chunk; a chunk is always the same thread's at equal
// thread count.
template <class Body>
void for_chunks(const OptimTensor* t, int64_t count, int threads, Body body) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += t[i].n;
#pragma omp parallel num_threads(threads) if (total > kChunk)
  {
    const int64_t parts = omp_get_num_threads(), id = omp_get_thread_num();
    const Range mine = split(total, parts, id, 16);
    int64_t base = 0;
    for (int64_t i = 0; i < count && base < mine.end; base += t[i].n, ++i) {
      const int64_t begin = max64(mine.begin - base, 0), end = min64(mine.end - base, t[i].n);
      if (begin < end) body(t[i], begin, end);
    }
  }
}

void sgd(const OptimTensor* t, int64_t count, const OptimHyper& hp, int threads) {
  const Rates r = rates(hp, hp.lr);
  for_chunks(t, count, threads, [r](const OptimTensor& x, int64_t begin, int64_t end) {
    float *p = x.p, *m = x.s0;
    const float* g = x.g;
    PYCAP_SIMD for (int64_t i = begin; i < end; ++i) {
      const float v = r.a * m[i] + effective(g[i], p[i], r);
      m[i] = v;
      p[i] -= r.lr * v;
    }
  });
}

void rmsprop(const OptimTensor* t, int64_t count, const OptimHyper& hp, int threads) {
  const Rates r = rates(hp, hp.lr);
  for_chunks(t, count, threads, [r](const OptimTensor& x, int64_t begin, int64_t end) {
    float *p = x.p, *s = x.s0;
    const float* g = x.g;
    PYCAP_SIMD for (int64_t i = begin; i < end; ++i) {
      const float e = effective(g[i], p[i], r);
      const float v = r.a * s[i] + r.not_a * e * e;
      s[i] = v;
      p[i] -= r.lr * e / (sqrtf(v) + r.eps);
    }
  });
}

void adam(const OptimTensor* t, int64_t count, const OptimHyper& hp, int threads) {
  const Rates r = rates(hp, hp.lr / hp.correction1);
  const float inv2 = (float)(1.0 / hp.correction2);
  for_chunks(t, count, threads, [r, inv2](const OptimTensor& x, int64_t begin, int64_t end) {
    float *p = x.p, *m = x.s0, *v = x.s1;
    const float* g = x.g;
    PYCAP_SIMD for (int64_t i = begin; i < end; ++i) {
      const float e = effective(g[i], p[i], r);
      const float m1 = r.a * m[i] + r.not_a * e;
      const float v1 = r.b * v[i] + r.not_b * e * e;
      m[i] = m1;
      v[i] = v1;
      p[i] -= r.lr * m1 / (sqrtf(v1 * inv2) + r.eps);
    }
  });
}

int64_t chunks_of(const OptimTensor* t, int64_t count) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) chunks += ceil_div(t[i].n, kChunk);
  return chunks;
}

size_t sum_squares_workspace(const OptimTensor* t, int64_t count) {
  return sizeof(double) * (size_t)chunks_of(t, count);
}

double sum_squares(const OptimTensor* t, int64_t count, void* ws, int threads) {
  double* partial = static_cast<double*>(ws);
  const int64_t chunks = chunks_of(t, count);
#pragma omp parallel num_threads(threads) if (chunks > 1)
  {
    const Range mine = split(chunks, omp_get_num_threads(), omp_get_thread_num());
    int64_t first = 0;
    for (int64_t i = 0; i < count && first < mine.end; ++i) {
      const int64_t here = ceil_div(t[i].n, kChunk);
      for (int64_t c = max64(mine.begin - first, 0); c < min64(mine.end - first, here); ++c) {
        const float* g = t[i].g + c * kChunk;
        const int64_t n = min64(kChunk, t[i].n - c * kChunk);
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; ++j) sum += (double)g[j] * (double)g[j];
        partial[first + c] = sum;
      }
      first += here;
    }
  }
  double total = 0.0;
  for (int64_t c = 0; c < chunks; ++c) total += partial[c];
  return total;
}

}  // namespace

extern const OptimKernels optim_kernels;
const OptimKernels optim_kernels = {sgd, rmsprop, adam, sum_squares_workspace, sum_squares};

}  // namespace pycap::PYCAP_ISA
