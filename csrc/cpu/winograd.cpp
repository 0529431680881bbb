// Winograd forward and data gradient: transform patches, 36 products, transform back (Lavin and
// Gray, arXiv:1509.09308).
#include "winograd.h"

#include "conv_table.h"
#include "winograd_filters.h"
#include "winograd_gemm.h"

namespace pycap::PYCAP_ISA {
namespace {

// One direction of the layer: `in` channels are multiplied into `out` channels, for `block` tiles,
// `kb` outputs and `cb` inputs at a time.
struct Plan {
  TileMap map;
  int64_t tiles, in, out;
  bool shared;    // all threads work at the same `chunk` of tiles, and share out tiles x outputs
  int64_t chunk;  // tiles transformed at a time (shared), else the same as block
  int64_t block, cb, kb;
  int64_t ldm;            // row stride of M
  int64_t xsv, xsu, xsm;  // strides between the 36 positions
};

// Positions an odd number of cache lines apart do not meet in the same sets.
int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

WinogradBlocks forced_blocks;
bool blocks_are_forced = false;

Plan make_plan(const ConvShape& s, bool data, int threads) {
  Plan p;
  p.map = {ceil_div(s.H, 4), ceil_div(s.W, 4)};
  p.tiles = s.N * p.map.rows * p.map.cols;
  p.in = data ? s.K : s.C;
  p.out = data ? s.C : s.K;
  const WinogradBlocks& blocks =
      blocks_are_forced ? forced_blocks : winograd_blocks(p.tiles, p.in * p.out);
  p.shared = blocks.shared;
  p.cb = min64(p.in, blocks.inputs);
  p.kb = min64(p.out, blocks.outputs);
  if (p.shared) {
    const int64_t chunks = max64(ceil_div(p.tiles * p.in * 36, kWinogradChunkFloats), 1);
    p.chunk = max64(ceil_div(p.tiles, chunks), 1);
    p.block = ceil_div(p.chunk, ceil_div(p.chunk, blocks.tiles));
  } else {
    const int64_t rounds = max64(ceil_div(p.tiles, blocks.tiles * threads), 1);
    p.block = max64(ceil_div(p.tiles, rounds * threads), 1);
    p.chunk = p.block;
  }
  p.ldm = p.kb + 16;
  p.xsv = odd_lines(p.chunk * p.cb);
  p.xsu = odd_lines(p.kb * p.cb);
  p.xsm = odd_lines(p.block * p.ldm);
  return p;
}

int64_t v_floats(const Plan& p) { return ceil_div(p.in, p.cb) * 36 * p.xsv; }

int64_t u_floats(const Plan& p) {
  return 36 * p.xsu * (p.shared ? 1 : ceil_div(p.in, p.cb) * ceil_div(p.out, p.kb));
}

int64_t zeros_floats(const ConvShape& s) { return align_floats(max64(s.C, s.K)); }

int64_t tap_floats(const Plan& p) { return 9 * p.in * p.out; }

// Every thread of a parallel region calls this; the taps are whole after its barrier.
template <int SINK>
void gather(float* taps, const float* w, const Plan& p) {
#pragma omp for schedule(static)
  for (int64_t j = 0; j < p.out; j += VL) {
    float* to = taps + j * p.in * 9;
    if (SINK == kData)
      gather_taps_rotated(to, w, p.in, p.out, j);
    else
      gather_taps(to, w, p.in, j);
  }
}

Range part(int64_t n, int64_t size, int64_t i) { return {i * size, min64(n, (i + 1) * size)}; }

// v [blocks of cb inputs][36][chunk][cb]: the transformed patches of `tiles`, of a chunk that
// starts at tile `first`.
template <int SOURCE>
void input_tiles(float* v, const Source& src, const Plan& p, int64_t first, Range tiles) {
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    int64_t n, i, j;
    p.map.locate(first + t, &n, &i, &j);
    const Patch<SOURCE, 6> patch(src, n, i, j);
    for (int64_t b = 0; b * p.cb < p.in; ++b) {
      const Range ins = part(p.in, p.cb, b);
      input_tile(v + b * 36 * p.xsv + t * (ins.end - ins.begin), p.xsv, patch, ins.begin, ins.end);
    }
  }
}

// m [36][tiles][kb] (+)= one block of inputs: v is its first tile's row in position 0.
void multiply(float* m, const float* v, const float* u, const Plan& p, int64_t tiles, int64_t ins,
              int64_t outs, bool add) {
  for (int64_t x = 0; x < 36; ++x)
    gemm_ahead(tiles, outs, ins, v + x * p.xsv, u + x * p.xsu, m + x * p.xsm, p.ldm, add,
               v + (x + 1) * p.xsv);
}

template <int SINK>
void output_tiles(const Sink& sink, const float* m, const Plan& p, Range tiles, Range outs) {
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    int64_t n, i, j;
    p.map.locate(t, &n, &i, &j);
    output_tile<SINK>(sink, m + (t - tiles.begin) * p.ldm, p.xsm, outs.begin, outs.end - outs.begin,
                      n, i, j);
  }
}

// Many tiles and few filters: threads take blocks of tiles; the transformed filters are shared.
template <int SOURCE, int SINK>
void run_private(const Source& src, const Sink& sink, const float* w, const Plan& p, float* made,
                 const float* taps, float* u, float* scratch, int threads) {
  const int64_t ib = ceil_div(p.in, p.cb), ob = ceil_div(p.out, p.kb);
  const int64_t blocks = ceil_div(p.tiles, p.block);
#pragma omp parallel num_threads(threads)
  {
    float* v = scratch + omp_get_thread_num() * (v_floats(p) + 36 * p.xsm);
    float* m = v + v_floats(p);
    if (made) gather<SINK>(made, w, p);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < ib * ob; ++i)
      transform_filters(u + i * 36 * p.xsu, p.xsu, taps, p.in, part(p.in, p.cb, i % ib),
                        part(p.out, p.kb, i / ib));
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; ++block) {
      const Range tiles = part(p.tiles, p.block, block);
      const int64_t count = tiles.end - tiles.begin;
      input_tiles<SOURCE>(v, src, p, tiles.begin, {0, count});
      for (int64_t o = 0; o < ob; ++o) {
        const Range outs = part(p.out, p.kb, o);
        for (int64_t i = 0; i < ib; ++i) {
          const Range ins = part(p.in, p.cb, i);
          multiply(m, v + i * 36 * p.xsv, u + (o * ib + i) * 36 * p.xsu, p, count,
                   ins.end - ins.begin, outs.end - outs.begin, i > 0);
        }
        output_tiles<SINK>(sink, m, p, tiles, outs);
      }
    }
  }
}

// Many filters: a chunk of tiles is transformed together; then threads take blocks of tiles and
// outputs, transforming the filters of a block just before use.
template <int SOURCE, int SINK>
void run_shared(const Source& src, const Sink& sink, const float* w, const Plan& p, float* made,
                const float* taps, float* v, float* scratch, int threads) {
  const int64_t ib = ceil_div(p.in, p.cb), ob = ceil_div(p.out, p.kb);
#pragma omp parallel num_threads(threads)
  {
    float* u = scratch + omp_get_thread_num() * (36 * p.xsu + 36 * p.xsm);
    float* m = u + 36 * p.xsu;
    if (made) gather<SINK>(made, w, p);
    for (int64_t first = 0; first < p.tiles; first += p.chunk) {
      const int64_t chunk = min64(p.chunk, p.tiles - first), tb = ceil_div(chunk, p.block);
#pragma omp for schedule(dynamic, 8)
      for (int64_t t = 0; t < chunk; ++t) input_tiles<SOURCE>(v, src, p, first, {t, t + 1});
#pragma omp for schedule(dynamic, 1)
      for (int64_t unit = 0; unit < tb * ob; ++unit) {
        const Range outs = part(p.out, p.kb, unit % ob), tiles = part(chunk, p.block, unit / ob);
        for (int64_t i = 0; i < ib; ++i) {
          const Range ins = part(p.in, p.cb, i);
          transform_filters(u, p.xsu, taps, p.in, ins, outs);
          multiply(m, v + i * 36 * p.xsv + tiles.begin * (ins.end - ins.begin), u, p,
                   tiles.end - tiles.begin, ins.end - ins.begin, outs.end - outs.begin, i > 0);
        }
        output_tiles<SINK>(sink, m, p, {first + tiles.begin, first + tiles.end}, outs);
      }
    }
  }
}

template <int SOURCE, int SINK>
void run(Source src, const Sink& sink, const float* w, const float* taps, const ConvShape& s,
         void* ws, int threads) {
  const Plan p = make_plan(s, SINK == kData, threads);
  if (p.tiles == 0) return;
  float* zeros = static_cast<float*>(ws);
  memset(zeros, 0, sizeof(float) * zeros_floats(s));
  src.zeros = zeros;
  float* rest = zeros + zeros_floats(s);
  float* made = taps ? nullptr : rest;
  if (made) taps = made, rest += tap_floats(p);
  if (p.shared)
    run_shared<SOURCE, SINK>(src, sink, w, p, made, taps, rest, rest + v_floats(p), threads);
  else
    run_private<SOURCE, SINK>(src, sink, w, p, made, taps, rest, rest + u_floats(p), threads);
}

}  // namespace

bool winograd_fits(const ConvShape& s) {
  return s.R == 3 && s.S == 3 && s.stride == 1 && s.pad == 1 && s.C % 16 == 0 && s.K % 16 == 0 &&
         s.C > 0 && s.K > 0;
}

bool winograd_shares(const ConvShape& s, bool data, int threads) {
  return make_plan(s, data, threads).shared;
}

void winograd_force_blocks(const int64_t* blocks) {
  blocks_are_forced = blocks != nullptr;
  if (blocks) forced_blocks = {0, 0, blocks[0] != 0, blocks[1], blocks[2], blocks[3]};
}

size_t winograd_workspace(const ConvShape& s, bool data, int threads) {
  const Plan p = make_plan(s, data, threads);
  const int64_t common = p.shared ? v_floats(p) : u_floats(p);
  const int64_t each = 36 * p.xsm + (p.shared ? u_floats(p) : v_floats(p));
  return sizeof(float) * (size_t)(zeros_floats(s) + tap_floats(p) + common + threads * each);
}

size_t winograd_filter_floats(const ConvShape& s) { return (size_t)(9 * s.C * s.K); }

void winograd_prepare_filters(float* form, const float* w, const ConvShape& s, int threads) {
  const Plan p = make_plan(s, false, threads);
#pragma omp parallel num_threads(threads)
  gather<kForward>(form, w, p);
}

void winograd_forward(float* y, uint8_t* argmax, const float* x, const float* w, const float* form,
                      const float* b, const ConvShape& s, bool relu, void* ws, int threads) {
  const Source src{x, nullptr, nullptr, s.H, s.W, s.C, nullptr};
  const Sink sink{y, argmax, b, s.P, s.Q, s.K, 0.0f, relu};
  if (argmax)
    run<kPlain, kForwardPooled>(src, sink, w, form, s, ws, threads);
  else
    run<kPlain, kForward>(src, sink, w, form, s, ws, threads);
}

void winograd_backward_data(float* dx, const float* dy, const float* w, const float* y,
                            const uint8_t* argmax, const ConvShape& s, float beta, void* ws,
                            int threads) {
  const Source src{dy, y, argmax, s.P, s.Q, s.K, nullptr};
  const Sink sink{dx, nullptr, nullptr, s.H, s.W, s.C, beta, false};
  if (argmax)
    run<kPooled, kData>(src, sink, w, nullptr, s, ws, threads);
  else if (y)
    run<kMasked, kData>(src, sink, w, nullptr, s, ws, threads);
  else
    run<kPlain, kData>(src, sink, w, nullptr, s, ws, threads);
}

}  // namespace pycap::PYCAP_ISA
