// bfloat16 convolution, weight and bias gradient: for each tap the product of the transposed input
// with the output's gradient, summed over pixels.
//
// Pixels are numbered along the padded rows, so that a tap is an offset into the transposed input;
// the gradient is 0 at the numbers in between. Chunks of pixels are transposed into the cache, and
// each adds to sums of all taps.
#include "bf16_conv.h"
#include "bf16_source.h"
#include "bf16_tiles.h"

namespace pycap::PYCAP_ISA {
namespace {

struct Plan {
  bool shared;                // threads share a chunk and split its products; else each has its own
  int64_t channels, filters;  // filled up to whole tiles of 16
  int64_t cb, kb;             // blocks of 32
  int64_t row;                // pixels of a padded row
  int64_t rows;               // output rows of a piece (of one image)
  int64_t pieces, parts;      // pieces in all, and an image
  int64_t chunk;              // pieces a chunk
  int64_t piece_x;            // pixels a piece takes in the transposed input
  int64_t steps;              // tiles a piece
  int64_t pitch;              // bytes between channels of the transposed input
  int64_t sums;               // floats of all taps' sums
  int64_t line;               // bytes of a line buffer
};

Plan make_plan(const ConvShape& s, int threads) {
  Plan p;
  p.channels = round_up(s.C, 16), p.filters = round_up(s.K, 16);
  p.cb = ceil_div(p.channels, 32), p.kb = ceil_div(p.filters, 32);
  p.sums = s.R * s.S * p.cb * p.kb * kBlock;
  p.shared = threads > 1 && p.sums * 4 > 700 * 1024;
  p.row = round_up(s.Q + s.S - 1, 2);
  const int64_t pixels =
      p.shared ? 4096 : max64(min64((512 * 1024) / (p.channels + p.filters), 4096), 128);
  const int64_t image = s.P * p.row;
  int64_t most;  // pieces that make up a chunk
  if (image > pixels) {
    const int64_t fit = max64(pixels / p.row, 1);
    p.rows = ceil_div(s.P, ceil_div(s.P, fit));
    most = 1;
  } else {
    p.rows = max64(s.P, 1);
    most = pixels / max64(image, 1);
  }
  p.parts = ceil_div(max64(s.P, 1), p.rows);
  p.pieces = s.N * p.parts;
  const int64_t share = p.shared ? p.pieces : ceil_div(p.pieces, threads);
  const int64_t rounds = max64(ceil_div(share, most), 1);
  p.chunk = max64(ceil_div(share, rounds), 1);
  p.steps = ceil_div(p.rows * p.row, kDepth);
  // Tiles of the last tap read up to a row and a filter's width further.
  p.piece_x = round_up(
      max64((p.rows + s.R - 1) * p.row, kDepth * p.steps + (s.R - 1) * p.row) + s.S - 1 + kDepth,
      kDepth);
  p.pitch = 2 * p.chunk * p.piece_x;
  if (p.pitch / 64 % 2 == 0) p.pitch += 64;  // an odd number of lines spreads over the cache's sets
  p.line = 2 * (p.row + 32) * max64(p.channels, p.filters);
  return p;
}

int64_t input_bytes(const Plan& p) { return p.cb * 32 * p.pitch; }
int64_t gradient_bytes(const Plan& p) { return p.kb * 2 * p.chunk * p.steps * kTile; }

// Scratch of one thread, and of all of them.
struct Buffers {
  char* input;     // transposed: [channels][pixels of all pieces]
  char* gradient;  // packed tiles: [filters/16][steps of all pieces]
  float* sums;     // [R*S][cb][kb] blocks
  char* line;      // one masked row of the gradient, or a row of odd channels
  float *bias, *chunk_bias;
};

size_t private_bytes(const Plan& p) {  // every thread's own, always
  return (size_t)(round_up(p.line, 64) + 2 * 4 * align_floats(p.filters) + 64);
}

size_t common_bytes(const Plan& p) {  // the thread's own, or everybody's where they share
  return (size_t)(input_bytes(p) + gradient_bytes(p) + 4 * p.sums);
}

Buffers locate(void* ws, const Plan& p, int64_t id, int64_t threads) {
  char* at = static_cast<char*>(ws) + (p.shared ? 0 : id * (int64_t)common_bytes(p));
  Buffers b;
  b.input = at;
  b.gradient = b.input + input_bytes(p);
  b.sums = reinterpret_cast<float*>(b.gradient + gradient_bytes(p));
  at = static_cast<char*>(ws) + (p.shared ? 1 : threads) * (int64_t)common_bytes(p) +
       id * (int64_t)private_bytes(p);
  b.bias = reinterpret_cast<float*>(at + 64);
  b.chunk_bias = b.bias + align_floats(p.filters);
  b.line = reinterpret_cast<char*>(b.chunk_bias + align_floats(p.filters));
  return b;
}

// Row `h` of the padded input of image n, transposed, from pixel number `at` on.
void input_row(char* input, int64_t at, char* line, const Source16& x, const ConvShape& s,
               const Plan& p, int64_t n, int64_t h) {
  const int64_t pixel = 2 * p.channels;
  memset(line, 0, p.line);
  read_row(line + s.pad * pixel, pixel, x, n, h - s.pad);
  for (int64_t w = 0; w < p.row; w += 32)
    transpose_rows(input + 2 * (at + w), p.pitch, line + w * pixel, pixel, p.channels,
                   min64(32, p.row - w));
}

// Row `h` of the gradient of image n into the packed tiles from pixel number `at` of the chunk's
// steps on; adds the row to bias.
void gradient_row(char* gradient, int64_t at, char* line, float* bias, const Source16& dy,
                  const ConvShape& s, const Plan& p, int64_t n, int64_t h) {
  const int64_t pixel = 2 * p.filters, panel = p.chunk * p.steps * kTile;
  memset(line + s.Q * pixel, 0, (p.row - s.Q) * pixel);
  if (p.filters > s.K) memset(line, 0, s.Q * pixel);
  read_row(line, pixel, dy, n, h);
  for (int64_t k = 0; k < p.filters; k += VL) {
    Vec sum = load(bias + k);
    for (int64_t q = 0; q < s.Q; ++q)
      sum += load(reinterpret_cast<const bf16*>(line + q * pixel) + k);
    store(bias + k, sum);
  }
  for (int64_t w = 0; w < p.row; w += 2) {
    const bf16* even = reinterpret_cast<const bf16*>(line + w * pixel);
    const bf16* odd = reinterpret_cast<const bf16*>(line + (w + 1) * pixel);
    char* to = gradient + (at + w) / 32 * kTile + (at + w) % 32 / 2 * 64;
    for (int64_t k = 0; k < p.filters; k += 16)
      for (int64_t l = 0; l < 16; l += VL)
        interleave(reinterpret_cast<uint32_t*>(to + k / 16 * panel) + l, even + k + l, odd + k + l);
  }
}

// Piece `piece` as number `slot` of the chunk: its padded rows [h0, h1) of the input, and of the
// gradient those below `rows`; the last row also clears what follows it.
void transform(const Buffers& buf, const Source16& x, const Source16& dy, const ConvShape& s,
               const Plan& p, int64_t piece, int64_t slot, int64_t h0, int64_t h1) {
  const int64_t n = piece / p.parts, first = piece % p.parts * p.rows;
  const int64_t last = p.rows + s.R - 2, used = p.rows * p.row;
  for (int64_t h = h0; h < h1; ++h) {
    input_row(buf.input, slot * p.piece_x + h * p.row, buf.line, x, s, p, n, first + h);
    if (h < p.rows) {
      // Rows below the map are zeros, as read_row has it.
      gradient_row(buf.gradient, slot * p.steps * 32 + h * p.row, buf.line, buf.chunk_bias, dy, s,
                   p, n, first + h);
    }
  }
  if (h1 <= last) return;
  for (int64_t c = 0; c < p.channels; ++c)
    memset(buf.input + c * p.pitch + 2 * (slot * p.piece_x + (last + 1) * p.row), 0,
           2 * (p.piece_x - (last + 1) * p.row));
  const int64_t panel = p.chunk * p.steps * kTile;
  for (int64_t at = used; at < p.steps * 32; at += 2)
    for (int64_t k = 0; k < p.filters / 16; ++k)
      memset(buf.gradient + k * panel + (slot * p.steps + at / 32) * kTile + at % 32 / 2 * 64, 0,
             64);
}

// Adds the chunk's products to the sums of one block of 32 channels by 32 filters, all taps.
void accumulate(const Tiles& tiles, const Buffers& buf, const int32_t* offsets, int64_t steps,
                const ConvShape& s, const Plan& p, int64_t cb, int64_t kb, bool add) {
  const int64_t na = min64(2, p.channels / 16 - 2 * cb), nb = min64(2, p.filters / 16 - 2 * kb);
  const char* b0 = buf.gradient + 2 * kb * p.chunk * p.steps * kTile;
  for (int64_t r = 0; r < s.R; ++r)
    for (int64_t t = 0; t < s.S; ++t) {
      const char* a0 = buf.input + 32 * cb * p.pitch + 2 * (r * p.row + t);
      float* sums = buf.sums + (((r * s.S + t) * p.cb + cb) * p.kb + kb) * kBlock;
      multiply_block(tiles, na, nb, sums, a0, a0 + 16 * p.pitch, p.pitch, offsets, steps, b0,
                     b0 + p.chunk * p.steps * kTile, add);
    }
}

// dw of channels and filters of one block at one tap, from `copies` sums that lie `stride` bytes
// apart.
void write_block(float* dw, const float* sums, int64_t copies, int64_t stride, const ConvShape& s,
                 const Plan& p, int64_t tap, int64_t cb, int64_t kb, float beta) {
  const float* from = sums + ((tap * p.cb + cb) * p.kb + kb) * kBlock;
  const int64_t row = s.R * s.S * s.C;
  for (int64_t c0 = 32 * cb; c0 < min64(p.channels, 32 * cb + 32); c0 += 16)
    for (int64_t k0 = 32 * kb; k0 < min64(p.filters, 32 * kb + 32); k0 += 16) {
      alignas(64) float total[16 * 16], turned[16 * 16];
      for (int64_t i = 0; i < 16; ++i)
        for (int64_t j = 0; j < 16; j += VL) {
          const float* at = from + (c0 % 32 + i) * 32 + k0 % 32 + j;
          Vec sum = load(at);
          for (int64_t copy = 1; copy < copies; ++copy)
            sum += load(
                reinterpret_cast<const float*>(reinterpret_cast<const char*>(at) + copy * stride));
          store(total + 16 * i + j, sum);
        }
      transpose16(reinterpret_cast<uint32_t*>(turned), 16, reinterpret_cast<uint32_t*>(total), 16);
      for (int64_t k = k0; k < min64(k0 + 16, s.K); ++k)
        store_beta(dw + k * row + tap * s.C + c0, turned + 16 * (k - k0), min64(16, s.C - c0),
                   beta);
    }
}

}  // namespace

size_t bf16_weight_workspace(const ConvShape& s, int threads) {
  const Plan p = make_plan(s, threads);
  return (size_t)round_up(4 * p.chunk * p.steps, 64) + (p.shared ? 1 : threads) * common_bytes(p) +
         threads * private_bytes(p);
}

void bf16_backward_weight(float* dw, float* db, const bf16* dy, const bf16* x, const bf16* y,
                          const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                          void* ws, int threads) {
  if (s.N * s.P * s.Q == 0) {
    if (dw) scale_beta(dw, s.K * s.R * s.S * s.C, beta_w);
    if (db) scale_beta(db, s.K, beta_b);
    return;
  }
  const Plan p = make_plan(s, threads);
  const Source16 input{x, nullptr, nullptr, s.H, s.W, s.C};
  const Source16 gradient{dy, y, argmax, s.P, s.Q, s.K};
  int32_t* offsets = static_cast<int32_t*>(ws);
  for (int64_t i = 0; i < p.chunk * p.steps; ++i)
    offsets[i] = (int32_t)(2 * (i / p.steps * p.piece_x + i % p.steps * 32));
  char* rest = static_cast<char*>(ws) + round_up(4 * p.chunk * p.steps, 64);
  const int64_t height = p.rows + s.R - 1;
#pragma omp parallel num_threads(threads)
  {
    const int64_t team = omp_get_num_threads(), id = omp_get_thread_num();
    const Tiles tiles(16);
    const Buffers buf = locate(rest, p, id, threads);
    // Two levels of sums for the bias: a chunk's, then all of them.
    memset(buf.bias, 0, sizeof(float) * p.filters);
    const Range mine = p.shared ? Range{0, p.pieces} : split(p.pieces, team, id);
    if (mine.begin == mine.end) memset(buf.sums, 0, sizeof(float) * p.sums);
    for (int64_t first = mine.begin; first < mine.end; first += p.chunk) {
      const int64_t count = min64(p.chunk, mine.end - first);
      const bool add = first > mine.begin;
      memset(buf.chunk_bias, 0, sizeof(float) * p.filters);
      if (p.shared) {
        const Range part = split(count * height, team, id);
        for (int64_t i = part.begin; i < part.end;) {
          const int64_t slot = i / height, h = i % height;
          const int64_t stop = min64(height, h + part.end - i);
          transform(buf, input, gradient, s, p, first + slot, slot, h, stop);
          i += stop - h;
        }
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < p.cb * p.kb; ++unit)
          accumulate(tiles, buf, offsets, count * p.steps, s, p, unit / p.kb, unit % p.kb, add);
      } else {
        for (int64_t slot = 0; slot < count; ++slot)
          transform(buf, input, gradient, s, p, first + slot, slot, 0, height);
        for (int64_t unit = 0; unit < p.cb * p.kb; ++unit)
          accumulate(tiles, buf, offsets, count * p.steps, s, p, unit / p.kb, unit % p.kb, add);
      }
      PYCAP_SIMD for (int64_t k = 0; k < p.filters; ++k) buf.bias[k] += buf.chunk_bias[k];
    }
#pragma omp barrier
    if (dw) {
      const float* sums = locate(rest, p, 0, threads).sums;
#pragma omp for schedule(static)
      for (int64_t unit = 0; unit < s.R * s.S * p.cb * p.kb; ++unit)
        write_block(dw, sums, p.shared ? 1 : team, (int64_t)common_bytes(p), s, p,
                    unit / (p.cb * p.kb), unit / p.kb % p.cb, unit % p.kb, beta_w);
    }
#pragma omp single
    if (db) {
      float* total = locate(rest, p, 0, threads).bias;
      for (int64_t t = 1; t < team; ++t) {
        const float* other = locate(rest, p, t, threads).bias;
        PYCAP_SIMD for (int64_t k = 0; k < p.filters; ++k) total[k] += other[k];
      }
      store_beta(db, total, s.K, beta_b);
    }
  }
}

}  // namespace pycap::PYCAP_ISA
