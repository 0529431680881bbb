// A few rows times the transpose of a large matrix: bound by reading that matrix.
#pragma once
#include "simd.h"

namespace {

inline float lane_sum(Vec v) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t l = 0; l < VL; ++l) sum += v[l];
  return sum;
}

// M rows of x against two rows of w over n inputs (a multiple of VL): y[m*ldy], y[m*ldy + 1] (+)=
// the dot products.
template <int M>
void dots(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, int64_t ldw,
          int64_t n, bool add) {
  Vec sum[M][2];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sum[m][0] = sum[m][1] = Vec{};
  for (int64_t i = 0; i < n; i += VL) {
    const Vec w0 = load(w + i), w1 = load(w + ldw + i);
    // The next two rows' parts: too short for the hardware prefetcher to find out by itself.
    __builtin_prefetch(w + 2 * ldw + i);
    __builtin_prefetch(w + 3 * ldw + i);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec v = load(x + m * ldx + i);
      sum[m][0] += v * w0;
      sum[m][1] += v * w1;
    }
  }
  for (int m = 0; m < M; ++m)
    for (int j = 0; j < 2; ++j) {
      const float s = lane_sum(sum[m][j]);
      y[m * ldy + j] = add ? y[m * ldy + j] + s : s;
    }
}

constexpr int64_t kFewRows = 8;

template <int M = kFewRows>
void dots_of(int64_t rows, float* y, int64_t ldy, const float* x, int64_t ldx, const float* w,
             int64_t ldw, int64_t n, bool add) {
  if (rows == M) {
    dots<M>(y, ldy, x, ldx, w, ldw, n, add);
  } else if constexpr (M > 1) {
    dots_of<M - 1>(rows, y, ldy, x, ldx, w, ldw, n, add);
  }
}

// Whether `few_rows` serves the product.
inline bool is_few_rows(int64_t m, int64_t n, int64_t k) {
  return m <= kFewRows && k > 0 && k % VL == 0 && n % 2 == 0;
}

// y [m, n] = (add ? y : 0) + x [m, k] w [n, k]^T: each row of w is read once, in order, against a
// part of x that stays in the cache.
inline void few_rows(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w,
                     int64_t ldw, int64_t m, int64_t n, int64_t k, bool add) {
  constexpr int64_t part = 1024;
  const int64_t step = m == 1 ? k : part;
  for (int64_t p = 0; p < k; p += step)
    for (int64_t j = 0; j < n; j += 2)
      dots_of(m, y + j, ldy, x + p, ldx, w + j * ldw + p, ldw, min64(step, k - p), add || p > 0);
}

}  // namespace
