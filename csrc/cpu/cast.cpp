// float32 to bfloat16 and back, each thread a stretch of whole cache lines.
#include "pycap/cast.h"

#include "storage.h"

namespace pycap::PYCAP_ISA {
namespace {

template <class Y, class X>
void apply(Y* y, const X* x, int64_t n, float beta, int threads) {
#pragma omp parallel num_threads(threads) if (n > 16384)
  {
    const Range r = split(n, omp_get_num_threads(), omp_get_thread_num(), 64);
    int64_t i = r.begin;
    if (beta == 0.0f) {
      for (; i + VL <= r.end; i += VL) store(y + i, load(x + i));
      for (; i < r.end; ++i) y[i] = stored<Y>(widen(x[i]));
    } else {
      for (; i + VL <= r.end; i += VL) store(y + i, beta * load(y + i) + load(x + i));
      for (; i < r.end; ++i) y[i] = stored<Y>(beta * widen(y[i]) + widen(x[i]));
    }
  }
}

}  // namespace

extern const CastKernels cast_kernels;
const CastKernels cast_kernels = {apply<bf16, float>, apply<float, bf16>, apply<float, float>,
                                  apply<bf16, bf16>};

}  // namespace pycap::PYCAP_ISA
