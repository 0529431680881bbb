// What the steps of an LSTM share: which rows run at which step, how the threads share them, and
// products with a weight that is packed once for all steps.
#pragma once
#include "gemm.h"
#include "pycap/lstm.h"

namespace {

using pycap::LstmShape;

// Each thread owns rows (batch) and hidden columns. The recurrence never mixes rows, so while the
// batch is large enough the threads split rows only and need no barrier. Else they split columns
// and meet at every step, which pays from 25 us of work a step on.
inline Grid step_grid(const LstmShape& s, int threads) {
  const int64_t terms = s.N * s.H * s.H * 4;  // of a step
  if (s.N >= 16 * threads) return {s.T * terms < kWorthThreads ? 1 : threads, 1};
  if (terms < 2 * kWorthThreads) return {1, 1};
  return {1, min64(threads, max64(s.H / 16, 1))};
}

// A packed weight pays when it is used for several steps; its columns must fill whole panels.
inline bool packs(const LstmShape& s) { return s.T > 1 && s.N >= 4 && s.H % NR == 0; }

inline int64_t packed_floats(const LstmShape& s) { return packs(s) ? 4 * s.H * s.H : 0; }

// packed: panels of NR columns of op(w) [k, n], each [k, NR].
inline void pack_all(float* packed, const float* w, bool transposed, int64_t k, int64_t n,
                     int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (k * n > 65536)
  for (int64_t j0 = 0; j0 < n; j0 += NR)
    pack_panel(packed + j0 * k, transposed ? w + j0 * k : w + j0, transposed ? k : n, transposed, k,
               NR, 1.0f);
}

// c [m, n] = a [m, k] * columns [j0, j0 + n) of packed, deep sums in cache-sized parts.
inline void multiply_packed(float* c, int64_t ldc, const float* a, int64_t lda, const float* packed,
                            int64_t m, int64_t n, int64_t k, int64_t j0) {
  for (int64_t j = 0; j < n; j += NR)
    for (int64_t p = 0; p < k; p += KC)
      gemm_panel(m, NR, min64(KC, k - p), a + p, lda, 1, packed + (j0 + j) * k + p * NR, NR, c + j,
                 ldc, p > 0);
}

// The cells (t, n) that a mask lets run, t by t: cell[i] = t*N + n for i in [first[t],
// first[t + 1]). Steps from 1 on have a predecessor: before[i] = cell[i] - N.
struct Cells {
  int64_t* first;  // [T + 1]
  int32_t* cell;
  int32_t* before;
  int64_t count;
};

inline size_t cells_bytes(const LstmShape& s) {
  return sizeof(float) * (size_t)(2 * align_floats(s.T + 1) + 2 * align_floats(s.T * s.N));
}

// Room for `cells_bytes` at ws; without a mask every cell runs.
inline Cells find_cells(const uint8_t* mask, const LstmShape& s, void* ws) {
  Cells c;
  c.first = static_cast<int64_t*>(ws);
  c.cell = reinterpret_cast<int32_t*>(c.first + align_floats(s.T + 1));
  c.before = c.cell + align_floats(s.T * s.N);
  int64_t i = 0;
  for (int64_t t = 0; t < s.T; ++t) {
    c.first[t] = i;
    for (int64_t at = t * s.N; at < (t + 1) * s.N; ++at) {
      if (mask && !mask[at]) continue;
      c.cell[i] = (int32_t)at;
      c.before[i++] = (int32_t)(at - s.N);
    }
  }
  c.first[s.T] = c.count = i;
  return c;
}

// What one thread does: rows and hidden columns, and which cells of its rows run at a step.
struct Share {
  Range rows, cols;

  Share(const LstmShape& s, Grid grid, int64_t id, const Cells& cells, const uint8_t* mask)
      : rows(split(s.N, grid.tm, id / grid.tn)),
        cols(split(s.H, grid.tn, id % grid.tn, packs(s) ? NR : 16)) {
    if (mask && grid.tm > 1) rows = balanced(s, grid.tm, id / grid.tn, cells, mask);
  }

  // Step t's cells within the rows, as a part of cells.cell.
  Range running(const Cells& cells, int64_t t, int64_t N) const {
    Range r{cells.first[t], cells.first[t + 1]};
    if (r.end - r.begin == N) return {r.begin + rows.begin, r.begin + rows.end};
    while (r.begin < r.end && cells.cell[r.begin] < t * N + rows.begin) ++r.begin;
    while (r.end > r.begin && cells.cell[r.end - 1] >= t * N + rows.end) --r.end;
    return r;
  }

 private:
  // Part i of rows that hold about equally many running cells.
  static Range balanced(const LstmShape& s, int64_t parts, int64_t i, const Cells& cells,
                        const uint8_t* mask) {
    Range r{i ? s.N : 0, s.N};
    int64_t seen = 0;
    for (int64_t n = 0; n < s.N; ++n) {
      if (i > 0 && r.begin == s.N && seen * parts >= cells.count * i) r.begin = n;
      if (i + 1 < parts && seen * parts >= cells.count * (i + 1)) {
        r.end = n;
        break;
      }
      for (int64_t t = 0; t < s.T; ++t) seen += mask[t * s.N + n] != 0;
    }
    return {min64(r.begin, r.end), r.end};
  }
};

}  // namespace
