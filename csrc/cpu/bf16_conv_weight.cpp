// bfloat16 convolution, weight and bias gradient: for each tap the product of the output's
// gradient, transposed, with the input, summed over pixels.
//
// Pixels are numbered along the padded rows, so that a tap is an offset into the input; the
// gradient is 0 at the numbers in between. The input is kept as pairs of pixels twice, paired from
// even and from odd numbers: so every tap's tiles begin at a whole pair. Chunks of pixels are
// brought into this form in the cache, and each adds to sums of all taps.
#include "bf16_conv.h"
#include "bf16_source.h"
#include "bf16_tiles.h"

namespace pycap::PYCAP_ISA {
namespace {

struct Plan {
  bool shared;                // threads share a chunk and split its products; else each has its own
  int64_t channels, filters;  // filled up to whole tiles of 16
  int64_t cb, kb;             // blocks of 32
  int64_t row;                // pixels of a padded row, even
  int64_t rows;               // output rows of a piece (of one image)
  int64_t pieces, parts;      // pieces in all, and an image
  int64_t chunk;              // pieces a chunk
  int64_t piece;              // pixels of the input a piece takes
  int64_t steps;              // tiles a piece
  int64_t left;               // bytes of 16 filters' gradient
  int64_t right;              // bytes of 16 channels of the input, paired one way
  int64_t sums;               // floats of all taps' sums
  int64_t line;               // bytes of a line buffer
};

Plan make_plan(const ConvShape& s, int threads) {
  Plan p;
  p.channels = round_up(s.C, 16), p.filters = round_up(s.K, 16);
  p.cb = ceil_div(p.channels, 32), p.kb = ceil_div(p.filters, 32);
  p.sums = s.R * s.S * p.cb * p.kb * kBlock;
  const bool large = p.sums * 4 > 700 * 1024;
  p.shared = threads > 1 && large;
  p.row = round_up(s.Q + s.S - 1, 2);
  const int64_t pixels =
      large ? 4096 : max64(min64((512 * 1024) / (p.channels + p.filters), 4096), 128);
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
  // The last tap's tiles end this far behind the last step's.
  p.piece = round_up(max64(p.rows * p.row, kDepth * p.steps) + (s.R - 1) * p.row + s.S, 2);
  p.left = kTile * p.chunk * p.steps;
  p.right = 32 * p.chunk * p.piece;
  p.line = 2 * (p.row + 32) * max64(p.channels, p.filters);
  return p;
}

int64_t input_bytes(const Plan& p) { return 2 * p.channels / 16 * p.right; }
int64_t gradient_bytes(const Plan& p) { return p.filters / 16 * p.left; }

// Scratch of one thread, and of all of them.
struct Buffers {
  char* input;  // pairs of pixels, from even then from odd numbers: [2][channels/16][pairs][16][2]
  char* gradient;  // transposed, in tiles: [filters/16][steps of all pieces][16 filters][32 pixels]
  float* sums;     // [R*S][kb][cb] blocks
  char* line;      // one row of the padded input or of the masked gradient
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

// Row `h` of the padded input of image n, in pairs, from pixel number `at` on.
void input_row(char* input, int64_t at, char* line, const Source16& x, const ConvShape& s,
               const Plan& p, int64_t n, int64_t h) {
  const int64_t pixel = 2 * p.channels, odd = p.channels / 16 * p.right;
  const int64_t right = s.pad + s.W;
  if (p.channels > s.C) memset(line, 0, right * pixel);
  memset(line, 0, s.pad * pixel);
  memset(line + right * pixel, 0, (p.row + 2 - right) * pixel);
  read_row(line + s.pad * pixel, pixel, x, n, h - s.pad);
  for (int64_t c = 0; c < p.channels; c += 16) {
    char* even_pairs = input + c / 16 * p.right + at / 2 * 64;
    char* odd_pairs = even_pairs + odd;
    for (int64_t w = 0; w < p.row; w += 2)
      for (int64_t l = 0; l < 16; l += VL) {
        const bf16* pixels = reinterpret_cast<const bf16*>(line + w * pixel) + c + l;
        const bf16 *next = pixels + p.channels, *last = next + p.channels;
        interleave(reinterpret_cast<uint32_t*>(even_pairs + 32 * w) + l, pixels, next);
        // The row's last odd pair meets zeros of the gradient only.
        interleave(reinterpret_cast<uint32_t*>(odd_pairs + 32 * w) + l, next, last);
      }
  }
}

// Row `h` of the gradient of image n, transposed, from pixel number `at` on; adds the row to bias.
void gradient_row(char* gradient, int64_t at, char* line, float* bias, const Source16& dy,
                  const ConvShape& s, const Plan& p, int64_t n, int64_t h) {
  const int64_t pixel = 2 * p.filters;
  memset(line + s.Q * pixel, 0, (p.row - s.Q) * pixel);
  if (p.filters > s.K) memset(line, 0, s.Q * pixel);
  read_row(line, pixel, dy, n, h);
  for (int64_t k = 0; k < p.filters; k += VL) {
    Vec sum = load(bias + k);
    for (int64_t q = 0; q < s.Q; ++q)
      sum += load(reinterpret_cast<const bf16*>(line + q * pixel) + k);
    store(bias + k, sum);
  }
  for (int64_t w = 0; w < p.row;) {  // up to the end of a tile at a time
    const int64_t column = (at + w) % kDepth, count = min64(kDepth - column, p.row - w);
    transpose_rows(gradient + (at + w) / kDepth * kTile + 2 * column, 64, p.left, line + w * pixel,
                   pixel, p.filters, count);
    w += count;
  }
}

// Piece `piece` as number `slot` of the chunk: its padded rows [h0, h1) of the input, and of the
// gradient those below `rows`; the last row also clears what follows it.
void transform(const Buffers& buf, const Source16& x, const Source16& dy, const ConvShape& s,
               const Plan& p, int64_t piece, int64_t slot, int64_t h0, int64_t h1) {
  const int64_t n = piece / p.parts, first = piece % p.parts * p.rows;
  const int64_t end = p.rows + s.R - 1;
  for (int64_t h = h0; h < h1; ++h) {
    input_row(buf.input, slot * p.piece + h * p.row, buf.line, x, s, p, n, first + h);
    // Rows below the map are zeros, as read_row has it.
    if (h < p.rows)
      gradient_row(buf.gradient, slot * p.steps * kDepth + h * p.row, buf.line, buf.chunk_bias, dy,
                   s, p, n, first + h);
  }
  if (h1 < end) return;
  const int64_t rest = 32 * (p.piece - end * p.row), used = p.rows * p.row;
  for (int64_t c = 0; c < 2 * p.channels / 16; ++c)
    memset(buf.input + c * p.right + 32 * (slot * p.piece + end * p.row), 0, rest);
  const int64_t tail = p.steps * kDepth - used;  // of the last tile
  for (int64_t k = 0; k < p.filters; ++k)
    memset(buf.gradient + k / 16 * p.left + (slot + 1) * p.steps * kTile - kTile + k % 16 * 64 +
               64 - 2 * tail,
           0, 2 * tail);
}

// Units of work: 32 filters by a group of channels whose input stays in the L2 cache, while the
// units of the other filters follow.
constexpr int64_t kGroup = 2;  // blocks of 32 channels

int64_t units(const Plan& p) { return ceil_div(p.cb, kGroup) * p.kb; }

// Adds the chunk's products to the sums of one block of 32 filters by 32 channels, all taps.
void accumulate(const Tiles& tiles, const Buffers& buf, const Step* steps, int64_t count,
                const ConvShape& s, const Plan& p, int64_t kb, int64_t cb, bool add) {
  const int64_t na = min64(2, p.filters / 16 - 2 * kb), nb = min64(2, p.channels / 16 - 2 * cb);
  const char* a0 = buf.gradient + 2 * kb * p.left;
  for (int64_t r = 0; r < s.R; ++r)
    for (int64_t t = 0; t < s.S; ++t) {
      const char* b0 =
          buf.input + (t % 2 * p.channels / 16 + 2 * cb) * p.right + 32 * (r * p.row + t / 2 * 2);
      float* sums = buf.sums + (((r * s.S + t) * p.kb + kb) * p.cb + cb) * kBlock;
      multiply_block(tiles, na, nb, sums, a0, a0 + p.left, 64, steps, count, b0, b0 + p.right, add);
    }
}

void accumulate_unit(const Tiles& tiles, const Buffers& buf, const Step* steps, int64_t count,
                     const ConvShape& s, const Plan& p, int64_t unit, bool add) {
  const int64_t first = unit / p.kb * kGroup;
  for (int64_t cb = first; cb < min64(first + kGroup, p.cb); ++cb)
    accumulate(tiles, buf, steps, count, s, p, unit % p.kb, cb, add);
}

// dw of one block at one tap, from `copies` sums that lie `stride` bytes apart.
void write_block(float* dw, const float* sums, int64_t copies, int64_t stride, const ConvShape& s,
                 const Plan& p, int64_t tap, int64_t kb, int64_t cb, float beta) {
  const char* from = reinterpret_cast<const char*>(sums + ((tap * p.kb + kb) * p.cb + cb) * kBlock);
  const int64_t width = min64(32, s.C - 32 * cb), used = round_up(width, 16);
  for (int64_t k = 32 * kb; k < min64(s.K, 32 * kb + 32); ++k, from += 128) {
    alignas(64) float total[32];
    memcpy(total, from, 4 * used);
    for (int64_t copy = 1; copy < copies; ++copy)
      for (int64_t j = 0; j < used; j += VL)
        store(total + j,
              load(total + j) + load(reinterpret_cast<const float*>(from + copy * stride) + j));
    store_beta(dw + (k * s.R * s.S + tap) * s.C + 32 * cb, total, width, beta);
  }
}

}  // namespace

size_t bf16_weight_workspace(const ConvShape& s, int threads) {
  const Plan p = make_plan(s, threads);
  return (size_t)round_up(sizeof(Step) * p.chunk * p.steps, 64) +
         (p.shared ? 1 : threads) * common_bytes(p) + threads * private_bytes(p);
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
  Step* steps = static_cast<Step*>(ws);
  for (int64_t i = 0; i < p.chunk * p.steps; ++i)
    steps[i] = {(int32_t)(kTile * i),
                (int32_t)(32 * (i / p.steps * p.piece + i % p.steps * kDepth))};
  char* rest = static_cast<char*>(ws) + round_up(sizeof(Step) * p.chunk * p.steps, 64);
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
        for (int64_t unit = 0; unit < units(p); ++unit)
          accumulate_unit(tiles, buf, steps, count * p.steps, s, p, unit, add);
      } else {
        for (int64_t slot = 0; slot < count; ++slot)
          transform(buf, input, gradient, s, p, first + slot, slot, 0, height);
        for (int64_t unit = 0; unit < units(p); ++unit)
          accumulate_unit(tiles, buf, steps, count * p.steps, s, p, unit, add);
      }
      PYCAP_SIMD for (int64_t k = 0; k < p.filters; ++k) buf.bias[k] += buf.chunk_bias[k];
    }
#pragma omp barrier
    if (dw) {
      const float* sums = locate(rest, p, 0, threads).sums;
#pragma omp for schedule(static)
      for (int64_t unit = 0; unit < s.R * s.S * p.cb * p.kb; ++unit)
        write_block(dw, sums, p.shared ? 1 : team, (int64_t)common_bytes(p), s, p,
                    unit / (p.cb * p.kb), unit / p.cb % p.kb, unit % p.cb, beta_w);
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
