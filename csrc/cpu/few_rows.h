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

// M rows of x against J rows of w over n inputs (a multiple of VL): y[m*ldy + j] (+)= the dot
// products.
template <int M, int J>
void dots(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, int64_t ldw,
          int64_t n, bool add) {
  Vec sum[M][J];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) sum[m][j] = Vec{};
  for (int64_t i = 0; i < n; i += VL) {
    Vec row[J];
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
      row[j] = load(w + j * ldw + i);
      __builtin_prefetch(w + (J + j) * ldw +
                         i);  // the next rows: another page, unknown to prefetchers
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec v = load(x + m * ldx + i);
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) sum[m][j] += v * row[j];
    }
  }
  for (int m = 0; m < M; ++m)
    for (int j = 0; j < J; ++j) {
      const float s = lane_sum(sum[m][j]);
      y[m * ldy + j] = add ? y[m * ldy + j] + s : s;
    }
}

constexpr int64_t kFewRows = 8;

// Whether `few_rows` serves the product.
inline bool is_few_rows(int64_t m, int64_t n, int64_t k) {
  return m <= kFewRows && k > 0 && k % VL == 0 && n % 2 == 0;
}

// y [m, n] = (add ? y : 0) + x [m, k] w [n, k]^T, m <= M: each row of w is read once, from end to
// end, which prefetchers and page tables like better than parts that would keep x in the L1 cache;
// as many rows at a time as there are registers for, since x comes from the L2 cache.
template <int M = kFewRows>
void few_rows(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, int64_t ldw,
              int64_t m, int64_t n, int64_t k, bool add) {
  if (m == M) {
    constexpr int J = VL < 16 || M == 1 ? 2 : M > 4 ? 3 : 4;
    int64_t j = 0;
    for (; j + J <= n; j += J) dots<M, J>(y + j, ldy, x, ldx, w + j * ldw, ldw, k, add);
    for (; j < n; ++j) dots<M, 1>(y + j, ldy, x, ldx, w + j * ldw, ldw, k, add);
  } else if constexpr (M > 1) {
    few_rows<M - 1>(y, ldy, x, ldx, w, ldw, m, n, k, add);
  }
}

}  // namespace
