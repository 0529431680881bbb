// Counter-based dropout, its own backward: the contract of the CPU kernel.
#pragma once
#include <cstdint>

namespace pycap {

// Num: what activations are stored in, float or bf16; sums are float32, each result is rounded
// once.
template <class Num>
struct DropoutKernels {
  // y [T,n,F] = beta*y + dropout(x [T,n,F]); y may be x when beta is 0. Element (t,i,f) has the
  // 32-bit counter (t*total + offset + i)*F + f, wrapping; it is dropped where hash32(counter,
  // seed) < floor(p * 2^32).
  void (*apply)(Num* y, const Num* x, int64_t T, int64_t n, int64_t F, double p, uint64_t seed,
                int64_t total, int64_t offset, float beta, int threads);
};

}  // namespace pycap
