// LSTM over a whole sequence: one GEMM for all inputs, a loop over steps inside one parallel
// region, and the weights' gradients as one GEMM each after the loop. A masked cell costs a copy of
// the state and nothing more: every product takes the running rows only.
#include "pycap/lstm.h"

#include "lstm_steps.h"
#include "vecmath.h"

namespace pycap::PYCAP_ISA {
namespace {

// Where the pieces of the scratch begin, in floats; the cells come last.
struct ForwardScratch {
  int64_t zeros = 0;  // [N,H], at least [4H]: absent h0 or c0, absent recurrent part
  int64_t h_rows, recurrent, packed, cells;  // [threads of a row,N,H], [N,4H], [4H,H]

  ForwardScratch(const LstmShape& s, int threads) {
    const int64_t nh = align_floats(s.N * s.H);
    h_rows = zeros + max64(nh, align_floats(4 * s.H));
    recurrent = h_rows + step_grid(s, threads).tn * nh;
    packed = recurrent + align_floats(4 * s.N * s.H);
    cells = packed + packed_floats(s);
  }
};

size_t forward_workspace(const LstmShape& s, int threads) {
  return sizeof(float) * (size_t)ForwardScratch(s, threads).cells + cells_bytes(s);
}

// Turns the pre-activations (without bias) of nc hidden units of one row into gates, c and h.
// gates: the input's part; recurrent: the state's part, the four gates' [nc] one after another.
void gates_row(float* h, float* c, float* gates, const float* recurrent, const float* c_prev,
               const float* b, int64_t H, int64_t nc) {
  float *gi = gates, *gf = gates + H, *gg = gates + 2 * H, *go = gates + 3 * H;
  const float *bi = b, *bf = b + H, *bg = b + 2 * H, *bo = b + 3 * H;
  const float *ri = recurrent, *rf = ri + nc, *rg = rf + nc, *ro = rg + nc;
  PYCAP_SIMD for (int64_t j = 0; j < nc; ++j) {
    const float i = sigmoid1(gi[j] + ri[j] + bi[j]), f = sigmoid1(gf[j] + rf[j] + bf[j]);
    const float g = tanh1(gg[j] + rg[j] + bg[j]), o = sigmoid1(go[j] + ro[j] + bo[j]);
    const float cell = f * c_prev[j] + i * g;
    gi[j] = i, gf[j] = f, gg[j] = g, go[j] = o;
    c[j] = cell;
    h[j] = o * tanh1(cell);
  }
}

// The state's part of the pre-activations of m rows, into z [m, 4*nc].
void recurrent_part(float* z, const float* from, const float* packed, const float* w_h, int64_t m,
                    int64_t H, Range cols) {
  const int64_t nc = cols.end - cols.begin;
  if (!packed && nc == H) {
    sgemm(false, true, m, 4 * H, H, 1.0f, from, H, w_h, H, 0.0f, z, 4 * H);
    return;
  }
  for (int64_t gate = 0; gate < 4; ++gate) {
    const int64_t j = gate * H + cols.begin;
    if (packed)
      multiply_packed(z + gate * nc, 4 * nc, from, H, packed, m, nc, H, j);
    else
      sgemm(false, true, m, nc, H, 1.0f, from, H, w_h + j * H, H, 0.0f, z + gate * nc, 4 * nc);
  }
}

void forward(float* h, float* c, float* gates, const float* x, const float* h0, const float* c0,
             const float* w_x, const float* w_h, const float* b, const uint8_t* mask,
             const LstmShape& s, void* ws, int threads) {
  const int64_t N = s.N, H = s.H, G = 4 * H;
  if (s.T * N * H == 0) return;
  const ForwardScratch at(s, threads);
  float *scratch = static_cast<float*>(ws), *zeros = scratch + at.zeros;
  float* packed = packs(s) ? scratch + at.packed : nullptr;
  const Cells cells = find_cells(mask, s, scratch + at.cells);
  const int32_t* pick = cells.count < s.T * N ? cells.cell : nullptr;
  sgemm_parallel(false, true, cells.count, G, s.I, 1.0f, x, s.I, w_x, s.I, 0.0f, gates, G, threads,
                 {pick, nullptr, pick});
  memset(zeros, 0, sizeof(float) * (at.h_rows - at.zeros));
  if (packed) pack_all(packed, w_h, true, H, G, threads);
  const Grid grid = step_grid(s, threads);
#pragma omp parallel num_threads((int)(grid.tm * grid.tn))
  {
    const int64_t id = omp_get_thread_num();
    const Share share(s, grid, id, cells, mask);
    const Range rows = share.rows, cols = share.cols;
    const int64_t nr = rows.end - rows.begin, nc = cols.end - cols.begin, j0 = cols.begin;
    float* h_rows = scratch + at.h_rows + id % grid.tn * align_floats(N * H) + rows.begin * H;
    float* recurrent = scratch + at.recurrent + rows.begin * G + nr * 4 * j0;
    for (int64_t t = 0; t < s.T; ++t) {
      const float* h_prev = t ? h + (t - 1) * N * H : h0 ? h0 : zeros;
      const float* c_prev = t ? c + (t - 1) * N * H : c0 ? c0 : zeros;
      const Range run = share.running(cells, t, N);
      const int64_t m = run.end - run.begin;
      const bool has_state = (t || h0) && m > 0;
      if (has_state) {
        const float* from = h_prev + rows.begin * H;
        if (m < nr) {
          for (int64_t i = 0; i < m; ++i)
            memcpy(h_rows + i * H, h_prev + (cells.cell[run.begin + i] - t * N) * H,
                   sizeof(float) * H);
          from = h_rows;
        }
        recurrent_part(recurrent, from, packed, w_h, m, H, cols);
      }
      int64_t i = 0;  // of m
      for (int64_t n = rows.begin; n < rows.end; ++n) {
        float* ht = h + (t * N + n) * H + j0;
        float* ct = c + (t * N + n) * H + j0;
        float* gt = gates + (t * N + n) * G + j0;
        if (i < m && cells.cell[run.begin + i] == t * N + n) {
          gates_row(ht, ct, gt, has_state ? recurrent + i * 4 * nc : zeros, c_prev + n * H + j0,
                    b + j0, H, nc);
          ++i;
          continue;
        }
        memcpy(ht, h_prev + n * H + j0, sizeof(float) * nc);
        memcpy(ct, c_prev + n * H + j0, sizeof(float) * nc);
        for (int64_t gate = 0; gate < 4; ++gate) memset(gt + gate * H, 0, sizeof(float) * nc);
      }
      if (grid.tn > 1) {
#pragma omp barrier
      }
    }
  }
}

// As ForwardScratch.
struct BackwardScratch {
  int64_t dh_carry = 0, dc_carry, zeros;       // [N,H] each
  int64_t dz_rows, carry_rows, packed, cells;  // [1 or 2,N,4H], [N,H], [4H,H]

  BackwardScratch(const LstmShape& s, int threads) {
    const int64_t nh = align_floats(s.N * s.H);
    dc_carry = dh_carry + nh;
    zeros = dc_carry + nh;
    dz_rows = zeros + nh;
    carry_rows = dz_rows + 4 * nh * (step_grid(s, threads).tn > 1 ? 2 : 1);
    packed = carry_rows + nh;
    cells = packed + packed_floats(s);
  }
};

size_t backward_workspace(const LstmShape& s, int threads) {
  return sizeof(float) * (size_t)BackwardScratch(s, threads).cells + cells_bytes(s);
}

// One row, nc hidden units: gates become dgates, dc the gradient of c_prev.
void dgates_row(float* gates, float* dc, const float* dh, const float* dh_step, const float* c,
                const float* c_prev, int64_t H, int64_t nc) {
  float *gi = gates, *gf = gates + H, *gg = gates + 2 * H, *go = gates + 3 * H;
  PYCAP_SIMD for (int64_t j = 0; j < nc; ++j) {
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

// The loop over steps, last to first; leaves the gradients of h0 and c0 in the carries.
void backward_steps(float* gates, float* scratch, const BackwardScratch& at, const Cells& cells,
                    const float* dh, const float* c, const float* c0, const float* w_h,
                    const uint8_t* mask, bool want_h0, const LstmShape& s, int threads) {
  const int64_t N = s.N, H = s.H, G = 4 * H;
  const float *zeros = scratch + at.zeros, *packed = packs(s) ? scratch + at.packed : nullptr;
  float *dh_carry = scratch + at.dh_carry, *dc_carry = scratch + at.dc_carry;
  const Grid grid = step_grid(s, threads);
#pragma omp parallel num_threads((int)(grid.tm * grid.tn))
  {
    const int64_t id = omp_get_thread_num();
    const Share share(s, grid, id, cells, mask);
    const Range rows = share.rows, cols = share.cols;
    const int64_t nr = rows.end - rows.begin, nc = cols.end - cols.begin, j0 = cols.begin;
    for (int64_t t = s.T - 1; t >= 0; --t) {
      const float* c_prev = t ? c + (t - 1) * N * H : c0 ? c0 : zeros;
      const Range run = share.running(cells, t, N);
      const int64_t m = run.end - run.begin;
      // The running rows' dz side by side, where others stand between them. All columns of a row
      // are read by all of its threads, perhaps while one of them has begun the next step.
      float* dz = scratch + at.dz_rows + (grid.tn > 1 ? t % 2 * 4 * align_floats(N * H) : 0) +
                  rows.begin * G;
      int64_t i = 0;
      for (int64_t n = rows.begin; n < rows.end; ++n) {
        float *gt = gates + (t * N + n) * G + j0, *carry = dh_carry + n * H + j0;
        const float* step = dh ? dh + (t * N + n) * H + j0 : zeros;
        if (i < m && cells.cell[run.begin + i] == t * N + n) {
          dgates_row(gt, dc_carry + n * H + j0, carry, step, c + (t * N + n) * H + j0,
                     c_prev + n * H + j0, H, nc);
          if (m < nr)
            for (int64_t gate = 0; gate < 4; ++gate)
              memcpy(dz + i * G + gate * H + j0, gt + gate * H, sizeof(float) * nc);
          ++i;
          continue;
        }
        for (int64_t gate = 0; gate < 4; ++gate) memset(gt + gate * H, 0, sizeof(float) * nc);
        if (dh) {
          PYCAP_SIMD for (int64_t j = 0; j < nc; ++j) carry[j] += step[j];
        }
      }
      if (grid.tn > 1) {
#pragma omp barrier
      }
      if (m == 0 || (t == 0 && !want_h0)) continue;
      const float* from = m < nr ? dz : gates + (t * N + rows.begin) * G;
      float* to = scratch + (m < nr ? at.carry_rows : at.dh_carry) + rows.begin * H + j0;
      if (packed)
        multiply_packed(to, H, from, G, packed, m, nc, G, j0);
      else
        sgemm(false, false, m, nc, G, 1.0f, from, G, w_h + j0, H, 0.0f, to, H);
      if (m < nr)
        for (i = 0; i < m; ++i)
          memcpy(dh_carry + (cells.cell[run.begin + i] - t * N) * H + j0, to + i * H,
                 sizeof(float) * nc);
    }
  }
}

void backward(float* dx, float* dw_x, float* dw_h, float* db, float* dh0, float* dc0, float* gates,
              const float* dh, const float* dc_n, const float* x, const float* h, const float* c,
              const float* h0, const float* c0, const float* w_x, const float* w_h,
              const uint8_t* mask, const float* betas, const LstmShape& s, void* ws, int threads) {
  const int64_t N = s.N, H = s.H, G = 4 * H, I = s.I, NH = N * H;
  const BackwardScratch at(s, threads);
  float *scratch = static_cast<float*>(ws), *dc_carry = scratch + at.dc_carry;
  memset(scratch + at.dh_carry, 0, sizeof(float) * NH);
  memset(scratch + at.zeros, 0, sizeof(float) * NH);
  if (dc_n)
    memcpy(dc_carry, dc_n, sizeof(float) * NH);
  else
    memset(dc_carry, 0, sizeof(float) * NH);
  const Cells cells = find_cells(mask, s, scratch + at.cells);
  const int64_t count = cells.count, at_once = cells.first[min64(s.T, 1)];
  const int32_t* pick = count < s.T * N ? cells.cell : nullptr;
  const int32_t* before = pick ? cells.before + at_once : nullptr;
  if (packs(s)) pack_all(scratch + at.packed, w_h, false, G, H, threads);
  if (NH > 0)
    backward_steps(gates, scratch, at, cells, dh, c, c0, w_h, mask, dh0 != nullptr, s, threads);
  if (dx) {
    if (pick)
      for (int64_t i = 0; i < s.T * N; ++i)
        if (!mask[i]) scale_beta(dx + i * I, I, betas[0]);
    sgemm_parallel(false, false, count, I, G, 1.0f, gates, G, w_x, I, betas[0], dx, I, threads,
                   {pick, nullptr, pick});
  }
  if (dw_x)
    sgemm_parallel(true, false, G, I, count, 1.0f, gates, G, x, I, betas[1], dw_x, I, threads,
                   {pick, pick, nullptr});
  if (dw_h) {
    // Step t's gates meet h[t-1]: one product over steps 1.., one for h0.
    const bool later = s.T > 1;
    if (h0 && s.T > 0)
      sgemm_parallel(true, false, G, H, at_once, 1.0f, gates, G, h0, H, betas[2], dw_h, H, threads,
                     {pick, pick, nullptr});
    if (later)
      sgemm_parallel(true, false, G, H, count - at_once, 1.0f, gates + N * G, G, h, H,
                     h0 ? 1.0f : betas[2], dw_h, H, threads, {before, before, nullptr});
    if (!later && !(h0 && s.T > 0)) scale_beta(dw_h, G * H, betas[2]);
  }
  if (db) column_sums(db, gates, count, G, G, 1.0f, betas[3], threads, pick);
  if (dh0) store_beta(dh0, scratch + at.dh_carry, NH, betas[4]);
  if (dc0) store_beta(dc0, dc_carry, NH, betas[5]);
}

}  // namespace

extern const LstmKernels lstm_kernels;
const LstmKernels lstm_kernels = {forward_workspace, forward, backward_workspace, backward};

}  // namespace pycap::PYCAP_ISA
