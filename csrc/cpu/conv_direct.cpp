// Convolution of few channels without patches: in a padded row the S*C inputs of a filter row are
// contiguous, so the product reads them in place, and bias and ReLU are applied to the sums in
// registers.
#include "conv_direct.h"

#include "conv_rows.h"
#include "conv_table.h"
#include "micro_gemm.h"

namespace pycap::PYCAP_ISA {
namespace {

constexpr int64_t kRows =
    8;  // output rows a block (even: a pooling window never straddles two blocks)

int64_t padded_row(const ConvShape& s) { return align_floats((s.W + 2 * s.pad) * s.C); }

int64_t input_rows(const ConvShape& s) { return (kRows - 1) * s.stride + s.R; }

// rows [input_rows, padded_row]: the padded input rows of output rows p0 .. p0+count-1.
void load_rows(float* rows, const float* x, const ConvShape& s, int64_t n, int64_t p0,
               int64_t count) {
  const int64_t ld = padded_row(s), edge = s.pad * s.C, width = s.W * s.C;
  for (int64_t i = 0; i < (count - 1) * s.stride + s.R; ++i) {
    const int64_t h = p0 * s.stride - s.pad + i;
    float* to = rows + i * ld;
    if (h < 0 || h >= s.H) {
      memset(to, 0, sizeof(float) * ld);
      continue;
    }
    memset(to, 0, sizeof(float) * edge);
    memcpy(to + edge, x + (n * s.H + h) * width, sizeof(float) * width);
    memset(to + edge + width, 0, sizeof(float) * (ld - edge - width));
  }
}

// M pixels of one output row times one panel of NV*VL filters: w [R, S*C, NV*VL].
template <int M, int NV>
inline void pixels(float* y, int64_t ldy, const float* rows, int64_t ld, int64_t step,
                   const float* w, const float* b, int64_t R, int64_t depth, bool relu) {
  Vec sum[M][NV];
#pragma GCC unroll 2
  for (int j = 0; j < NV; ++j) {
    const Vec bias = b ? load(b + j * VL) : Vec{};
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) sum[i][j] = bias;
  }
  for (int64_t r = 0; r < R; ++r) {
    const float* a = rows + r * ld;
    for (int64_t p = 0; p < depth; ++p, w += NV * VL) {
      Vec filter[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) filter[j] = load(w + j * VL);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const Vec v = broadcast(a[i * step + p]);
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j) sum[i][j] += v * filter[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j)
      store(y + i * ldy + j * VL, relu ? select(sum[i][j] < 0.0f, Vec{}, sum[i][j]) : sum[i][j]);
}

template <int NV, int M = MR>
inline void pixels_tail(int64_t m, float* y, int64_t ldy, const float* rows, int64_t ld,
                        int64_t step, const float* w, const float* b, int64_t R, int64_t depth,
                        bool relu) {
  if (m == M) {
    pixels<M, NV>(y, ldy, rows, ld, step, w, b, R, depth, relu);
  } else if constexpr (M > 1) {
    pixels_tail<NV, M - 1>(m, y, ldy, rows, ld, step, w, b, R, depth, relu);
  }
}

// One output row y [Q,K].
void output_row(float* y, const float* rows, const float* packed, const float* b,
                const ConvShape& s, bool relu) {
  const int64_t depth = s.S * s.C, step = s.stride * s.C, ld = padded_row(s);
  const int64_t blocks = ceil_div(s.Q, MR);
  for (int64_t k0 = 0; k0 < s.K; k0 += NR) {
    const float* w = packed + k0 * s.R * depth;
    const float* bias = b ? b + k0 : nullptr;
    for (int64_t i = 0; i < blocks; ++i) {
      const Range r = split(s.Q, blocks, i);
      float* to = y + r.begin * s.K + k0;
      const float* from = rows + r.begin * step;
      if (s.K - k0 >= NR)
        pixels_tail<2>(r.end - r.begin, to, s.K, from, ld, step, w, bias, s.R, depth, relu);
      else
        pixels_tail<1>(r.end - r.begin, to, s.K, from, ld, step, w, bias, s.R, depth, relu);
    }
  }
}

int64_t thread_floats(const ConvShape& s) {
  return align_floats(input_rows(s) * padded_row(s)) + align_floats(2 * s.Q * s.K);
}

int64_t weight_floats(const ConvShape& s) { return s.K * s.R * s.S * s.C; }

}  // namespace

bool direct_fits(const ConvShape& s) {
  return s.C <= kDirectMostInputs && s.K % 16 == 0 && s.K > 0 && s.C > 0 && s.K <= 256 && s.S <= 16;
}

size_t direct_forward_workspace(const ConvShape& s, int threads) {
  return sizeof(float) * (size_t)(align_floats(weight_floats(s)) + threads * thread_floats(s));
}

void direct_forward(float* y, uint8_t* argmax, const float* x, const float* w, const float* b,
                    const ConvShape& s, bool relu, void* ws, int threads) {
  const int64_t depth = s.R * s.S * s.C, blocks = ceil_div(s.P, kRows), ld = padded_row(s);
  const int64_t P2 = s.P / 2, Q2 = s.Q / 2;
  float* packed = static_cast<float*>(ws);
  for (int64_t k0 = 0; k0 < s.K; k0 += NR) {
    const int64_t width = min64(NR, s.K - k0);
    for (int64_t p = 0; p < depth; ++p)
      for (int64_t j = 0; j < width; ++j)
        packed[k0 * depth + p * width + j] = w[(k0 + j) * depth + p];
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t unit = 0; unit < s.N * blocks; ++unit) {
    float* rows = packed + align_floats(weight_floats(s)) + omp_get_thread_num() * thread_floats(s);
    float* pair = rows + align_floats(input_rows(s) * ld);
    const int64_t n = unit / blocks, p0 = unit % blocks * kRows, count = min64(kRows, s.P - p0);
    load_rows(rows, x, s, n, p0, count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t p = p0 + i;
      float* to = argmax ? pair + (i % 2) * s.Q * s.K : y + (n * s.P + p) * s.Q * s.K;
      output_row(to, rows + i * s.stride * ld, packed, b, s, relu);
      if (!argmax || i % 2 == 0) continue;
      for (int64_t q = 0; q < Q2; ++q) {
        const float* top = pair + 2 * q * s.K;
        const float* bottom = top + s.Q * s.K;
        const int64_t at = ((n * P2 + p / 2) * Q2 + q) * s.K;
        pool_pixel(y + at, argmax + at / 4, top, top + s.K, bottom, bottom + s.K, s.K);
      }
    }
  }
}

namespace {

int64_t accumulator_floats(const ConvShape& s) { return weight_floats(s) + s.K; }

int64_t weight_thread_floats(const ConvShape& s) {
  return align_floats(input_rows(s) * padded_row(s)) + align_floats(s.Q * s.K) +
         2 * align_floats(accumulator_floats(s));
}

}  // namespace

size_t direct_weight_workspace(const ConvShape& s, int threads) {
  return sizeof(float) * (size_t)(threads * weight_thread_floats(s));
}

void direct_backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                            const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                            void* ws, int threads) {
  const int64_t blocks = ceil_div(s.P, kRows), ld = padded_row(s), width = s.S * s.C;
  const int64_t floats = accumulator_floats(s), step = weight_thread_floats(s);
  float* all = static_cast<float*>(
      ws);  // a thread's first floats are its sums: dw as [R*S*C, K], then db [K]
#pragma omp parallel num_threads(threads)
  {
    const int64_t team = omp_get_num_threads(), id = omp_get_thread_num();
    float* total = all + id * step;
    float* part =
        total + align_floats(floats);  // one block's sums: the error does not grow with the batch
    float* part_b = part + weight_floats(s);
    float* rows = part + align_floats(floats);
    float* grad = rows + align_floats(input_rows(s) * ld);
    memset(total, 0, sizeof(float) * floats);
    const Range units = split(s.N * blocks, team, id);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t n = unit / blocks, p0 = unit % blocks * kRows, count = min64(kRows, s.P - p0);
      load_rows(rows, x, s, n, p0, count);
      memset(part, 0, sizeof(float) * floats);
      for (int64_t i = 0; i < count; ++i) {
        gradient_row(grad, dy, y, argmax, s, n, p0 + i);
        for (int64_t r = 0; r < s.R; ++r)
          for (int64_t k0 = 0; k0 < s.K; k0 += NR)
            gemm_panel(width, min64(NR, s.K - k0), s.Q, rows + (i * s.stride + r) * ld, 1,
                       s.stride * s.C, grad + k0, s.K, part + r * width * s.K + k0, s.K, true);
        for (int64_t q = 0; q < s.Q; ++q) {
          const float* from = grad + q * s.K;
          PYCAP_SIMD for (int64_t k = 0; k < s.K; ++k) part_b[k] += from[k];
        }
      }
      PYCAP_SIMD for (int64_t i = 0; i < floats; ++i) total[i] += part[i];
    }
  }
  // The threads' sums in their order, transposed to [K, R*S*C]; small enough for one thread.
  const int64_t depth = s.R * width;
  for (int t = 1; t < threads; ++t) {
    const float* from = all + t * step;
    PYCAP_SIMD for (int64_t i = 0; i < floats; ++i) all[i] += from[i];
  }
  for (int64_t k = 0; k < s.K; ++k)
    for (int64_t p = 0; p < depth; ++p) {
      float* to = dw + k * depth + p;
      *to = beta_w == 0.0f ? all[p * s.K + k] : beta_w * *to + all[p * s.K + k];
    }
  if (db) store_beta(db, all + depth * s.K, s.K, beta_b);
}

}  // namespace pycap::PYCAP_ISA
