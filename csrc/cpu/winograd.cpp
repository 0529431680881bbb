// Winograd forward and data gradient: transform patches, 36 products, transform back (Lavin and
// Gray, arXiv:1509.09308).
#include "winograd.h"

#include "micro_gemm.h"
#include "winograd_tiles.h"

namespace pycap::PYCAP_ISA {
namespace {

// One direction of the layer: `in` channels are multiplied into `out` channels.
struct Plan {
  TileMap map;
  int64_t tiles, in, out;
  bool by_panel;  // few tiles: threads share out the output channels instead of the tiles
  int64_t block;  // tiles a block
  int64_t ldv,
      ldm;  // row strides of V and M, off the powers of two that would collide in the cache
  int64_t xsv, xsm;  // strides between the 36 positions
};

Plan make_plan(const ConvShape& s, bool data, int threads) {
  Plan p;
  p.map = {ceil_div(s.H, 4), ceil_div(s.W, 4)};
  p.tiles = s.N * p.map.rows * p.map.cols;
  p.in = data ? s.K : s.C;
  p.out = data ? s.C : s.K;
  const int64_t panels = ceil_div(p.out, NR);
  p.by_panel = p.tiles <= 256 && panels >= threads && p.in * p.out >= 128 * 128;
  if (p.by_panel) {
    p.block = max64(p.tiles, 1);
  } else {
    // V and M of a block stay in the L2 cache, but a block is never too short for the products.
    int64_t block = (160 * 1024) / (36 * (p.in + p.out)) / MR * MR;
    block = max64(48, min64(block, 192));
    const int64_t blocks = max64(ceil_div(p.tiles, block), 1);
    const int64_t rounds = ceil_div(blocks, threads);
    p.block = max64(ceil_div(p.tiles, rounds * threads), 1);
  }
  p.ldv = p.in + 16;
  p.ldm = (p.by_panel ? NR : p.out) + 16;
  p.xsv = p.block * p.ldv + 16;
  p.xsm = p.block * p.ldm + 16;
  return p;
}

int64_t zeros_floats(const ConvShape& s) { return align_floats(max64(s.C, s.K)); }

// u[xi*xs] [VL] = G g G^T of the nine taps in [9].
inline void filter_tile(float* u, int64_t xs, const Vec* in) {
  Vec t[18];
#pragma GCC unroll 3
  for (int l = 0; l < 3; ++l) transform_filter(t + l, 3, in + l, 3);
#pragma GCC unroll 6
  for (int r = 0; r < 6; ++r) {
    Vec o[6];
    transform_filter(o, 1, t + 3 * r, 1);
#pragma GCC unroll 6
    for (int l = 0; l < 6; ++l) store(u + (6 * r + l) * xs, o[l]);
  }
}

// u[xi*xs + c*width + j] = the transformed filter of input channel c and output channel k0 + j. The
// vectors run over output channels, which lie far apart in w: blocks of VL x VL are transposed.
void pack_forward(float* u, int64_t xs, const float* w, int64_t C, int64_t k0, int64_t width) {
  for (int64_t j = 0; j < width; j += VL) {
    for (int64_t c = 0; c < C; c += VL) {
      alignas(64) float taps[9][VL * VL];
      for (int64_t rs = 0; rs < 9; ++rs) {
        Vec block[VL];
        for (int64_t l = 0; l < VL; ++l) block[l] = load(w + ((k0 + j + l) * 9 + rs) * C + c);
        transpose(block);
        for (int64_t l = 0; l < VL; ++l) store(&taps[rs][l * VL], block[l]);
      }
      for (int64_t l = 0; l < VL; ++l) {
        Vec in[9];
        for (int rs = 0; rs < 9; ++rs) in[rs] = load(&taps[rs][l * VL]);
        filter_tile(u + (c + l) * width + j, xs, in);
      }
    }
  }
}

// The same for the data gradient: filters rotated by 180 degrees, input channels k, output channels
// c0 + j.
void pack_data(float* u, int64_t xs, const float* w, int64_t K, int64_t C, int64_t c0,
               int64_t width) {
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t j = 0; j < width; j += VL) {
      Vec in[9];
      for (int rs = 0; rs < 9; ++rs) in[rs] = load(w + (k * 9 + 8 - rs) * C + c0 + j);
      filter_tile(u + k * width + j, xs, in);
    }
  }
}

template <int SINK>
void pack_filters(float* u, int64_t xs, const float* w, const Plan& p, int64_t j0, int64_t width) {
  if (SINK == kData)
    pack_data(u, xs, w, p.in, p.out, j0, width);
  else
    pack_forward(u, xs, w, p.in, j0, width);
}

template <int SOURCE>
void input_block(float* v, const Source& src, const Plan& p, int64_t first, Range tiles) {
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    int64_t n, i, j;
    p.map.locate(t, &n, &i, &j);
    input_tile<SOURCE>(v + (t - first) * p.ldv, p.xsv, src, n, i, j);
  }
}

// Threads take blocks of tiles; the transformed filters are shared.
template <int SOURCE, int SINK>
void run_by_tiles(const Source& src, const Sink& sink, const float* w, const Plan& p, float* ws,
                  int threads) {
  const int64_t panels = ceil_div(p.out, NR), blocks = ceil_div(p.tiles, p.block);
  const int64_t xsu = p.in * p.out;
  float* u = ws;
  float* scratch = u + 36 * xsu;
#pragma omp parallel num_threads(threads)
  {
    float* v = scratch + omp_get_thread_num() * 36 * (p.xsv + p.xsm);
    float* m = v + 36 * p.xsv;
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; ++panel)
      pack_filters<SINK>(u + panel * NR * p.in, xsu, w, p, panel * NR,
                         min64(NR, p.out - panel * NR));
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; ++block) {
      const Range tiles{block * p.block, min64(p.tiles, (block + 1) * p.block)};
      const int64_t count = tiles.end - tiles.begin;
      input_block<SOURCE>(v, src, p, tiles.begin, tiles);
      for (int64_t x = 0; x < 36; ++x)
        for (int64_t j0 = 0; j0 < p.out; j0 += NR) {
          const int64_t width = min64(NR, p.out - j0);
          gemm_panel(count, width, p.in, v + x * p.xsv, p.ldv, 1, u + x * xsu + j0 * p.in, width,
                     m + x * p.xsm + j0, p.ldm, false);
        }
      for (int64_t t = tiles.begin; t < tiles.end; ++t) {
        int64_t n, i, j;
        p.map.locate(t, &n, &i, &j);
        output_tile<SINK>(sink, m + (t - tiles.begin) * p.ldm, p.xsm, 0, p.out, n, i, j);
      }
    }
  }
}

// All tiles at once; threads take panels of output channels, each transforming its own filters just
// before use.
template <int SOURCE, int SINK>
void run_by_panels(const Source& src, const Sink& sink, const float* w, const Plan& p, float* ws,
                   int threads) {
  const int64_t panels = ceil_div(p.out, NR), xsu = p.in * NR + 16;
  float* v = ws;
  float* scratch = v + 36 * p.xsv;
#pragma omp parallel num_threads(threads)
  {
    float* u = scratch + omp_get_thread_num() * 36 * (xsu + p.xsm);
    float* m = u + 36 * xsu;
    const Range mine = split(p.tiles, omp_get_num_threads(), omp_get_thread_num());
    input_block<SOURCE>(v, src, p, 0, mine);
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t j0 = panel * NR, width = min64(NR, p.out - j0);
      pack_filters<SINK>(u, xsu, w, p, j0, width);
      for (int64_t x = 0; x < 36; ++x)
        gemm_panel(p.tiles, width, p.in, v + x * p.xsv, p.ldv, 1, u + x * xsu, width, m + x * p.xsm,
                   p.ldm, false);
      for (int64_t t = 0; t < p.tiles; ++t) {
        int64_t n, i, j;
        p.map.locate(t, &n, &i, &j);
        output_tile<SINK>(sink, m + t * p.ldm, p.xsm, j0, width, n, i, j);
      }
    }
  }
}

template <int SOURCE, int SINK>
void run(Source src, const Sink& sink, const float* w, const ConvShape& s, void* ws, int threads) {
  const Plan p = make_plan(s, SINK == kData, threads);
  if (p.tiles == 0) return;
  float* zeros = static_cast<float*>(ws);
  memset(zeros, 0, sizeof(float) * zeros_floats(s));
  src.zeros = zeros;
  float* rest = zeros + zeros_floats(s);
  if (p.by_panel)
    run_by_panels<SOURCE, SINK>(src, sink, w, p, rest, threads);
  else
    run_by_tiles<SOURCE, SINK>(src, sink, w, p, rest, threads);
}

}  // namespace

bool winograd_fits(const ConvShape& s) {
  return s.R == 3 && s.S == 3 && s.stride == 1 && s.pad == 1 && s.C % 16 == 0 && s.K % 16 == 0 &&
         s.C > 0 && s.K > 0;
}

size_t winograd_workspace(const ConvShape& s, bool data, int threads) {
  const Plan p = make_plan(s, data, threads);
  const int64_t shared = p.by_panel ? 36 * p.xsv : 36 * p.in * p.out;
  const int64_t each = 36 * (p.xsm + (p.by_panel ? p.in * NR + 16 : p.xsv));
  return sizeof(float) * (size_t)(zeros_floats(s) + shared + threads * each);
}

void winograd_forward(float* y, uint8_t* argmax, const float* x, const float* w, const float* b,
                      const ConvShape& s, bool relu, void* ws, int threads) {
  const Source src{x, nullptr, nullptr, s.H, s.W, s.C, nullptr};
  const Sink sink{y, argmax, b, s.P, s.Q, s.K, 0.0f, relu};
  if (argmax)
    run<kPlain, kForwardPooled>(src, sink, w, s, ws, threads);
  else
    run<kPlain, kForward>(src, sink, w, s, ws, threads);
}

void winograd_backward_data(float* dx, const float* dy, const float* w, const float* y,
                            const uint8_t* argmax, const ConvShape& s, float beta, void* ws,
                            int threads) {
  const Source src{dy, y, argmax, s.P, s.Q, s.K, nullptr};
  const Sink sink{dx, nullptr, nullptr, s.H, s.W, s.C, beta, false};
  if (argmax)
    run<kPooled, kData>(src, sink, w, s, ws, threads);
  else if (y)
    run<kMasked, kData>(src, sink, w, s, ws, threads);
  else
    run<kPlain, kData>(src, sink, w, s, ws, threads);
}

}  // namespace pycap::PYCAP_ISA
