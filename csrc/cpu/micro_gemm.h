// Small matrix products on operands laid out for them: no packing at call time, all sums in
// registers.
#pragma once
#include "simd.h"

namespace {

#if defined(PYCAP_V4)
constexpr int64_t MR = 12;  // 24 of 32 registers hold sums
#else
constexpr int64_t MR = 6;  // 12 of 16
#endif
constexpr int64_t NR = 2 * VL;

// Memory that is wanted soon: `step` floats of it are brought near with each term of a product.
struct Ahead {
  const float* at;
  int64_t step;
  void fetch(int64_t term) const { __builtin_prefetch(at + term * step, 0, 2); }
};

struct NothingAhead {
  void fetch(int64_t) const {}
};

// c [R, NV*VL] = (add ? c : 0) + a [R, k] (element i,p at i*ars + p*acs) * b [k, NV*VL] (row stride
// ldb).
template <int R, int NV, class Next>
inline void micro(int64_t k, const float* a, int64_t ars, int64_t acs, const float* b, int64_t ldb,
                  float* c, int64_t ldc, bool add, Next next) {
  Vec sum[R][NV];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) sum[i][j] = Vec{};
  for (int64_t p = 0; p < k; ++p) {
    next.fetch(p);
    Vec row[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) row[j] = load(b + p * ldb + j * VL);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vec v = broadcast(a[i * ars + p * acs]);
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

template <int NV, int R = MR, class Next = NothingAhead>
inline void micro_rows(int64_t rows, int64_t k, const float* a, int64_t ars, int64_t acs,
                       const float* b, int64_t ldb, float* c, int64_t ldc, bool add,
                       Next next = {}) {
  if (rows == R) {
    micro<R, NV>(k, a, ars, acs, b, ldb, c, ldc, add, next);
  } else if constexpr (R > 1) {
    micro_rows<NV, R - 1>(rows, k, a, ars, acs, b, ldb, c, ldc, add, next);
  }
}

// One column panel of width `width` (NR or VL): c [m, width] = (add ? c : 0) + a * b. Rows are
// shared out evenly, so that no block is so short that the products wait for one another.
inline void gemm_panel(int64_t m, int64_t width, int64_t k, const float* a, int64_t ars,
                       int64_t acs, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  const int64_t blocks = ceil_div(m, MR);
  for (int64_t i = 0; i < blocks; ++i) {
    const Range r = split(m, blocks, i);
    const float* from = a + r.begin * ars;
    if (width == NR)
      micro_rows<2>(r.end - r.begin, k, from, ars, acs, b, ldb, c + r.begin * ldc, ldc, add);
    else
      micro_rows<1>(r.end - r.begin, k, from, ars, acs, b, ldb, c + r.begin * ldc, ldc, add);
  }
}

}  // namespace
