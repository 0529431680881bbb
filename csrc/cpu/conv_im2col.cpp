// Convolution by im2col: blocks of output rows whose patches fit the L2 cache, one single-threaded
// GEMM a block.
#include "conv_im2col.h"

namespace pycap::PYCAP_ISA {
namespace {

constexpr int64_t kBlockFloats = 192 * 1024;  // patches of one block: 768 KiB

// Output rows a block holds: even, so that a pooling window never straddles two blocks.
int64_t block_rows(const ConvShape& s) {
  const int64_t row = s.Q * (s.R * s.S * s.C + s.K);
  int64_t rows = kBlockFloats / max64(row, 1);
  // A GEMM of fewer rows than this spends its time packing the weights.
  rows = max64(rows, ceil_div(48, max64(s.Q, 1)));
  rows = min64(rows, max64(s.P, 1));
  return max64(2, (rows + 1) / 2 * 2);
}

int64_t row_blocks(const ConvShape& s) { return ceil_div(s.P, block_rows(s)); }

bool is_plain(const ConvShape& s) { return s.R == 1 && s.S == 1 && s.stride == 1 && s.pad == 0; }

// col [Q, R*S*C]: the patches of output row p of image n.
void patches_row(float* col, const float* x, const ConvShape& s, int64_t n, int64_t p) {
  const int64_t C = s.C, width = s.S * C;
  for (int64_t r = 0; r < s.R; ++r) {
    const int64_t h = p * s.stride - s.pad + r;
    float* to = col + r * width;
    const int64_t step = s.R * width;
    if (h < 0 || h >= s.H) {
      for (int64_t q = 0; q < s.Q; ++q) memset(to + q * step, 0, sizeof(float) * width);
      continue;
    }
    const float* row = x + (n * s.H + h) * s.W * C;
    for (int64_t q = 0; q < s.Q; ++q, to += step) {
      const int64_t w0 = q * s.stride - s.pad;
      if (w0 >= 0 && w0 + s.S <= s.W) {
        memcpy(to, row + w0 * C, sizeof(float) * width);
        continue;
      }
      for (int64_t t = 0; t < s.S; ++t) {
        const int64_t v = w0 + t;
        if (v >= 0 && v < s.W)
          memcpy(to + t * C, row + v * C, sizeof(float) * C);
        else
          memset(to + t * C, 0, sizeof(float) * C);
      }
    }
  }
}

// Bias and ReLU over [rows, K] in place.
void bias_relu(float* y, const ConvEpilogue& e, int64_t rows, int64_t K) {
  if (!e.b && !e.relu) return;
  for (int64_t i = 0; i < rows; ++i) {
    float* row = y + i * K;
    if (e.b && e.relu) {
      PYCAP_SIMD for (int64_t k = 0; k < K; ++k) row[k] = relu1(row[k] + e.b[k]);
    } else if (e.b) {
      PYCAP_SIMD for (int64_t k = 0; k < K; ++k) row[k] += e.b[k];
    } else {
      PYCAP_SIMD for (int64_t k = 0; k < K; ++k) row[k] = relu1(row[k]);
    }
  }
}

int64_t forward_floats(const ConvShape& s, bool pool) {
  const int64_t pixels = block_rows(s) * s.Q;
  return align_floats(is_plain(s) ? 0 : pixels * s.R * s.S * s.C) +
         (pool ? align_floats(pixels * s.K) : 0);
}

}  // namespace

size_t im2col_forward_workspace(const ConvShape& s, bool pool, int threads) {
  return sizeof(float) * (size_t)(forward_floats(s, pool) * threads);
}

void im2col_forward(float* y, const float* x, const float* w, const ConvEpilogue& e,
                    const ConvShape& s, void* ws, int threads) {
  const int64_t rows = block_rows(s), blocks = row_blocks(s), depth = s.R * s.S * s.C;
  const int64_t P2 = s.P / 2, Q2 = s.Q / 2, A = ceil_div(s.K, 4);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t unit = 0; unit < s.N * blocks; ++unit) {
    float* col = static_cast<float*>(ws) + forward_floats(s, e.argmax) * omp_get_thread_num();
    float* full = col + align_floats(is_plain(s) ? 0 : rows * s.Q * depth);
    const int64_t n = unit / blocks, p0 = unit % blocks * rows, p1 = min64(s.P, p0 + rows);
    const int64_t pixels = (p1 - p0) * s.Q;
    const float* a = col;
    if (is_plain(s)) {
      a = x + (n * s.P + p0) * s.Q * s.C;
    } else {
      for (int64_t p = p0; p < p1; ++p) patches_row(col + (p - p0) * s.Q * depth, x, s, n, p);
    }
    float* out = e.argmax ? full : y + (n * s.P + p0) * s.Q * s.K;
    sgemm(false, true, pixels, s.K, depth, 1.0f, a, depth, w, depth, 0.0f, out, s.K);
    bias_relu(out, e, pixels, s.K);
    if (!e.argmax) continue;
    for (int64_t p = p0; p + 1 < p1; p += 2) {
      for (int64_t q = 0; q < Q2; ++q) {
        const float* top = full + ((p - p0) * s.Q + 2 * q) * s.K;
        const float* bottom = top + s.Q * s.K;
        const int64_t to = (n * P2 + p / 2) * Q2 + q;
        pool_pixel(y + to * s.K, e.argmax + to * A, top, top + s.K, bottom, bottom + s.K, s.K);
      }
    }
  }
}

namespace {

// The data gradient works tap by tap on a share of the channels, so that one image can keep several
// threads busy.
int64_t channel_parts(const ConvShape& s, int threads) {
  return s.N >= threads ? 1 : min64(ceil_div(threads, max64(s.N, 1)), max64(s.C / 16, 1));
}

int64_t data_rows(const ConvShape& s) {
  return max64(1, min64(s.P, kBlockFloats / max64(s.Q * (s.K + s.C), 1)));
}

int64_t data_floats(const ConvShape& s) {
  const int64_t pixels = data_rows(s) * s.Q;
  return align_floats(pixels * s.K) + align_floats(pixels * s.C);
}

}  // namespace

size_t im2col_backward_data_workspace(const ConvShape& s, int threads) {
  return sizeof(float) * (size_t)(data_floats(s) * threads);
}

void im2col_backward_data(float* dx, const float* dy, const float* w, const float* y,
                          const uint8_t* argmax, const ConvShape& s, float beta, void* ws,
                          int threads) {
  const int64_t parts = channel_parts(s, threads), rows = data_rows(s), taps = s.R * s.S;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t unit = 0; unit < s.N * parts; ++unit) {
    float* grad = static_cast<float*>(ws) + data_floats(s) * omp_get_thread_num();
    float* part = grad + align_floats(rows * s.Q * s.K);
    const int64_t n = unit / parts;
    const Range ch = split(s.C, parts, unit % parts, 16);
    const int64_t width = ch.end - ch.begin;
    if (width <= 0) continue;
    for (int64_t i = 0; i < s.H * s.W; ++i)
      scale_beta(dx + (n * s.H * s.W + i) * s.C + ch.begin, width, beta);
    for (int64_t p0 = 0; p0 < s.P; p0 += rows) {
      const int64_t p1 = min64(s.P, p0 + rows);
      for (int64_t p = p0; p < p1; ++p)
        gradient_row(grad + (p - p0) * s.Q * s.K, dy, y, argmax, s, n, p);
      for (int64_t tap = 0; tap < taps; ++tap) {
        sgemm(false, false, (p1 - p0) * s.Q, width, s.K, 1.0f, grad, s.K, w + tap * s.C + ch.begin,
              taps * s.C, 0.0f, part, width);
        for (int64_t p = p0; p < p1; ++p) {
          const int64_t h = p * s.stride - s.pad + tap / s.S;
          if (h < 0 || h >= s.H) continue;
          for (int64_t q = 0; q < s.Q; ++q) {
            const int64_t v = q * s.stride - s.pad + tap % s.S;
            if (v < 0 || v >= s.W) continue;
            float* to = dx + ((n * s.H + h) * s.W + v) * s.C + ch.begin;
            const float* from = part + ((p - p0) * s.Q + q) * width;
            PYCAP_SIMD for (int64_t c = 0; c < width; ++c) to[c] += from[c];
          }
        }
      }
    }
  }
}

namespace {

// Each of `tm` threads accumulates a whole dw over its images' rows; the others split the output
// channels, so that the accumulators stay under 64 MiB together.
Grid weight_grid(const ConvShape& s, int threads) {
  const int64_t floats = max64(s.K * s.R * s.S * s.C, 1);
  int64_t tm = max64(1, min64(threads, (int64_t{16} << 20) / floats));
  while (threads % tm) --tm;
  return {tm, threads / tm};
}

int64_t weight_floats(const ConvShape& s) {
  const int64_t pixels = block_rows(s) * s.Q;
  return align_floats(pixels * s.R * s.S * s.C) + align_floats(pixels * s.K);
}

int64_t accumulator_floats(const ConvShape& s) {
  return align_floats(s.K * s.R * s.S * s.C) + align_floats(s.K);
}

}  // namespace

size_t im2col_backward_weight_workspace(const ConvShape& s, int threads) {
  const Grid g = weight_grid(s, threads);
  return sizeof(float) * (size_t)(weight_floats(s) * threads + accumulator_floats(s) * g.tm);
}

void im2col_backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                            const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                            void* ws, int threads) {
  const int64_t rows = block_rows(s), blocks = row_blocks(s), depth = s.R * s.S * s.C;
  const Grid g = weight_grid(s, threads);
  float* accumulators = static_cast<float*>(ws) + weight_floats(s) * threads;
#pragma omp parallel num_threads(threads)
  {
    const int64_t id = omp_get_thread_num();
    float* col = static_cast<float*>(ws) + weight_floats(s) * id;
    float* grad = col + align_floats(rows * s.Q * depth);
    float* acc = accumulators + accumulator_floats(s) * (id / g.tn);
    float* acc_b = acc + align_floats(s.K * depth);
    const Range ks = split(s.K, g.tn, id % g.tn);
    const Range units = split(s.N * blocks, g.tm, id / g.tn);
    const int64_t nk = ks.end - ks.begin;
    float* mine = acc + ks.begin * depth;
    memset(mine, 0, sizeof(float) * nk * depth);
    memset(acc_b + ks.begin, 0, sizeof(float) * nk);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t n = unit / blocks, p0 = unit % blocks * rows, p1 = min64(s.P, p0 + rows);
      const int64_t pixels = (p1 - p0) * s.Q;
      for (int64_t p = p0; p < p1; ++p) {
        gradient_row(grad + (p - p0) * s.Q * s.K, dy, y, argmax, s, n, p);
        if (dw) patches_row(col + (p - p0) * s.Q * depth, x, s, n, p);
      }
      if (dw)
        sgemm(true, false, nk, depth, pixels, 1.0f, grad + ks.begin, s.K, col, depth, 1.0f, mine,
              depth);
      for (int64_t i = 0; i < pixels; ++i) {
        const float* row = grad + i * s.K;
        PYCAP_SIMD for (int64_t k = ks.begin; k < ks.end; ++k) acc_b[k] += row[k];
      }
    }
#pragma omp barrier
    // The sum over threads, in the threads' order, each thread taking a part of the elements.
    for (int pass = 0; pass < 2; ++pass) {
      float* out = pass ? db : dw;
      if (!out) continue;
      const float beta = pass ? beta_b : beta_w;
      const float* from = accumulators + (pass ? align_floats(s.K * depth) : 0);
      const Range part = split(pass ? s.K : s.K * depth, g.tm * g.tn, id, 16);
      const int64_t step = accumulator_floats(s);
      for (int64_t i = part.begin; i < part.end; i += 64) {
        const int64_t w = min64(64, part.end - i);
        float sum[64];
        for (int64_t j = 0; j < w; ++j) sum[j] = from[i + j];
        for (int64_t t = 1; t < g.tm; ++t)
          for (int64_t j = 0; j < w; ++j) sum[j] += from[t * step + i + j];
        store_beta(out + i, sum, w, beta);
      }
    }
  }
}

}  // namespace pycap::PYCAP_ISA
