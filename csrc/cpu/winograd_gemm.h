// The product of the Winograd domain: blocks laid out for it, the next block fetched meanwhile.
#pragma once
#include "micro_gemm.h"

namespace {

// c [R, NV*VL] = (add ? c : 0) + a [R, k] * b [k, NV*VL], a and b contiguous; meanwhile
// k * step floats from `ahead` are brought near.
template <int R, int NV>
inline void micro_ahead(int64_t k, const float* a, const float* b, float* c, int64_t ldc, bool add,
                        const float* ahead, int64_t step) {
  Vec sum[R][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum[i][j] = Vec{};
  for (int64_t p = 0; p < k; ++p) {
    __builtin_prefetch(ahead + p * step, 0, 2);
    Vec row[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) row[j] = load(b + (p * NV + j) * VL);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vec v = broadcast(a[i * k + p]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) sum[i][j] += v * row[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      float* to = c + i * ldc + j * VL;
      store(to, add ? load(to) + sum[i][j] : sum[i][j]);
    }
}

template <int NV, int R = MR>
inline void micro_rows_ahead(int64_t rows, int64_t k, const float* a, const float* b, float* c,
                             int64_t ldc, bool add, const float* ahead, int64_t step) {
  if (rows == R) {
    micro_ahead<R, NV>(k, a, b, c, ldc, add, ahead, step);
  } else if constexpr (R > 1) {
    micro_rows_ahead<NV, R - 1>(rows, k, a, b, c, ldc, add, ahead, step);
  }
}

// c [m,n] (row stride ldc) = (add ? c : 0) + a [m,k] * b, where b stands in panels [k, NR] (the
// last may be [k, VL]); next: an operand as large as a, wanted after this.
inline void gemm_ahead(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c,
                       int64_t ldc, bool add, const float* next) {
  const int64_t blocks = ceil_div(m, MR), panels = ceil_div(n, NR), step = ceil_div(MR, panels);
  for (int64_t j = 0; j < panels; ++j) {
    const float* panel = b + j * NR * k;
    for (int64_t i = 0; i < blocks; ++i) {
      const Range r = split(m, blocks, i);
      const int64_t rows = r.end - r.begin;
      const float* ahead = next + (r.begin * panels + rows * j) * k / panels;
      float* to = c + r.begin * ldc + j * NR;
      if (n - j * NR >= NR)
        micro_rows_ahead<2>(rows, k, a + r.begin * k, panel, to, ldc, add, ahead, step);
      else
        micro_rows_ahead<1>(rows, k, a + r.begin * k, panel, to, ldc, add, ahead, step);
    }
  }
}

}  // namespace
