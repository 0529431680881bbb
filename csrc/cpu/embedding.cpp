// Gather of rows, and their scatter-add in an order that is always the same.
#include "pycap/embedding.h"

#include "storage.h"

namespace pycap::PYCAP_ISA {
namespace {

template <class Num>
void forward(Num* y, const Num* table, const int32_t* ids, int64_t M, int64_t E, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (M * E > 16384)
  for (int64_t m = 0; m < M; ++m) {
    if (ids[m] < 0)
      memset(y + m * E, 0, sizeof(Num) * E);
    else
      memcpy(y + m * E, table + (int64_t)ids[m] * E, sizeof(Num) * E);
  }
}

size_t backward_workspace(int64_t, int64_t) { return 0; }

// float32: each thread owns columns and adds rows as they come.
void backward(float* dtable, const float* dy, const int32_t* ids, const int32_t* stale, int64_t M,
              int64_t V, int64_t E, int64_t n_stale, float beta, void*, int threads) {
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
        if (ids[m] < 0) continue;
        float* row = out + (int64_t)ids[m] * E;
        const float* grad = dy + m * E + cols.begin;
        PYCAP_SIMD for (int64_t j = 0; j < width; ++j) row[j] += grad[j];
      }
    }
  }
}

size_t backward_workspace_bf16(int64_t M, int64_t V) { return sizeof(int32_t) * (size_t)(M + V); }

// bfloat16: a row of the table is summed in float32 and rounded once, so the rows of dy that belong
// to it are chained first: `first` [V] of each row, `next` [M]; -1 ends a chain.
void backward_bf16(bf16* dtable, const bf16* dy, const int32_t* ids, const int32_t* stale,
                   int64_t M, int64_t V, int64_t E, int64_t n_stale, float beta, void* scratch,
                   int threads) {
  constexpr int64_t block = 256;
  int32_t* first = static_cast<int32_t*>(scratch);
  int32_t* next = first + V;
  for (int64_t v = 0; v < V; ++v) first[v] = -1;
  for (int64_t m = M - 1; m >= 0; --m) {
    if (ids[m] < 0) continue;
    next[m] = first[ids[m]];
    first[ids[m]] = (int32_t)m;
  }
  const bool sparse =
      beta == 0.0f && stale;  // rows that no chain reaches are zero but for the stale
  if (sparse)
    for (int64_t i = 0; i < n_stale; ++i) scale_beta(dtable + (int64_t)stale[i] * E, E, 0.0f);
  const int64_t blocks = ceil_div(E, block);
#pragma omp parallel for num_threads(threads) schedule(static) if (M * E > 8192)
  for (int64_t piece = 0; piece < V * blocks; ++piece) {
    const int64_t v = piece / blocks, e = piece % blocks * block, width = min64(block, E - e);
    bf16* out = dtable + v * E + e;
    if (first[v] < 0) {
      if (!sparse) scale_beta(out, width, beta);
      continue;
    }
    float sum[block] = {};
    for (int32_t m = first[v]; m >= 0; m = next[m]) {
      const bf16* grad = dy + m * E + e;
      PYCAP_SIMD for (int64_t j = 0; j < width; ++j) sum[j] += widen(grad[j]);
    }
    store_beta(out, sum, width, beta);
  }
}

}  // namespace

extern const EmbeddingKernels<float> embedding_kernels;
extern const EmbeddingKernels<bf16> embedding_kernels_bf16;
const EmbeddingKernels<float> embedding_kernels = {forward<float>, backward, backward_workspace};
const EmbeddingKernels<bf16> embedding_kernels_bf16 = {forward<bf16>, backward_bf16,
                                                       backward_workspace_bf16};

}  // namespace pycap::PYCAP_ISA
