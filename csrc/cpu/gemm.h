// Matrix products split over our own threads. Row-major throughout.
//
// Most products run on the micro-kernel of micro_gemm.h: a block of b is packed at a time, on the
// stack, and a is read in place unless it is transposed. OpenBLAS (single-threaded) takes the rest.
#pragma once
#include "few_rows.h"
#include "micro_gemm.h"

extern "C" void scipy_cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k,
                                  float alpha, const float* a, int lda, const float* b, int ldb,
                                  float beta, float* c, int ldc);

namespace {

constexpr int64_t KC = 256;  // depth of a packed panel: KC * NR floats stay in the L1 cache
constexpr int64_t NC = 512;  // columns of b packed at once: KC * NC floats stay in the L2 cache
constexpr int64_t MC = 96;   // rows of a packed at once, beside them in the L2 cache

// Which rows of the matrices as they lie in memory take part, in order; null: all of them. a's are
// the rows of op(a), or its columns where a is transposed; b must be plain where its rows are
// picked.
struct Picks {
  const int32_t* a = nullptr;
  const int32_t* b = nullptr;
  const int32_t* c = nullptr;
};

inline int64_t picked(const int32_t* pick, int64_t i) { return pick ? pick[i] : i; }

// to [k, NR] = alpha * columns [0, width) of op(b), zeros beyond; pick: rows of a plain b.
inline void pack_panel(float* to, const float* b, int64_t ldb, bool tb, int64_t k, int64_t width,
                       float alpha, const int32_t* pick = nullptr) {
  if (!tb) {
    for (int64_t p = 0; p < k; ++p) {
      const float* from = b + picked(pick, p) * ldb;
      if (width == NR) {
        for (int64_t j = 0; j < NR; j += VL) store(to + p * NR + j, alpha * load(from + j));
      } else {
        for (int64_t j = 0; j < NR; ++j) to[p * NR + j] = j < width ? alpha * from[j] : 0.0f;
      }
    }
    return;
  }
  for (int64_t j0 = 0; j0 < NR; j0 += VL) {
    int64_t p = 0;
    if (j0 + VL <= width)
      for (; p + VL <= k; p += VL) {
        Vec block[VL];
        for (int64_t j = 0; j < VL; ++j) block[j] = alpha * load(b + (j0 + j) * ldb + p);
        transpose(block);
        for (int64_t i = 0; i < VL; ++i) store(to + (p + i) * NR + j0, block[i]);
      }
    for (; p < k; ++p)
      for (int64_t j = j0; j < j0 + VL; ++j)
        to[p * NR + j] = j < width ? alpha * b[j * ldb + p] : 0.0f;
  }
}

inline void scale_rows(float* c, int64_t ldc, const int32_t* pick, int64_t m, int64_t n,
                       float beta) {
  for (int64_t i = 0; i < m; ++i) scale_beta(c + picked(pick, i) * ldc, n, beta);
}

// Rows i0, i0+1, .. i0+m-1 (width columns) of c from a [m, k] at `from` and one packed panel.
inline void gemm_tile_rows(float* c, int64_t ldc, const int32_t* pick, int64_t i0, int64_t m,
                           int64_t width, int64_t k, const float* from, int64_t ars, int64_t acs,
                           const float* panel, bool add) {
  alignas(64) float tile[MR * NR];
  const int64_t blocks = ceil_div(m, MR);
  for (int64_t q = 0; q < blocks; ++q) {
    const Range r = split(m, blocks, q);
    const int64_t rows = r.end - r.begin;
    for (int64_t i = r.begin; i < r.end; ++i)
      for (int64_t j = 0; j < width; j += 16)
        __builtin_prefetch(c + picked(pick, i0 + i) * ldc + j, 1);
    if (width == NR && !pick) {
      micro_rows<2>(rows, k, from + r.begin * ars, ars, acs, panel, NR, c + (i0 + r.begin) * ldc,
                    ldc, add);
      continue;
    }
    micro_rows<2>(rows, k, from + r.begin * ars, ars, acs, panel, NR, tile, NR, false);
    for (int64_t i = 0; i < rows; ++i) {
      float* to = c + picked(pick, i0 + r.begin + i) * ldc;
      for (int64_t j = 0; j < width; ++j) to[j] = (add ? to[j] : 0.0f) + tile[i * NR + j];
    }
  }
}

// c [m,n] = alpha * op(a) [m,k] * op(b) [k,n] + beta*c on the micro-kernel, m, n, k > 0. A block of
// b is packed once for all rows, and a block of a where it is transposed or picked.
inline void gemm_blocked(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha,
                         const float* a, int64_t lda, const float* b, int64_t ldb, float beta,
                         float* c, int64_t ldc, Picks pick = {}) {
  alignas(64) float panels[KC * NC];
  alignas(64) float rows[2 * KC * MC];
  // Deep blocks read and write c less often; shallow, wide ones pack a transposed a less often.
  const int64_t depth = ta ? KC : 2 * KC, wide = ta ? NC : NC / 2;
  if (beta != 0.0f && beta != 1.0f) scale_rows(c, ldc, pick.c, m, n, beta);
  for (int64_t j0 = 0; j0 < n; j0 += wide) {
    const int64_t nb = min64(wide, n - j0);
    for (int64_t p0 = 0; p0 < k; p0 += depth) {
      const int64_t kb = min64(depth, k - p0);
      const bool add = p0 > 0 || beta != 0.0f;
      for (int64_t j = 0; j < nb; j += NR) {
        const float* at = tb ? b + (j0 + j) * ldb + p0 : b + j0 + j + (pick.b ? 0 : p0 * ldb);
        pack_panel(panels + j * kb, at, ldb, tb, kb, min64(NR, nb - j), alpha,
                   pick.b ? pick.b + p0 : nullptr);
      }
      for (int64_t i0 = 0; i0 < m; i0 += MC) {
        const int64_t mb = min64(MC, m - i0);
        const float* from = rows;
        int64_t ars = kb, acs = 1;
        if (ta) {
          for (int64_t p = 0; p < kb; ++p)
            memcpy(rows + p * mb, a + picked(pick.a, p0 + p) * lda + i0, sizeof(float) * mb);
          ars = 1, acs = mb;
        } else if (pick.a) {
          for (int64_t i = 0; i < mb; ++i)
            memcpy(rows + i * kb, a + pick.a[i0 + i] * lda + p0, sizeof(float) * kb);
        } else {
          from = a + i0 * lda + p0, ars = lda;
        }
        for (int64_t j = 0; j < nb; j += NR)
          gemm_tile_rows(c + j0 + j, ldc, pick.c, i0, mb, min64(NR, nb - j), kb, from, ars, acs,
                         panels + j * kb, add);
      }
    }
  }
}

// The same for few rows, or few terms a sum, and plain b: nothing is packed, since each element of
// b or of c is used too rarely to pay for it; memory is walked along rows. n must be a multiple of
// NR.
inline void gemm_streaming(bool ta, int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                           const float* b, int64_t ldb, float beta, float* c, int64_t ldc) {
  const int64_t ars = ta ? 1 : lda, acs = ta ? lda : 1, depth = k <= 32 ? k : 16;
  for (int64_t i0 = 0; i0 < m; i0 += MR) {
    const int64_t mb = min64(MR, m - i0);
    if (beta != 0.0f && beta != 1.0f)
      for (int64_t i = i0; i < i0 + mb; ++i) scale_beta(c + i * ldc, n, beta);
    for (int64_t p0 = 0; p0 < k; p0 += depth)
      for (int64_t j0 = 0; j0 < n; j0 += NR)
        gemm_panel(mb, NR, min64(depth, k - p0), a + i0 * ars + p0 * acs, ars, acs,
                   b + p0 * ldb + j0, ldb, c + i0 * ldc + j0, ldc, p0 > 0 || beta != 0.0f);
  }
}

// OpenBLAS counts in 32 bits: what is longer is left to the micro-kernel, however slow it is at it.
inline void gemm_openblas(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha,
                          const float* a, int64_t lda, const float* b, int64_t ldb, float beta,
                          float* c, int64_t ldc) {
  if (max64(max64(m, n), max64(max64(k, lda), max64(ldb, ldc))) > INT32_MAX) {
    gemm_blocked(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  foreign_read(a, ta ? k : m, ta ? m : k, lda);
  foreign_read(b, tb ? n : k, tb ? k : n, ldb);
  foreign_write(c, m, n, ldc);
  constexpr int kRowMajor = 101, kNoTrans = 111, kTrans = 112;
  scipy_cblas_sgemm(kRowMajor, ta ? kTrans : kNoTrans, tb ? kTrans : kNoTrans, (int)m, (int)n,
                    (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

// c [m,n] = alpha * op(a) [m,k] * op(b) [k,n] + beta*c; beta 0 does not read c. Sizes may be 0.
// Which routine serves which shape was measured on an AVX-512 machine (VGG's and the captioners'
// shapes): OpenBLAS packs a transposed b more cheaply where few rows use it.
inline void sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
                  int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc,
                  Picks pick = {}) {
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    scale_rows(c, ldc, pick.c, m, n, beta);
    return;
  }
  const bool picks = pick.a || pick.b || pick.c;
  if (!picks && !ta && tb && alpha == 1.0f && (beta == 0.0f || beta == 1.0f) &&
      is_few_rows(m, n, k)) {
    few_rows(c, ldc, a, lda, b, ldb, m, n, k, beta != 0.0f);
    return;
  }
  if (!picks && !tb && alpha == 1.0f && n >= NR && (m <= MR || k <= 32)) {
    const int64_t whole = n / NR * NR;
    gemm_streaming(ta, m, whole, k, a, lda, b, ldb, beta, c, ldc);
    if (whole < n)
      gemm_openblas(ta, false, m, n - whole, k, 1.0f, a, lda, b + whole, ldb, beta, c + whole, ldc);
  } else if (picks || (m >= MR && n >= NR && k >= 8 && (!tb || m <= MC || m >= 512))) {
    gemm_blocked(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, pick);
  } else {
    gemm_openblas(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  }
}

// How `threads` workers share an [m,n] result: tm * tn <= threads parts with the least packing
// (m/tm + n/tn).
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
    const double rows = (double)max64(ceil_div(m, tm), 8),
                 cols = (double)max64(ceil_div(n, tn), 16);
    const double cost = rows * cols * 1e-3 * (double)(m + n) + rows + cols;
    if (least < 0.0 || cost < least) {
      least = cost;
      best = {tm, tn};
    }
  }
  return best;
}

// The part of a product that thread `id` of the grid computes; to be called inside a parallel
// region.
inline void sgemm_part(Grid g, int64_t id, bool ta, bool tb, int64_t m, int64_t n, int64_t k,
                       float alpha, const float* a, int64_t lda, const float* b, int64_t ldb,
                       float beta, float* c, int64_t ldc, Picks pick = {}) {
  if (id >= g.tm * g.tn) return;
  const Range r = split(m, g.tm, id / g.tn, m >= 16 * g.tm ? 8 : 1);
  const Range s = split(n, g.tn, id % g.tn, n >= 2 * NR * g.tn ? NR : 1);
  const float* rows_of_a = ta ? a + r.begin : pick.a ? a : a + r.begin * lda;
  float* rows_of_c = pick.c ? c : c + r.begin * ldc;
  if (!ta && pick.a) pick.a += r.begin;
  if (pick.c) pick.c += r.begin;
  sgemm(ta, tb, r.end - r.begin, s.end - s.begin, k, alpha, rows_of_a, lda,
        tb ? b + s.begin * ldb : b + s.begin, ldb, beta, rows_of_c + s.begin, ldc, pick);
}

// Terms of a product (10 us of one thread's time) under which a second thread costs more than it
// gains, and far more when another program has the core it is waiting for.
constexpr int64_t kWorthThreads = 200000;

inline void sgemm_parallel(bool ta, bool tb, int64_t m, int64_t n, int64_t k, float alpha,
                           const float* a, int64_t lda, const float* b, int64_t ldb, float beta,
                           float* c, int64_t ldc, int threads, Picks pick = {}) {
  if (m <= 0 || n <= 0) return;
  if (threads == 1 || m * n * max64(k, 1) < kWorthThreads) {
    sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, pick);
    return;
  }
  const Grid g = choose_grid(m, n, threads);
#pragma omp parallel num_threads(threads)
  sgemm_part(g, omp_get_thread_num(), ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, pick);
}

// out [n] = beta*out + alpha * column sums of a [m,n] (row stride lda), split over the columns;
// pick: the rows that count.
inline void column_sums(float* out, const float* a, int64_t m, int64_t n, int64_t lda, float alpha,
                        float beta, int threads, const int32_t* pick = nullptr) {
  constexpr int64_t most = 2048;
  const int64_t block = max64(16, min64(most, ceil_div(ceil_div(n, threads), 16) * 16));
#pragma omp parallel for num_threads(threads) schedule(static) if (m * n > 65536)
  for (int64_t j0 = 0; j0 < n; j0 += block) {
    const int64_t w = min64(block, n - j0);
    float sum[most];
    for (int64_t j = 0; j < w; ++j) sum[j] = 0.0f;
    for (int64_t i = 0; i < m; ++i) {
      const float* row = a + picked(pick, i) * lda + j0;
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
