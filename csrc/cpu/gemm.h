// Matrix products: single-threaded OpenBLAS, and its split over our own threads. Row-major throughout.
#pragma once
#include "common.h"

extern "C" void scipy_cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k,
                                  float alpha, const float* a, int lda, const float* b, int ldb,
                                  float beta, float* c, int ldc);

namespace {

// c [m,n] = alpha * op(a) [m,k] * op(b) [k,n] + beta*c; beta 0 does not read c. Sizes may be 0.
inline void sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                  int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    for (int64_t i = 0; i < m; ++i) scale_beta(c + i * ldc, n, beta);
    return;
  }
  constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;
  scipy_cblas_sgemm(kRowMajor, ta ? kTrans : kNoTrans, tb ? kTrans : kNoTrans, (int)m, (int)n,
                    (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

// How `threads` workers share an [m,n] result: tm * tn <= threads parts with the least packing (m/tm + n/tn).
struct Grid {
  int64_t tm, tn;
};

inline Grid choose_grid(int64_t m, int64_t n, int64_t threads) {
  Grid best{1, threads};
  double least = -1.0;
  for (int64_t tm = 1; tm <= threads; ++tm) {
    if (threads % tm) continue;
    const int64_t tn = threads / tm;
    // Blocks of fewer than 16 columns or 8 rows waste the micro-kernel's width.
    const double rows = (double)max64(ceil_div(m, tm), 8), cols = (double)max64(ceil_div(n, tn), 16);
    const double cost = rows * cols * 1e-3 * (double)(m + n) + rows + cols;
    if (least < 0.0 || cost < least) {
      least = cost;
      best = {tm, tn};
    }
  }
  return best;
}

// The part of a product that thread `id` of the grid computes; to be called inside a parallel region.
inline void sgemm_part(Grid g, int64_t id, bool ta, bool tb, int64_t m, int64_t n, int64_t k,
                       float alpha, const float* a, int64_t lda, const float* b, int64_t ldb,
                       float beta, float* c, int64_t ldc) {
  if (id >= g.tm * g.tn) return;
  const Range r = split(m, g.tm, id / g.tn, m >= 16 * g.tm ? 8 : 1);
  const Range s = split(n, g.tn, id % g.tn, n >= 32 * g.tn ? 16 : 1);
  sgemm(ta, tb, r.end - r.begin, s.end - s.begin, k, alpha, ta ? a + r.begin : a + r.begin * lda,
        lda, tb ? b + s.begin * ldb : b + s.begin, ldb, beta, c + r.begin * ldc + s.begin, ldc);
}

inline void sgemm_parallel(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha,
                           const float* a, int64_t lda, const float* b, int64_t ldb, float beta,
                           float* c, int64_t ldc, int threads) {
  if (m <= 0 || n <= 0) return;
  if (threads == 1 || m * n * max64(k, 1) < 32768) {
    sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  const Grid g = choose_grid(m, n, threads);
#pragma omp parallel num_threads(threads)
  sgemm_part(g, omp_get_thread_num(), ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

// out [n] = beta*out + alpha * column sums of a [m,n] (row stride lda), split over the columns.
inline void column_sums(float* out, const float* a, int64_t m, int64_t n, int64_t lda, float alpha,
                        float beta, int threads) {
  const int64_t block = 128;
#pragma omp parallel for num_threads(threads) schedule(static) if (m * n > 16384)
  for (int64_t j0 = 0; j0 < n; j0 += block) {
    const int64_t w = min64(block, n - j0);
    float sum[block];
    for (int64_t j = 0; j < w; ++j) sum[j] = 0.0f;
    for (int64_t i = 0; i < m; ++i) {
      const float* row = a + i * lda + j0;
      PYCAP_SIMD for (int64_t j = 0; j < w; ++j) sum[j] += row[j];
    }
    if (beta == 0.0f) {
      PYCAP_SIMD for (int64_t j = 0; j < w; ++j) out[j0 + j] = alpha * sum[j];
    } else {
      PYCAP_SIMD for (int64_t j = 0; j < w; ++j) out[j0 + j] = beta * out[j0 + j] + alpha * sum[j];
    }
  }
}

}  // namespace
