// The product of the Winograd domain: blocks laid out for it, the next block fetched meanwhile.
#pragma once
#include "micro_gemm.h"

namespace {

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
        micro_rows<2>(rows, k, a + r.begin * k, k, 1, panel, NR, to, ldc, add, Ahead{ahead, step});
      else
        micro_rows<1>(rows, k, a + r.begin * k, k, 1, panel, VL, to, ldc, add, Ahead{ahead, step});
    }
  }
}

}  // namespace
