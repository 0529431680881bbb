// bfloat16 convolution, forward and data gradient: an implicit matrix product over the filter's
// taps.
//
// A band of input rows is copied, zero-padded, into a buffer in the L2 cache; 16 neighbouring
// pixels of it are a left tile for any tap, at another offset. The sum runs over blocks of 128
// channels, and within a block over the taps, so that the left operand comes from the L1 cache and
// only the filters stream. Few input channels (the first layer) are gathered into whole patches
// instead.
#include "bf16_conv.h"

#include "argmax.h"
#include "bf16_source.h"
#include "bf16_tiles.h"

namespace pycap::PYCAP_ISA {
namespace {

// One direction of the layer: maps [H,W,in] -> [P,Q,out].
struct Plan {
  bool patches;
  int64_t N, in, out, H, W, P, Q, R, S, pad_h, pad_w;
  int64_t depth;                 // numbers a tap (or a patch), filled up to whole steps
  int64_t steps;                 // tiles a sum
  int64_t panels;                // of 16 output channels
  int64_t tile;                  // output columns a tile
  int64_t tiles;                 // tiles a row
  int64_t pitch, line, segment;  // bytes between the buffer's pixels, rows and images
  int64_t images, rows, bands;   // images a band, or output rows of one image; how many bands
  int64_t groups;                // parts the output channels are cut into
};

constexpr int64_t kChunk = 128;                 // channels summed before the next tap
constexpr int64_t kBand = int64_t{1} << 20;     // bytes of a band that holds whole images
constexpr int64_t kPart = int64_t{640} * 1024;  // bytes of a band that is part of an image

Plan make_plan(const ConvShape& s, bool data, int threads) {
  Plan p;
  p.N = s.N;
  p.R = s.R, p.S = s.S;
  p.in = data ? s.K : s.C, p.out = data ? s.C : s.K;
  p.H = data ? s.P : s.H, p.W = data ? s.Q : s.W;
  p.P = data ? s.H : s.P, p.Q = data ? s.W : s.Q;
  p.pad_h = data ? s.R - 1 - s.pad : s.pad, p.pad_w = data ? s.S - 1 - s.pad : s.pad;
  p.patches = p.in < 16;
  p.depth = round_up(p.patches ? p.R * p.S * p.in : p.in, kDepth);
  p.steps = p.depth / kDepth * (p.patches ? 1 : p.R * p.S);
  p.panels = ceil_div(p.out, 16);
  p.tiles = max64(ceil_div(p.Q, 16), 1);
  p.tile = min64(round_up(ceil_div(max64(p.Q, 1), p.tiles), 2), 16);
  p.pitch = 2 * p.depth;
  if (p.pitch % 512 == 0) p.pitch += 64;  // keeps a tile's rows apart in the L1 cache
  p.line = (p.tiles * p.tile + (p.patches ? 0 : p.S - 1)) * p.pitch;
  const int64_t halo = p.patches ? 0 : p.R - 1;
  const int64_t image = (p.P + halo) * p.line;
  if (image <= kPart) {
    const int64_t fit = max64(kBand / max64(image, 1), 1);
    const int64_t rounds = max64(ceil_div(p.N, fit * threads), 1);
    p.images = max64(ceil_div(p.N, rounds * threads), 1);
    p.rows = max64(p.P, 1);
    p.bands = ceil_div(p.N, p.images);
  } else {
    p.images = 1;
    const int64_t fit = max64(kPart / p.line - halo, 2) / 2 * 2;
    p.rows = round_up(ceil_div(p.P, ceil_div(p.P, fit)), 2);
    p.bands = p.N * ceil_div(p.P, p.rows);
  }
  p.segment = (p.rows + halo) * p.line;
  const bool even = p.bands % threads == 0 || p.bands >= 8 * threads;
  p.groups = even ? 1 : min64(ceil_div(p.panels, 2), ceil_div(4 * threads, max64(p.bands, 1)));
  return p;
}

// Calls visit(step, r, s, c0) in the order of the sum.
template <class Visit>
void for_steps(const Plan& p, Visit visit) {
  int64_t step = 0;
  for (int64_t c1 = 0; c1 < p.depth; c1 += kChunk)
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t s = 0; s < p.S; ++s)
        for (int64_t c = c1; c < min64(c1 + kChunk, p.depth); c += kDepth) visit(step++, r, s, c);
}

void list_taps(Step* steps, const Plan& p) {
  list_steps(steps, p.steps);
  if (p.patches) return;
  for_steps(p, [&](int64_t i, int64_t r, int64_t s, int64_t c) {
    steps[i].left = (int32_t)(r * p.line + s * p.pitch + 2 * c);
  });
}

// Filters --------------------------------------------------------------------------------------

// The weight between input channel c and output channel k of this direction at its tap (r, s).
inline float weight(const float* w, const Plan& p, bool data, int64_t k, int64_t r, int64_t s,
                    int64_t c) {
  if (!data) return w[((k * p.R + r) * p.S + s) * p.in + c];
  return w[((c * p.R + p.R - 1 - r) * p.S + p.S - 1 - s) * p.out + k];
}

// One tile, any shape: dword (pair, column) from value(number, column).
template <class Value>
void pack_any(uint32_t* tile, Value value) {
  for (int64_t pair = 0; pair < 16; ++pair)
    for (int64_t j = 0; j < 16; ++j)
      tile[16 * pair + j] =
          narrow(value(2 * pair, j)).bits | (uint32_t)narrow(value(2 * pair + 1, j)).bits << 16;
}

// A whole forward tile: 16 filters `row` floats apart, 32 channels each.
void pack_forward(uint32_t* tile, const float* w, int64_t row) {
  alignas(64) uint32_t pairs[16 * 16];
  for (int64_t k = 0; k < 16; ++k) {
    alignas(64) bf16 numbers[32];
    for (int64_t c = 0; c < 32; c += VL) store(numbers + c, load(w + k * row + c));
    memcpy(pairs + 16 * k, numbers, 64);
  }
  transpose16(tile, 16, pairs, 16);
}

// A whole tile of the data gradient: 32 filters `row` floats apart, 16 channels each.
void pack_data(uint32_t* tile, const float* w, int64_t row) {
  for (int64_t pair = 0; pair < 16; ++pair)
    for (int64_t j = 0; j < 16; j += VL) {
      const VecU even = narrow_bits(load(w + 2 * pair * row + j));
      const VecU odd = narrow_bits(load(w + (2 * pair + 1) * row + j));
      store(reinterpret_cast<float*>(tile + 16 * pair + j), (Vec)(even | odd << 16));
    }
}

void pack(void* packed, const float* w, const ConvShape& shape, bool data, int threads) {
  const Plan p = make_plan(shape, data, threads);
  const int64_t row = p.R * p.S * (data ? p.out : p.in);  // floats of one filter in w
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t panel = 0; panel < p.panels; ++panel) {
    uint32_t* tiles = static_cast<uint32_t*>(packed) + panel * p.steps * (kTile / 4);
    const int64_t k0 = 16 * panel;
    if (p.patches) {
      for (int64_t i = 0; i < p.steps; ++i)
        pack_any(tiles + i * (kTile / 4), [&](int64_t number, int64_t j) {
          const int64_t at = kDepth * i + number, tap = at / p.in;
          if (k0 + j >= p.out || tap >= p.R * p.S) return 0.0f;
          return weight(w, p, data, k0 + j, tap / p.S, tap % p.S, at % p.in);
        });
      continue;
    }
    for_steps(p, [&](int64_t i, int64_t r, int64_t s, int64_t c) {
      uint32_t* tile = tiles + i * (kTile / 4);
      if (k0 + 16 > p.out || c + kDepth > p.in) {
        pack_any(tile, [&](int64_t number, int64_t j) {
          if (k0 + j >= p.out || c + number >= p.in) return 0.0f;
          return weight(w, p, data, k0 + j, r, s, c + number);
        });
      } else if (data) {
        const int64_t tap = (p.R - 1 - r) * p.S + p.S - 1 - s;
        pack_data(tile, w + c * row + tap * p.out + k0, row);
      } else {
        pack_forward(tile, w + k0 * row + (r * p.S + s) * p.in + c, row);
      }
    });
  }
}

// The band ------------------------------------------------------------------------------------

// Rows of the padded map, `count` from output row p0 on: numbers of a pixel `pitch` bytes apart,
// W + 2*pad_w pixels (filled up with zeros to `width`), rows `line` bytes apart.
void read_rows(char* to, int64_t pitch, int64_t line, int64_t width, const Source16& src,
               const Plan& p, int64_t n, int64_t p0, int64_t count) {
  const int64_t right = p.pad_w + p.W;
  for (int64_t i = 0; i < count; ++i) {
    char* row = to + i * line;
    memset(row, 0, p.pad_w * pitch);
    read_row(row + p.pad_w * pitch, pitch, src, n, p0 + i - p.pad_h);
    if (width > right) memset(row + right * pitch, 0, (width - right) * pitch);
    if (!p.patches && p.depth > p.in)
      for (int64_t q = p.pad_w; q < right; ++q)
        memset(row + q * pitch + 2 * p.in, 0, 2 * (p.depth - p.in));
  }
}

// Output rows [p0, p0 + count) of image n as rows of patches, from the padded map in `map`.
void gather_patches(char* to, char* map, const Source16& src, const Plan& p, int64_t n, int64_t p0,
                    int64_t count) {
  const int64_t pixel = 2 * p.in, width = p.W + 2 * p.pad_w, line = width * pixel;
  const int64_t run = p.S * pixel, used = p.R * run;
  read_rows(map, pixel, line, width, src, p, n, p0, count + p.R - 1);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t q = 0; q < p.tiles * p.tile; ++q) {
      char* patch = to + i * p.line + q * p.pitch;
      const char* from = map + i * line + q * pixel;
      if (q >= p.Q) {
        memset(patch, 0, p.pitch);
      } else if (run == 18 && p.R == 3) {  // three channels: copies of a fixed size
        for (int r = 0; r < 3; ++r) memcpy(patch + 18 * r, from + r * line, 18);
        memset(patch + 54, 0, 10);
      } else {
        for (int64_t r = 0; r < p.R; ++r) memcpy(patch + r * run, from + r * line, run);
        memset(patch + used, 0, p.pitch - used);
      }
    }
}

int64_t map_bytes(const Plan& p) {
  return p.patches ? round_up((p.rows + p.R - 1) * (p.W + 2 * p.pad_w) * 2 * p.in + 64, 64) : 0;
}

// Results -------------------------------------------------------------------------------------

struct Sink16 {
  bf16* y;
  uint8_t* argmax;
  float beta;
  bool relu;
};

constexpr int64_t kVecs = 32 / VL;

inline void finish(Vec* v, const float* sums, const float* bias, bool relu) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < kVecs; ++i) {
    v[i] = load(sums + i * VL) + load(bias + i * VL);
    if (relu) v[i] = select(v[i] < 0.0f, Vec{}, v[i]);
  }
}

// A row of `cols` pixels from the sums (32 a pixel); `to` is the first pixel's channel k0.
void write_row(bf16* to, const float* sums, const float* bias, int64_t cols, int64_t count,
               int64_t out, const Sink16& sink) {
  for (int64_t q = 0; q < cols; ++q, to += out, sums += 32) {
    Vec v[kVecs];
    finish(v, sums, bias, sink.relu);
    if (count == 32) {
      if (sink.beta != 0.0f)
        for (int64_t i = 0; i < kVecs; ++i) v[i] += sink.beta * load(to + i * VL);
      store32(to, v);
    } else {
      float numbers[32];
      for (int64_t i = 0; i < kVecs; ++i) store(numbers + i * VL, v[i]);
      for (int64_t k = 0; k < count; ++k)
        to[k] = narrow(sink.beta == 0.0f ? numbers[k] : sink.beta * widen(to[k]) + numbers[k]);
    }
  }
}

// A row of `cols` pooled pixels from two rows of sums.
void write_pooled(bf16* to, uint8_t* winners, const float* top, const float* bottom,
                  const float* bias, int64_t cols, int64_t count, int64_t out) {
  for (int64_t q = 0; q < cols; ++q, to += out, winners += (out + 3) / 4, top += 64, bottom += 64) {
    Vec best[kVecs];
    VecI at[kVecs] = {};
    finish(best, top, bias, true);
    for (int corner = 1; corner < 4; ++corner) {
      Vec v[kVecs];
      finish(v, (corner < 2 ? top : bottom) + 32 * (corner % 2), bias, true);
#pragma GCC unroll 8
      for (int64_t i = 0; i < kVecs; ++i) contend(&best[i], &at[i], v[i], corner);
    }
    alignas(64) uint8_t bytes[8];
    for (int64_t i = 0; i < kVecs; ++i) pack_winners(bytes + i * VL / 4, at[i]);
    memcpy(winners, bytes, (count + 3) / 4);
    if (count == 32) {
      store32(to, best);
    } else {
      float numbers[32];
      for (int64_t i = 0; i < kVecs; ++i) store(numbers + i * VL, best[i]);
      for (int64_t k = 0; k < count; ++k) to[k] = narrow(numbers[k]);
    }
  }
}

// ---------------------------------------------------------------------------------------------

// Output rows p and p+1 (where below `end`) of image n, output channels k0.. of one pair of panels.
// `rows`: the buffer's row that belongs to output row p.
void row_pair(const Tiles& tiles, const char* rows, const Step* steps, const char* filters,
              const float* bias, const Sink16& sink, const Plan& p, int64_t n, int64_t row,
              int64_t end, int64_t k0) {
  const int64_t count = min64(32, p.out - k0), nb = count > 16 ? 2 : 1;
  const int64_t na = row + 1 < end ? 2 : 1;
  alignas(64) float sums[kBlock];
  for (int64_t tile = 0; tile < p.tiles; ++tile) {
    const int64_t q0 = tile * p.tile, cols = min64(p.tile, p.Q - q0);
    const char* a = rows + q0 * p.pitch;
    multiply_block(tiles, na, nb, sums, a, a + p.line, p.pitch, steps, p.steps, filters,
                   filters + p.steps * kTile, false);
    if (sink.argmax) {
      const int64_t PP = p.P / 2, QQ = p.Q / 2, i = row / 2, j = q0 / 2;
      if (i >= PP) continue;
      const int64_t pixel = (n * PP + i) * QQ + j;
      write_pooled(sink.y + pixel * p.out + k0, sink.argmax + pixel * ((p.out + 3) / 4) + k0 / 4,
                   sums, sums + 16 * 32, bias, min64(cols / 2, QQ - j), count, p.out);
    } else {
      for (int64_t i = 0; i < na; ++i)
        write_row(sink.y + ((n * p.P + row + i) * p.Q + q0) * p.out + k0, sums + i * 16 * 32, bias,
                  cols, count, p.out, sink);
    }
  }
}

int64_t step_bytes(const Plan& p) { return round_up(sizeof(Step) * p.steps, 64); }
int64_t thread_bytes(const Plan& p) { return p.images * p.segment + map_bytes(p) + 64; }

void run(const Source16& src, const Sink16& sink, const void* packed, const float* b, const Plan& p,
         void* ws, int threads) {
  if (p.N * p.P * p.Q * p.out == 0) return;
  Step* steps = static_cast<Step*>(ws);
  list_taps(steps, p);
  char* buffers = static_cast<char*>(ws) + step_bytes(p);
  const int64_t parts = ceil_div(p.P, p.rows), pairs = ceil_div(p.panels, 2);
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles(p.tile);
    char* buffer = buffers + omp_get_thread_num() * thread_bytes(p);
    char* map = buffer + p.images * p.segment;
    int64_t held = -1;
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < p.bands * p.groups; ++unit) {
      const int64_t band = unit / p.groups;
      const Range mine = split(pairs, p.groups, unit % p.groups);
      const int64_t n0 = band / parts * p.images, n1 = min64(n0 + p.images, p.N);
      const int64_t p0 = band % parts * p.rows, p1 = min64(p0 + p.rows, p.P);
      if (band != held) {
        for (int64_t n = n0; n < n1; ++n) {
          char* to = buffer + (n - n0) * p.segment;
          if (p.patches)
            gather_patches(to, map, src, p, n, p0, p1 - p0);
          else
            read_rows(to, p.pitch, p.line, p.line / p.pitch, src, p, n, p0, p1 - p0 + p.R - 1);
        }
        held = band;
      }
      for (int64_t pair = mine.begin; pair < mine.end; ++pair) {
        alignas(64) float bias[32] = {};
        if (b) memcpy(bias, b + 32 * pair, sizeof(float) * min64(32, p.out - 32 * pair));
        const char* filters = static_cast<const char*>(packed) + 2 * pair * p.steps * kTile;
        for (int64_t n = n0; n < n1; ++n)
          for (int64_t row = p0; row < p1; row += 2)
            row_pair(tiles, buffer + (n - n0) * p.segment + (row - p0) * p.line, steps, filters,
                     bias, sink, p, n, row, p1, 32 * pair);
      }
    }
  }
}

bool fits(const ConvShape& s) {
  if (s.stride != 1 || s.pad >= s.R || s.pad >= s.S || s.C < 1 || s.K < 1) return false;
  // A step's places in the rows of an image and among the filters are 32-bit numbers of bytes.
  const int64_t row = 2 * (max64(s.C, s.K) + 64) * (s.W + s.Q + s.S + 32);
  return s.R * row <= INT32_MAX && 32 * s.R * s.S * (max64(s.C, s.K) + 32) <= INT32_MAX;
}

size_t packed_bytes(const ConvShape& s, bool data) {
  const Plan p = make_plan(s, data, 1);
  return (size_t)(p.panels * p.steps * kTile);
}

size_t workspace(const ConvShape& s, bool data, int threads) {
  const Plan p = make_plan(s, data, threads);
  return (size_t)(step_bytes(p) + threads * thread_bytes(p));
}

void forward(bf16* y, uint8_t* argmax, const bf16* x, const void* packed, const float* b,
             const ConvShape& s, bool relu, void* ws, int threads) {
  run({x, nullptr, nullptr, s.H, s.W, s.C}, {y, argmax, 0.0f, relu}, packed, b,
      make_plan(s, false, threads), ws, threads);
}

void backward_data(bf16* dx, const bf16* dy, const void* packed, const bf16* y,
                   const uint8_t* argmax, const ConvShape& s, float beta, void* ws, int threads) {
  run({dy, y, argmax, s.P, s.Q, s.K}, {dx, nullptr, beta, false}, packed, nullptr,
      make_plan(s, true, threads), ws, threads);
}

}  // namespace

extern const Conv2dBf16Kernels conv2d_bf16_kernels;
const Conv2dBf16Kernels conv2d_bf16_kernels = {fits,
                                               packed_bytes,
                                               pack,
                                               workspace,
                                               forward,
                                               backward_data,
                                               bf16_weight_workspace,
                                               bf16_backward_weight};

}  // namespace pycap::PYCAP_ISA
