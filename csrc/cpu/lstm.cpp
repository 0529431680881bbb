// LSTM over a whole sequence: one GEMM for all inputs, a loop over steps inside one parallel
// region, and the weights' gradients as one GEMM each after the loop.
#include "pycap/lstm.h"

#include "gemm.h"
#include "vecmath.h"

namespace pycap::PYCAP_ISA {
namespace {

// Each thread owns rows (batch) and hidden columns. The recurrence never mixes rows, so while the
// batch is large enough the threads split rows only and need no barrier.
Grid step_grid(const LstmShape& s, int threads) {
  if (s.N * s.H * s.H * 4 < 32768) return {1, 1};
  if (s.N >= 16 * threads) return {threads, 1};
  return {1, min64(threads, max64(s.H / 16, 1))};
}

// A packed weight pays when it is used for several steps; its columns must fill whole panels.
bool packs(const LstmShape& s) { return s.T > 1 && s.N >= 4 && s.H % NR == 0; }

size_t forward_workspace(const LstmShape& s, int) {
  const int64_t zeros = align_floats(s.N * s.H);  // in place of an absent h0 or c0
  return sizeof(float) * (size_t)(zeros + (packs(s) ? 4 * s.H * s.H : 0));
}

// packed: panels of NR columns of op(w) [k, n], each [k, NR].
void pack_all(float* packed, const float* w, bool transposed, int64_t k, int64_t n, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t j0 = 0; j0 < n; j0 += NR)
    pack_panel(packed + j0 * k, transposed ? w + j0 * k : w + j0, transposed ? k : n, transposed, k,
               NR, 1.0f);
}

// Columns [j0, j1) of c [m, n] = a [m, k] * packed + (add ? c : 0), deep sums in cache-sized parts.
void multiply_packed(float* c, int64_t ldc, const float* a, int64_t lda, const float* packed,
                     int64_t m, int64_t k, int64_t j0, int64_t j1, bool add) {
  for (int64_t j = j0; j < j1; j += NR)
    for (int64_t p = 0; p < k; p += KC)
      gemm_panel(m, NR, min64(KC, k - p), a + p, lda, 1, packed + j * k + p * NR, NR, c + j, ldc,
                 add || p > 0);
}

// Turns the pre-activations (without bias) of hidden units [j0, j1) of one row into gates, c and h.
void gates_row(float* h, float* c, float* gates, const float* c_prev, const float* b, int64_t H,
               int64_t j0, int64_t j1) {
  float *gi = gates, *gf = gates + H, *gg = gates + 2 * H, *go = gates + 3 * H;
  const float *bi = b, *bf = b + H, *bg = b + 2 * H, *bo = b + 3 * H;
  PYCAP_SIMD for (int64_t j = j0; j < j1; ++j) {
    const float i = sigmoid1(gi[j] + bi[j]), f = sigmoid1(gf[j] + bf[j]);
    const float g = tanh1(gg[j] + bg[j]), o = sigmoid1(go[j] + bo[j]);
    const float cell = f * c_prev[j] + i * g;
    gi[j] = i, gf[j] = f, gg[j] = g, go[j] = o;
    c[j] = cell;
    h[j] = o * tanh1(cell);
  }
}

void forward(float* h, float* c, float* gates, const float* x, const float* h0, const float* c0,
             const float* w_x, const float* w_h, const float* b, const uint8_t* mask,
             const LstmShape& s, void* ws, int threads) {
  const int64_t N = s.N, H = s.H, G = 4 * H;
  if (s.T * N * H == 0) return;
  sgemm_parallel(false, true, s.T * N, G, s.I, 1.0f, x, s.I, w_x, s.I, 0.0f, gates, G, threads);
  float* zeros = static_cast<float*>(ws);
  if (!h0 || !c0) memset(zeros, 0, sizeof(float) * N * H);
  float* packed = packs(s) ? zeros + align_floats(N * H) : nullptr;
  if (packed) pack_all(packed, w_h, true, H, G, threads);
  const Grid grid = step_grid(s, threads);
#pragma omp parallel num_threads((int)(grid.tm * grid.tn))
  {
    const int64_t id = omp_get_thread_num();
    const Range rows = split(N, grid.tm, id / grid.tn);
    const Range cols = split(H, grid.tn, id % grid.tn, packs(s) ? NR : 16);
    const int64_t nr = rows.end - rows.begin, nc = cols.end - cols.begin;
    for (int64_t t = 0; t < s.T; ++t) {
      const float* h_prev = t ? h + (t - 1) * N * H : h0 ? h0 : zeros;
      const float* c_prev = t ? c + (t - 1) * N * H : c0 ? c0 : zeros;
      float* z = gates + (t * N + rows.begin) * G;
      if (t || h0) {
        const float* from = h_prev + rows.begin * H;
        if (packed) {
          for (int64_t gate = 0; gate < 4; ++gate)
            multiply_packed(z, G, from, H, packed, nr, H, gate * H + cols.begin,
                            gate * H + cols.end, true);
        } else if (grid.tn == 1) {
          sgemm(false, true, nr, G, H, 1.0f, from, H, w_h, H, 1.0f, z, G);
        } else {
          for (int64_t gate = 0; gate < 4; ++gate)
            sgemm(false, true, nr, nc, H, 1.0f, from, H, w_h + (gate * H + cols.begin) * H, H, 1.0f,
                  z + gate * H + cols.begin, G);
        }
      }
      for (int64_t n = rows.begin; n < rows.end; ++n) {
        float* ht = h + (t * N + n) * H;
        float* ct = c + (t * N + n) * H;
        float* gt = gates + (t * N + n) * G;
        if (!mask || mask[t * N + n]) {
          gates_row(ht, ct, gt, c_prev + n * H, b, H, cols.begin, cols.end);
          continue;
        }
        memcpy(ht + cols.begin, h_prev + n * H + cols.begin, sizeof(float) * nc);
        memcpy(ct + cols.begin, c_prev + n * H + cols.begin, sizeof(float) * nc);
        for (int64_t gate = 0; gate < 4; ++gate)
          memset(gt + gate * H + cols.begin, 0, sizeof(float) * nc);
      }
      if (grid.tn > 1) {
#pragma omp barrier
      }
    }
  }
}

size_t backward_workspace(const LstmShape& s, int) {
  const int64_t carries = 3 * align_floats(s.N * s.H);  // carried dh, carried dc, zeros
  return sizeof(float) * (size_t)(carries + (packs(s) ? 4 * s.H * s.H : 0));
}

// One row, hidden units [j0, j1): gates become dgates, dc the gradient of c_prev.
void dgates_row(float* gates, float* dc, const float* dh, const float* dh_step, const float* c,
                const float* c_prev, int64_t H, int64_t j0, int64_t j1) {
  float *gi = gates, *gf = gates + H, *gg = gates + 2 * H, *go = gates + 3 * H;
  PYCAP_SIMD for (int64_t j = j0; j < j1; ++j) {
    const float i = gi[j], f = gf[j], g = gg[j], o = go[j];
    const float into_h = dh[j] + dh_step[j], tc = tanh1(c[j]);
    const float into_c = dc[j] + into_h * o * (1.0f - tc * tc);
    gi[j] = into_c * g * i * (1.0f - i);
    gf[j] = into_c * c_prev[j] * f * (1.0f - f);
    gg[j] = into_c * i * (1.0f - g * g);
    go[j] = into_h * tc * o * (1.0f - o);
    dc[j] = into_c * f;
  }
}

// The loop over steps, last to first; leaves the gradients of h0 and c0 in dh_carry and dc_carry.
void backward_steps(float* gates, float* dh_carry, float* dc_carry, const float* zeros,
                    const float* packed, const float* dh, const float* c, const float* c0,
                    const float* w_h, const uint8_t* mask, bool want_h0, const LstmShape& s,
                    int threads) {
  const int64_t N = s.N, H = s.H, G = 4 * H;
  const Grid grid = step_grid(s, threads);
#pragma omp parallel num_threads((int)(grid.tm * grid.tn))
  {
    const int64_t id = omp_get_thread_num();
    const Range rows = split(N, grid.tm, id / grid.tn);
    const Range cols = split(H, grid.tn, id % grid.tn, packs(s) ? NR : 16);
    const int64_t nr = rows.end - rows.begin, nc = cols.end - cols.begin;
    for (int64_t t = s.T - 1; t >= 0; --t) {
      const float* c_prev = t ? c + (t - 1) * N * H : c0 ? c0 : zeros;
      for (int64_t n = rows.begin; n < rows.end; ++n) {
        float* gt = gates + (t * N + n) * G;
        const float* step = dh ? dh + (t * N + n) * H : zeros;
        if (!mask || mask[t * N + n]) {
          dgates_row(gt, dc_carry + n * H, dh_carry + n * H, step, c + (t * N + n) * H,
                     c_prev + n * H, H, cols.begin, cols.end);
          continue;
        }
        for (int64_t gate = 0; gate < 4; ++gate)
          memset(gt + gate * H + cols.begin, 0, sizeof(float) * nc);
      }
      if (grid.tn > 1) {
#pragma omp barrier
      }
      // The row's own carry is dead unless the step was masked, where it passes through with dh
      // added.
      if (t > 0 || want_h0) {
        const float* d = gates + (t * N + rows.begin) * G;
        for (int64_t n = rows.begin; n < rows.end; ++n) {
          float* carry = dh_carry + n * H;
          if (!mask || mask[t * N + n]) {
            memset(carry + cols.begin, 0, sizeof(float) * nc);
          } else if (dh) {
            const float* step = dh + (t * N + n) * H;
            PYCAP_SIMD for (int64_t j = cols.begin; j < cols.end; ++j) carry[j] += step[j];
          }
        }
        float* carry = dh_carry + rows.begin * H;
        if (packed)
          multiply_packed(carry, H, d, G, packed, nr, G, cols.begin, cols.end, true);
        else
          sgemm(false, false, nr, nc, G, 1.0f, d, G, w_h + cols.begin, H, 1.0f, carry + cols.begin,
                H);
      }
    }
  }
}

void backward(float* dx, float* dw_x, float* dw_h, float* db, float* dh0, float* dc0, float* gates,
              const float* dh, const float* dc_n, const float* x, const float* h, const float* c,
              const float* h0, const float* c0, const float* w_x, const float* w_h,
              const uint8_t* mask, const float* betas, const LstmShape& s, void* ws, int threads) {
  const int64_t N = s.N, H = s.H, G = 4 * H, I = s.I, NH = N * H, M = s.T * N;
  float* dh_carry = static_cast<float*>(ws);
  float* dc_carry = dh_carry + align_floats(NH);
  float* zeros = dc_carry + align_floats(NH);
  memset(dh_carry, 0, sizeof(float) * NH);
  memset(zeros, 0, sizeof(float) * NH);
  if (dc_n)
    memcpy(dc_carry, dc_n, sizeof(float) * NH);
  else
    memset(dc_carry, 0, sizeof(float) * NH);
  float* packed = packs(s) ? zeros + align_floats(NH) : nullptr;
  if (packed) pack_all(packed, w_h, false, G, H, threads);
  if (NH > 0)
    backward_steps(gates, dh_carry, dc_carry, zeros, packed, dh, c, c0, w_h, mask, dh0 != nullptr,
                   s, threads);
  if (dx) sgemm_parallel(false, false, M, I, G, 1.0f, gates, G, w_x, I, betas[0], dx, I, threads);
  if (dw_x) sgemm_parallel(true, false, G, I, M, 1.0f, gates, G, x, I, betas[1], dw_x, I, threads);
  if (dw_h) {
    // Step t's gates meet h[t-1]: one product over steps 1.., one for h0.
    const bool later = s.T > 1;
    if (h0 && s.T > 0)
      sgemm_parallel(true, false, G, H, N, 1.0f, gates, G, h0, H, betas[2], dw_h, H, threads);
    if (later)
      sgemm_parallel(true, false, G, H, M - N, 1.0f, gates + N * G, G, h, H, h0 ? 1.0f : betas[2],
                     dw_h, H, threads);
    if (!later && !(h0 && s.T > 0)) scale_beta(dw_h, G * H, betas[2]);
  }
  if (db) column_sums(db, gates, M, G, G, 1.0f, betas[3], threads);
  if (dh0) store_beta(dh0, dh_carry, NH, betas[4]);
  if (dc0) store_beta(dc0, dc_carry, NH, betas[5]);
}

}  // namespace

extern const LstmKernels lstm_kernels;
const LstmKernels lstm_kernels = {forward_workspace, forward, backward_workspace, backward};

}  // namespace pycap::PYCAP_ISA
