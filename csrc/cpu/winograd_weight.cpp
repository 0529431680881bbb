// Winograd weight gradient F(3x3, 4x4): dU = sum over tiles of (A dy A^T)^T (B^T x B) at each
// position, dw = G^T dU G.
#include "micro_gemm.h"
#include "winograd.h"
#include "winograd_tiles.h"

namespace pycap::PYCAP_ISA {
namespace {

struct Plan {
  TileMap map;
  int64_t tiles;
  bool shared;  // one dU, its parts shared out over threads; else one dU a thread, tiles shared out
  int64_t block;  // tiles transformed at a time
  int64_t ldv, ldm, xsv, xsm;
  int64_t du;  // floats of one dU
};

Plan make_plan(const ConvShape& s, int threads) {
  Plan p;
  p.map = {ceil_div(s.H, 4), ceil_div(s.W, 4)};
  p.tiles = s.N * p.map.rows * p.map.cols;
  p.du = 36 * s.K * s.C;
  p.shared = s.K * s.C > 64 * 128;
  const int64_t tile = 36 * (s.C + s.K);
  if (p.shared) {
    const int64_t budget = int64_t{6} << 20;  // floats: 24 MiB of transformed tiles
    p.block = max64(96, min64(budget / tile, 1024));
    const int64_t rounds = max64(ceil_div(p.tiles, p.block), 1);
    p.block = max64(ceil_div(p.tiles, rounds), 1);
  } else {
    const int64_t block = max64(48, min64((160 * 1024) / tile, 192));
    const int64_t rounds = max64(ceil_div(p.tiles, block * threads), 1);
    p.block = max64(ceil_div(p.tiles, rounds * threads), 1);
  }
  p.ldv = s.C + 16;
  p.ldm = s.K + 16;
  p.xsv = p.block * p.ldv + 16;
  p.xsm = p.block * p.ldm + 16;
  return p;
}

int64_t zeros_floats(const ConvShape& s) { return align_floats(max64(s.C, s.K)); }

template <int KIND>
void transform(float* v, float* m, float* db, const Source& x, const Source& dy, const Plan& p,
               int64_t first, Range tiles) {
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    int64_t n, i, j;
    p.map.locate(t, &n, &i, &j);
    input_tile<kPlain>(v + (t - first) * p.ldv, p.xsv, Patch<kPlain, 6>(x, n, i, j), 0, x.C);
    gradient_tile<KIND>(m + (t - first) * p.ldm, p.xsm, db, dy, n, i, j);
  }
}

// Rows [k0, k1) of one position's dU [K,C] += M^T V over `count` tiles.
void accumulate(float* du, const float* v, const float* m, int64_t count, int64_t k0, int64_t k1,
                const ConvShape& s, const Plan& p) {
  for (int64_t c0 = 0; c0 < s.C; c0 += NR)
    gemm_panel(k1 - k0, min64(NR, s.C - c0), count, m + k0, 1, p.ldm, v + c0, p.ldv,
               du + k0 * s.C + c0, s.C, true);
}

// dw rows of one output channel from `parts` copies of dU, added in their order.
void filter_gradient(float* dw, const float* du, int64_t parts, const ConvShape& s, int64_t k,
                     float beta) {
  const int64_t xs = s.K * s.C, all = 36 * xs;
  for (int64_t c = 0; c < s.C; c += VL) {
    Vec u[36], t[18], o[9];
    for (int x = 0; x < 36; ++x) {
      const float* from = du + x * xs + k * s.C + c;
      u[x] = load(from);
      for (int64_t part = 1; part < parts; ++part) u[x] += load(from + part * all);
    }
#pragma GCC unroll 6
    for (int l = 0; l < 6; ++l) transform_filter_gradient(t + l, 6, u + l, 6);
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) transform_filter_gradient(o + 3 * r, 1, t + 6 * r, 1);
    for (int rs = 0; rs < 9; ++rs) {
      float* to = dw + (k * 9 + rs) * s.C + c;
      store(to, beta == 0.0f ? o[rs] : beta * load(to) + o[rs]);
    }
  }
}

struct Buffers {
  float *zeros, *db, *du, *tiles;
};

template <int KIND>
void run(float* dw, float* db, Source x, Source dy, const ConvShape& s, float beta_w, float beta_b,
         const Plan& p, const Buffers& buf, int threads) {
  x.zeros = dy.zeros = buf.zeros;
  const int64_t ldb = align_floats(s.K);
  const int64_t k_parts = p.shared ? min64(s.K / 16, ceil_div(4 * threads, 36)) : 1;
#pragma omp parallel num_threads(threads)
  {
    const int64_t team = omp_get_num_threads(), id = omp_get_thread_num();
    // Two levels of sums: one block's, then all blocks', so that the error does not grow with the
    // batch.
    float* sum_b = buf.db + id * 2 * ldb;
    float* block_b = sum_b + ldb;
    memset(sum_b, 0, sizeof(float) * s.K);
    const auto fold_bias = [&] {
      PYCAP_SIMD for (int64_t k = 0; k < s.K; ++k) sum_b[k] += block_b[k];
    };
    if (p.shared) {
      float* v = buf.tiles;
      float* m = v + 36 * p.xsv;
      const Range clear = split(p.du, team, id, 16);
      memset(buf.du + clear.begin, 0, sizeof(float) * (clear.end - clear.begin));
      for (int64_t first = 0; first < p.tiles; first += p.block) {
        const int64_t count = min64(p.block, p.tiles - first);
        const Range part = split(count, team, id);
        memset(block_b, 0, sizeof(float) * s.K);
        transform<KIND>(v, m, block_b, x, dy, p, first, {first + part.begin, first + part.end});
        fold_bias();
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < 36 * k_parts; ++unit) {
          const int64_t xi = unit / k_parts;
          const Range ks = split(s.K, k_parts, unit % k_parts, 4);
          accumulate(buf.du + xi * s.K * s.C, v + xi * p.xsv, m + xi * p.xsm, count, ks.begin,
                     ks.end, s, p);
        }
      }
    } else {
      float* v = buf.tiles + id * 36 * (p.xsv + p.xsm);
      float* m = v + 36 * p.xsv;
      float* du = buf.du + id * p.du;
      memset(du, 0, sizeof(float) * p.du);
      const Range mine = split(p.tiles, team, id);
      for (int64_t first = mine.begin; first < mine.end; first += p.block) {
        const int64_t count = min64(p.block, mine.end - first);
        memset(block_b, 0, sizeof(float) * s.K);
        transform<KIND>(v, m, block_b, x, dy, p, first, {first, first + count});
        fold_bias();
        for (int64_t xi = 0; xi < 36; ++xi)
          accumulate(du + xi * s.K * s.C, v + xi * p.xsv, m + xi * p.xsm, count, 0, s.K, s, p);
      }
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t k = 0; k < s.K; ++k)
      filter_gradient(dw, buf.du, p.shared ? 1 : team, s, k, beta_w);
#pragma omp single
    if (db) {
      for (int64_t t = 1; t < team; ++t)
        PYCAP_SIMD for (int64_t k = 0; k < s.K; ++k) buf.db[k] += buf.db[t * 2 * ldb + k];
      store_beta(db, buf.db, s.K, beta_b);
    }
  }
}

}  // namespace

size_t winograd_weight_workspace(const ConvShape& s, int threads) {
  const Plan p = make_plan(s, threads);
  const int64_t copies = p.shared ? 1 : threads;
  return sizeof(float) * (size_t)(zeros_floats(s) + threads * 2 * align_floats(s.K) +
                                  copies * (p.du + 36 * (p.xsv + p.xsm)));
}

void winograd_backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                              const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                              void* ws, int threads) {
  const Plan p = make_plan(s, threads);
  Buffers buf;
  buf.zeros = static_cast<float*>(ws);
  buf.db = buf.zeros + zeros_floats(s);
  buf.du = buf.db + threads * 2 * align_floats(s.K);
  buf.tiles = buf.du + (p.shared ? 1 : threads) * p.du;
  memset(buf.zeros, 0, sizeof(float) * zeros_floats(s));
  const Source from{x, nullptr, nullptr, s.H, s.W, s.C, nullptr};
  const Source grad{dy, y, argmax, s.P, s.Q, s.K, nullptr};
  if (argmax)
    run<kPooled>(dw, db, from, grad, s, beta_w, beta_b, p, buf, threads);
  else if (y)
    run<kMasked>(dw, db, from, grad, s, beta_w, beta_b, p, buf, threads);
  else
    run<kPlain>(dw, db, from, grad, s, beta_w, beta_b, p, buf, threads);
}

}  // namespace pycap::PYCAP_ISA
