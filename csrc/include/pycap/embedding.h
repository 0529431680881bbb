// Gather and scatter-add of rows: the contract of the CPU kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pycap {

// ids have been checked: 0 <= id < V, or -1 for no row; stale rows: 0 <= row < V.
// Num: what rows are stored in, float or bf16; sums are float32, each result is rounded once.
template <class Num>
struct EmbeddingKernels {
  // y [M,E] out = table [V,E] rows ids [M]; zeros for no row.
  void (*forward)(Num* y, const Num* table, const int32_t* ids, int64_t M, int64_t E, int threads);
  // dtable [V,E] = beta*dtable + scatter-add of dy [M,E] over ids [M]. With beta 0 the rows `stale`
  // [n_stale] are cleared (null: all rows); the others hold zeros already. Rows with equal ids are
  // added in order of their index.
  void (*backward)(Num* dtable, const Num* dy, const int32_t* ids, const int32_t* stale, int64_t M,
                   int64_t V, int64_t E, int64_t n_stale, float beta, void* scratch, int threads);
  // Bytes of scratch (64-byte aligned) that backward needs.
  size_t (*backward_workspace)(int64_t M, int64_t V);
};

}  // namespace pycap
