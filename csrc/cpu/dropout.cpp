// Dropout by a hash of each element's counter.
#include "pycap/dropout.h"

#include "storage.h"

namespace pycap::PYCAP_ISA {
namespace {

template <class Word>  // uint32_t, or a vector of them
inline Word mix(Word x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

template <class Num>
void apply(Num* y, const Num* x, int64_t T, int64_t n, int64_t F, double p, uint64_t seed,
           int64_t total, int64_t offset, float beta, int threads) {
  const uint32_t lo = (uint32_t)seed, hi = (uint32_t)(seed >> 32);
  const double limit = p * 4294967296.0;
  const bool all = limit >= 4294967296.0;
  const uint32_t threshold = all ? 0u : (uint32_t)limit;
  const float scale = all ? 0.0f : (float)(1.0 / (1.0 - p));
  VecU lanes;
  for (int64_t l = 0; l < VL; ++l) lanes[l] = (uint32_t)l;
  if (F == 0) return;  // of however many rows
#pragma omp parallel for num_threads(threads) schedule(static) if (T * n * F > 8192)
  for (int64_t row = 0; row < T * n; ++row) {
    const int64_t t = row / n, i = row % n;
    const uint64_t counter = (uint64_t)t * (uint64_t)total + (uint64_t)offset + (uint64_t)i;
    const uint32_t base = (uint32_t)(counter * (uint64_t)F);  // wraps, as the contract says
    const Num* in = x + row * F;
    Num* out = y + row * F;
    if (all) {
      scale_beta(out, F, beta);
      continue;
    }
    int64_t f = 0;
    for (; f + VL <= F; f += VL) {
      const VecU hash = mix(mix(lanes + (base + (uint32_t)f + lo)) ^ hi);
      const Vec kept = select(hash < threshold, Vec{}, load(in + f) * scale);
      store(out + f, beta == 0.0f ? kept : beta * load(out + f) + kept);
    }
    for (; f < F; ++f) {
      const bool drop = mix(mix(base + (uint32_t)f + lo) ^ hi) < threshold;
      const float kept = drop ? 0.0f : widen(in[f]) * scale;
      out[f] = stored<Num>(beta == 0.0f ? kept : beta * widen(out[f]) + kept);
    }
  }
}

}  // namespace

extern const DropoutKernels<float> dropout_kernels;
extern const DropoutKernels<bf16> dropout_kernels_bf16;
const DropoutKernels<float> dropout_kernels = {apply<float>};
const DropoutKernels<bf16> dropout_kernels_bf16 = {apply<bf16>};

}  // namespace pycap::PYCAP_ISA
