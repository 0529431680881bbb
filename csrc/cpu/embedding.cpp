// Gather of rows, and scatter-add with each thread owning columns, so that the order of additions
// is fixed.
#include "pycap/embedding.h"

#include "common.h"

namespace pycap::PYCAP_ISA {
namespace {

void forward(float* y, const float* table, const int32_t* ids, int64_t M, int64_t E, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (M * E > 16384)
  for (int64_t m = 0; m < M; ++m) memcpy(y + m * E, table + (int64_t)ids[m] * E, sizeof(float) * E);
}

void backward(float* dtable, const float* dy, const int32_t* ids, const int32_t* stale, int64_t M,
              int64_t V, int64_t E, int64_t n_stale, float beta, int threads) {
#pragma omp parallel num_threads(threads) if (M * E > 8192)
  {
    const Range cols = split(E, omp_get_num_threads(), omp_get_thread_num(), 16);
    const int64_t width = cols.end - cols.begin;
    if (width > 0) {
      float* out = dtable + cols.begin;
      if (beta != 0.0f || !stale) {
        for (int64_t v = 0; v < V; ++v) scale_beta(out + v * E, width, beta);
      } else {
        for (int64_t i = 0; i < n_stale; ++i) scale_beta(out + (int64_t)stale[i] * E, width, 0.0f);
      }
      for (int64_t m = 0; m < M; ++m) {
        float* row = out + (int64_t)ids[m] * E;
        const float* grad = dy + m * E + cols.begin;
        PYCAP_SIMD for (int64_t j = 0; j < width; ++j) row[j] += grad[j];
      }
    }
  }
}

}  // namespace

extern const EmbeddingKernels embedding_kernels;
const EmbeddingKernels embedding_kernels = {forward, backward};

}  // namespace pycap::PYCAP_ISA
