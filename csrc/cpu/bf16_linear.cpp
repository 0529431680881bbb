// Dense layer on bfloat16 activations. With few rows it is bound by reading (or writing) the
// float32 weights: they are read once, in order, and rounded in the cache.
#include "bf16_source.h"
#include "bf16_tiles.h"
#include "pycap/linear_bf16.h"

namespace pycap::PYCAP_ISA {
namespace {

void round_numbers(bf16* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    Vec v[32 / VL];
    for (int64_t j = 0; j < 32 / VL; ++j) v[j] = load(from + i + j * VL);
    store32(to + i, v);
  }
  for (; i < count; ++i) to[i] = narrow(from[i]);
}

void round_all(bf16* rounded, const float* w, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const Range part = split(count, omp_get_num_threads(), omp_get_thread_num(), 4096);
    round_numbers(rounded + part.begin, w + part.begin, part.end - part.begin);
  }
}

// Forward: y^T = w x^T, so that the rows of w are left tiles as they lie in memory. -------------

constexpr int64_t kPart = 1024;  // inputs summed at a time

struct ForwardPlan {
  int64_t steps;           // of all inputs
  int64_t rows;            // tiles of 16 rows of x
  int64_t pitch;           // bytes between rounded rows of w
  int64_t packed, thread;  // bytes of the packed x; of one thread's scratch
};

ForwardPlan forward_plan(int64_t M, int64_t I) {
  ForwardPlan p;
  p.steps = ceil_div(I, kDepth), p.rows = ceil_div(M, 16);
  p.pitch = 2 * kPart + 64;
  p.packed = p.rows * p.steps * kTile;
  p.thread = 32 * p.pitch + ceil_div(p.rows, 2) * kBlock * 4;
  return p;
}

size_t forward_workspace(int64_t M, int64_t I, int64_t, int threads) {
  const ForwardPlan p = forward_plan(M, I);
  return (size_t)(p.packed + threads * p.thread);
}

// Rows [16*tile, +16) of x as packed tiles, the right operand.
void pack_rows(char* to, const bf16* x, int64_t tile, int64_t M, int64_t I) {
  const int64_t m0 = 16 * tile, count = min64(16, M - m0);
  for (int64_t i = 0; i < I; i += kDepth, to += kTile) {
    alignas(64) uint32_t pairs[16 * 16] = {};
    const int64_t bytes = 2 * min64(kDepth, I - i);
    for (int64_t m = 0; m < count; ++m) memcpy(pairs + 16 * m, x + (m0 + m) * I + i, bytes);
    transpose16(reinterpret_cast<uint32_t*>(to), 16, pairs, 16);
  }
}

// `count` rows of w, columns [i0, i0 + width), rounded; beyond both: zeros up to whole tiles.
void round_part(char* to, int64_t pitch, const float* w, int64_t I, int64_t i0, int64_t width,
                int64_t count) {
  const int64_t whole = round_up(width, kDepth);
  for (int64_t o = 0; o < round_up(count, 16); ++o) {
    bf16* row = reinterpret_cast<bf16*>(to + o * pitch);
    if (o >= count) {
      memset(row, 0, 2 * whole);
      continue;
    }
    const float* from = w + o * I + i0;
    // The next row's part is too short for the hardware prefetcher to find out by itself.
    if (o + 1 < count)
      for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(from + I + i);
    round_numbers(row, from, width);
    memset(row + width, 0, 2 * (whole - width));
  }
}

// y of 32 outputs from their sums: [2][16 outputs][32 rows of y] a pair of tiles.
void write_outputs(bf16* y, const float* sums, const float* b, int64_t o0, int64_t count, int64_t M,
                   int64_t O, bool relu) {
  for (int64_t m0 = 0; m0 < M; m0 += 16)
    for (int64_t half = 0; half < count; half += 16) {
      const float* from = sums + m0 / 32 * kBlock + half / 16 * 16 * 32 + m0 % 32;
      alignas(64) float turned[16 * 16];
      transpose16(reinterpret_cast<uint32_t*>(turned), 16, reinterpret_cast<const uint32_t*>(from),
                  32);
      const int64_t width = min64(16, count - half), o = o0 + half;
      for (int64_t m = 0; m < min64(16, M - m0); ++m) {
        float* row = turned + 16 * m;
        if (b)
          for (int64_t j = 0; j < width; ++j) row[j] += b[o + j];
        if (relu)
          for (int64_t j = 0; j < width; ++j) row[j] = relu1(row[j]);
        bf16* to = y + (m0 + m) * O + o;
        for (int64_t j = 0; j < width; ++j) to[j] = narrow(row[j]);
      }
    }
}

void forward(bf16* y, const bf16* x, const float* w, const bf16* rounded, const float* b, int64_t M,
             int64_t I, int64_t O, bool relu, void* ws, int threads) {
  if (M * O == 0) return;
  const ForwardPlan p = forward_plan(M, I);
  char* packed = static_cast<char*>(ws);
  const bool in_place = rounded && I % kDepth == 0;
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles(16);
    char* part = packed + p.packed + omp_get_thread_num() * p.thread;
    float* sums = reinterpret_cast<float*>(part + 32 * p.pitch);
    Step list[kPart / kDepth];
    list_steps(list, kPart / kDepth);
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < p.rows; ++tile)
      pack_rows(packed + tile * p.steps * kTile, x, tile, M, I);
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < ceil_div(O, 32); ++block) {
      const int64_t o = 32 * block, count = min64(32, O - o), na = count > 16 ? 2 : 1;
      const bool whole = in_place && count % 16 == 0;
      if (I == 0) memset(sums, 0, ceil_div(p.rows, 2) * kBlock * 4);
      for (int64_t i = 0; i < I; i += kPart) {
        const int64_t width = min64(kPart, I - i);
        const char* a = part;
        int64_t pitch = p.pitch;
        if (whole) {
          a = reinterpret_cast<const char*>(rounded + o * I + i), pitch = 2 * I;
        } else if (rounded) {
          for (int64_t r = 0; r < 16 * na; ++r) {
            memset(part + r * p.pitch, 0, 2 * round_up(width, kDepth));
            if (r < count) memcpy(part + r * p.pitch, rounded + (o + r) * I + i, 2 * width);
          }
        } else {
          round_part(part, p.pitch, w + o * I, I, i, width, count);
        }
        for (int64_t m = 0; m < p.rows; m += 2) {
          const char* right = packed + (m * p.steps + i / kDepth) * kTile;
          multiply_block(tiles, na, min64(2, p.rows - m), sums + m / 2 * kBlock, a, a + 16 * pitch,
                         pitch, list, ceil_div(width, kDepth), right, right + p.steps * kTile,
                         i > 0);
        }
      }
      write_outputs(y, sums, b, o, count, M, O, relu);
    }
  }
}

// Data gradient: dx = dy w, a panel of columns of w at a time. ----------------------------------

struct DataPlan {
  int64_t rows;          // of dy, filled up to whole tiles
  int64_t pitch;         // bytes between rows of the masked dy
  int64_t width;         // columns of a panel
  int64_t depth;         // rows of w rounded at a time
  int64_t block;         // rows of dy a pass over a panel
  int64_t left, thread;  // bytes of the masked dy; of one thread's scratch
};

DataPlan data_plan(int64_t M, int64_t I, int64_t O, int threads) {
  DataPlan p;
  p.rows = round_up(M, 16);
  p.pitch = 2 * round_up(O, kDepth) + 64;
  p.width = min64(512, round_up(ceil_div(max64(I, 1), threads), 32));
  p.depth = M > 64 ? 256 : 64;
  p.block = min64(256, round_up(p.rows, 32));
  p.left = p.rows * p.pitch;
  p.thread = p.width / 16 * p.depth / kDepth * kTile + p.block / 32 * p.width / 32 * kBlock * 4;
  return p;
}

// dy where y (null: no mask) is not 0, with zeros up to `whole` numbers.
void masked_row(bf16* to, const bf16* dy, const bf16* y, int64_t O, int64_t whole) {
  if (y)
    masked_pixel(to, dy, y, O);
  else
    memcpy(to, dy, 2 * O);
  memset(to + O, 0, 2 * (whole - O));
}

// Rows [o, o + depth) of w, columns [i, i + width), as packed tiles: [width/16][depth/32].
void pack_panel16(char* to, const float* w, int64_t o, int64_t depth, int64_t i, int64_t width,
                  int64_t I, int64_t O) {
  const int64_t steps = ceil_div(depth, kDepth), whole = width / 16 * 16;
  for (int64_t pair = 0; pair < 16 * steps; ++pair) {
    const int64_t row = o + 2 * pair;
    char* line = to + pair / 16 * kTile + pair % 16 * 64;
    const float* even = row < O ? w + row * I + i : nullptr;
    const float* odd = row + 1 < O ? w + (row + 1) * I + i : nullptr;
    int64_t c = 0;
    if (odd) {
      for (; c < whole; c += 16)
        for (int64_t l = 0; l < 16; l += VL) {
          __builtin_prefetch(odd + I + c + l);
          __builtin_prefetch(odd + 2 * I + c + l);
          const VecU low = narrow_bits(load(even + c + l)), high = narrow_bits(load(odd + c + l));
          store(reinterpret_cast<float*>(line + c / 16 * steps * kTile) + l,
                (Vec)(low | high << 16));
        }
    }
    for (; c < round_up(width, 16); ++c) {
      const float low = even && c < width ? even[c] : 0.0f, high = odd && c < width ? odd[c] : 0.0f;
      reinterpret_cast<uint32_t*>(line + c / 16 * steps * kTile)[c % 16] =
          narrow(low).bits | (uint32_t)narrow(high).bits << 16;
    }
  }
}

void write_gradient(bf16* dx, const float* sums, int64_t rows, int64_t width, int64_t I,
                    float beta) {
  for (int64_t m = 0; m < rows; ++m) {
    const float* from = sums + m * 32;
    bf16* to = dx + m * I;
    if (beta == 0.0f) {
      round_numbers(to, from, width);
    } else {
      for (int64_t i = 0; i < width; ++i) to[i] = narrow(beta * widen(to[i]) + from[i]);
    }
  }
}

void backward_data(bf16* dx, const bf16* dy, const float* w, const bf16* y, int64_t M, int64_t I,
                   int64_t O, float beta, void* ws, int threads) {
  if (M * I == 0) return;
  const DataPlan p = data_plan(M, I, O, threads);
  char* left = static_cast<char*>(ws);
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles(16);
    char* panel = left + p.left + omp_get_thread_num() * p.thread;
    float* sums = reinterpret_cast<float*>(panel + p.width / 16 * p.depth / kDepth * kTile);
    Step list[256 / kDepth];
    list_steps(list, 256 / kDepth);
#pragma omp for schedule(static)
    for (int64_t m = 0; m < p.rows; ++m) {
      bf16* row = reinterpret_cast<bf16*>(left + m * p.pitch);
      if (m < M)
        masked_row(row, dy + m * O, y ? y + m * O : nullptr, O, p.pitch / 2);
      else
        memset(row, 0, p.pitch);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < ceil_div(I, p.width); ++unit) {
      const int64_t i = unit * p.width, width = min64(p.width, I - i);
      const int64_t columns = ceil_div(width, 16);
      for (int64_t m0 = 0; m0 < p.rows; m0 += p.block) {
        const int64_t m1 = min64(p.rows, m0 + p.block), pairs = ceil_div(columns, 2);
        if (O == 0) memset(sums, 0, (m1 - m0 + 31) / 32 * pairs * kBlock * 4);
        for (int64_t o = 0; o < O; o += p.depth) {
          const int64_t steps = ceil_div(min64(p.depth, O - o), kDepth);
          pack_panel16(panel, w, o, min64(p.depth, O - o), i, width, I, O);
          for (int64_t m = m0; m < m1; m += 32)
            for (int64_t c = 0; c < columns; c += 2) {
              const char* a = left + m * p.pitch + 2 * o;
              multiply_block(tiles, min64(2, (m1 - m) / 16), min64(2, columns - c),
                             sums + ((m - m0) / 32 * pairs + c / 2) * kBlock, a, a + 16 * p.pitch,
                             p.pitch, list, steps, panel + c * steps * kTile,
                             panel + (c + 1) * steps * kTile, o > 0);
            }
        }
        for (int64_t m = m0; m < min64(m1, M); m += 32)
          for (int64_t c = 0; c < width; c += 32)
            write_gradient(dx + m * I + i + c, sums + ((m - m0) / 32 * pairs + c / 32) * kBlock,
                           min64(32, M - m), min64(32, width - c), I, beta);
      }
    }
  }
}

// Weight gradient: dw = dy^T x. -----------------------------------------------------------------

constexpr int64_t kColumns = 1024;  // inputs a panel of x
constexpr int64_t kOutputs = 512;   // outputs a unit of work

struct WeightPlan {
  int64_t steps, rows;        // of 32 rows; rows filled up
  int64_t pitch;              // bytes between outputs of the transposed dy
  int64_t left, right, line;  // bytes: transposed dy; packed x; a thread's lines
};

WeightPlan weight_plan(int64_t M, int64_t I, int64_t O) {
  WeightPlan p;
  p.steps = ceil_div(M, kDepth), p.rows = p.steps * kDepth;
  p.pitch = 2 * p.rows;
  if (p.pitch % 512 == 0) p.pitch += 64;
  p.left = round_up(round_up(O, 32) * p.pitch, 64);
  p.right = ceil_div(I, 16) * p.steps * kTile;
  p.line = 32 * 2 * round_up(O, 16);
  return p;
}

size_t backward_workspace(int64_t M, int64_t I, int64_t O, int threads) {
  const DataPlan d = data_plan(M, I, O, threads);
  const WeightPlan p = weight_plan(M, I, O);
  const int64_t data = d.left + threads * d.thread, weight = p.left + p.right + threads * p.line;
  return (size_t)max64(data, weight);
}

// x as packed tiles, the right operand: rows are summed, 16 columns of one tile each.
void pack_columns(char* to, const bf16* x, int64_t column, int64_t M, int64_t I, int64_t steps) {
  const int64_t i = 16 * column, count = min64(16, I - i);
  for (int64_t pair = 0; pair < 16 * steps; ++pair) {
    alignas(64) bf16 two[2][16] = {};
    for (int64_t r = 0; r < 2; ++r)
      if (2 * pair + r < M) memcpy(two[r], x + (2 * pair + r) * I + i, 2 * count);
    for (int64_t l = 0; l < 16; l += VL)
      interleave(reinterpret_cast<uint32_t*>(to + pair * 64) + l, two[0] + l, two[1] + l);
  }
}

void write_weights(float* dw, const float* sums, int64_t rows, int64_t width, int64_t I,
                   float beta) {
  for (int64_t o = 0; o < rows; ++o) store_beta(dw + o * I, sums + o * 32, width, beta);
}

void backward_weight(float* dw, float* db, const bf16* dy, const bf16* x, const bf16* y, int64_t M,
                     int64_t I, int64_t O, float beta_w, float beta_b, void* ws, int threads) {
  const WeightPlan p = weight_plan(M, I, O);
  char *left = static_cast<char*>(ws), *right = left + p.left;
  const int64_t panels = ceil_div(I, kColumns), parts = ceil_div(O, kOutputs);
#pragma omp parallel num_threads(threads)
  {
    const Tiles tiles(16);
    const int64_t team = omp_get_num_threads(), id = omp_get_thread_num();
    Step list[64];
    list_steps(list, 64);
    // Threads share out the outputs; each masks and transposes its own, and sums them up.
    const Range mine = split(O, team, id, 32);
    const int64_t count = mine.end - mine.begin, whole = round_up(count, 16);
    bf16* lines = reinterpret_cast<bf16*>(right + p.right + id * p.line);
    if (count > 0) {
      if (db) scale_beta(db + mine.begin, count, beta_b);
      for (int64_t m0 = 0; m0 < p.rows; m0 += kDepth) {
        for (int64_t m = m0; m < m0 + kDepth; ++m) {
          bf16* line = lines + (m - m0) * whole;
          if (m >= M) {
            memset(line, 0, 2 * whole);
            continue;
          }
          masked_row(line, dy + m * O + mine.begin, y ? y + m * O + mine.begin : nullptr, count,
                     whole);
        }
        if (db) {
          for (int64_t o = 0; o < count; ++o) {
            float sum = 0.0f;
            for (int64_t m = 0; m < kDepth; ++m) sum += widen(lines[m * whole + o]);
            db[mine.begin + o] += sum;
          }
        }
        transpose_rows(left + mine.begin * p.pitch + 2 * m0, p.pitch, 16 * p.pitch,
                       reinterpret_cast<const char*>(lines), 2 * whole, whole, kDepth);
      }
    }
    if (dw && M > 0) {
#pragma omp for schedule(static)
      for (int64_t column = 0; column < ceil_div(I, 16); ++column)
        pack_columns(right + column * p.steps * kTile, x, column, M, I, p.steps);
#pragma omp for schedule(dynamic, 1)
      for (int64_t unit = 0; unit < panels * parts; ++unit) {
        const int64_t i0 = unit / parts * kColumns, i1 = min64(i0 + kColumns, I);
        const int64_t o0 = unit % parts * kOutputs, o1 = min64(o0 + kOutputs, O);
        alignas(64) float sums[kBlock];
        for (int64_t o = o0; o < o1; o += 32)
          for (int64_t i = i0; i < i1; i += 32) {
            const int64_t na = o1 - o > 16 ? 2 : 1, nb = i1 - i > 16 ? 2 : 1;
            for (int64_t step = 0; step < p.steps; step += 64) {
              const char* a = left + o * p.pitch + 64 * step;
              const char* b = right + (i / 16 * p.steps + step) * kTile;
              multiply_block(tiles, na, nb, sums, a, a + 16 * p.pitch, p.pitch, list,
                             min64(64, p.steps - step), b, b + p.steps * kTile, step > 0);
            }
            write_weights(dw + o * I + i, sums, min64(32, o1 - o), min64(32, i1 - i), I, beta_w);
          }
      }
    }
  }
  if (dw && M == 0) scale_beta(dw, O * I, beta_w);
}

}  // namespace

extern const LinearBf16Kernels linear_bf16_kernels;
const LinearBf16Kernels linear_bf16_kernels = {
    round_all, forward_workspace, forward, backward_workspace, backward_data, backward_weight};

}  // namespace pycap::PYCAP_ISA
