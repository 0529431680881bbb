// Dense layer: GEMMs split over threads, bias and ReLU in a second pass over the part just
// computed.
#include "pycap/linear.h"

#include "gemm.h"

namespace pycap::PYCAP_ISA {
namespace {

// y block [rows, cols] (row stride ld) += b, then ReLU.
void bias_relu(float* y, const float* b, int64_t rows, int64_t cols, int64_t ld, bool relu) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = y + i * ld;
    if (b && relu) {
      PYCAP_SIMD for (int64_t j = 0; j < cols; ++j) row[j] = relu1(row[j] + b[j]);
    } else if (b) {
      PYCAP_SIMD for (int64_t j = 0; j < cols; ++j) row[j] += b[j];
    } else if (relu) {
      PYCAP_SIMD for (int64_t j = 0; j < cols; ++j) row[j] = relu1(row[j]);
    }
  }
}

void forward(float* y, const float* x, const float* w, const float* b, int64_t M, int64_t I,
             int64_t O, bool relu, int threads) {
  if (M * O == 0) return;
  const bool serial = threads == 1 || M * O * max64(I, 1) < 32768;
  const bool few = is_few_rows(M, O, I);
  const Grid g = serial ? Grid{1, 1} : few ? Grid{1, threads} : choose_grid(M, O, threads);
#pragma omp parallel num_threads((int)(g.tm * g.tn))
  {
    const int64_t id = omp_get_thread_num();
    const Range r = split(M, g.tm, id / g.tn, M >= 16 * g.tm ? 8 : 1);
    const Range s = split(O, g.tn, id % g.tn, O >= 32 * g.tn ? 16 : 2);
    const int64_t rows = r.end - r.begin, cols = s.end - s.begin;
    if (rows > 0 && cols > 0) {
      float* part = y + r.begin * O + s.begin;
      sgemm(false, true, rows, cols, I, 1.0f, x + r.begin * I, I, w + s.begin * I, I, 0.0f, part,
            O);
      bias_relu(part, b ? b + s.begin : nullptr, rows, cols, O, relu);
    }
  }
}

size_t backward_workspace(int64_t M, int64_t, int64_t O, bool masked, int) {
  return masked ? sizeof(float) * (size_t)align_floats(M * O) : 0;
}

// dy where y is not 0, in ws; dy itself without y.
const float* mask_dy(const float* dy, const float* y, int64_t n, void* ws, int threads) {
  if (!y) return dy;
  float* out = static_cast<float*>(ws);
#pragma omp parallel for simd num_threads(threads) schedule(static) if (n > 16384)
  for (int64_t i = 0; i < n; ++i) out[i] = y[i] != 0.0f ? dy[i] : 0.0f;
  return out;
}

void backward_data(float* dx, const float* dy, const float* w, const float* y, int64_t M, int64_t I,
                   int64_t O, float beta, void* ws, int threads) {
  const float* d = mask_dy(dy, y, M * O, ws, threads);
  sgemm_parallel(false, false, M, I, O, 1.0f, d, O, w, I, beta, dx, I, threads);
}

void backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                     int64_t M, int64_t I, int64_t O, float beta_w, float beta_b, void* ws,
                     int threads) {
  const float* d = mask_dy(dy, y, M * O, ws, threads);
  if (dw) sgemm_parallel(true, false, O, I, M, 1.0f, d, O, x, I, beta_w, dw, I, threads);
  if (db) column_sums(db, d, M, O, O, 1.0f, beta_b, threads);
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {forward, backward_workspace, backward_data, backward_weight};

}  // namespace pycap::PYCAP_ISA
