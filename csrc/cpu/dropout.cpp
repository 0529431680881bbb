// Dropout by a hash of each element's counter.
#include "pycap/dropout.h"

#include "common.h"

namespace pycap::PYCAP_ISA {
namespace {

inline uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

void apply(float* y, const float* x, int64_t T, int64_t n, int64_t F, double p, uint64_t seed,
           int64_t total, int64_t offset, float beta, int threads) {
  const uint32_t lo = (uint32_t)seed, hi = (uint32_t)(seed >> 32);
  const double limit = p * 4294967296.0;
  const bool all = limit >= 4294967296.0;
  const uint32_t threshold = all ? 0u : (uint32_t)limit;
  const float scale = all ? 0.0f : (float)(1.0 / (1.0 - p));
#pragma omp parallel for num_threads(threads) schedule(static) if (T * n * F > 8192)
  for (int64_t row = 0; row < T * n; ++row) {
    const int64_t t = row / n, i = row % n;
    const uint32_t base = (uint32_t)((uint64_t)(t * total + offset + i) * (uint64_t)F);
    const float* in = x + row * F;
    float* out = y + row * F;
    if (all) {
      scale_beta(out, F, beta);
    } else if (beta == 0.0f) {
      PYCAP_SIMD for (int64_t f = 0; f < F; ++f) {
        const bool drop = mix(mix(base + (uint32_t)f + lo) ^ hi) < threshold;
        out[f] = drop ? 0.0f : in[f] * scale;
      }
    } else {
      PYCAP_SIMD for (int64_t f = 0; f < F; ++f) {
        const bool drop = mix(mix(base + (uint32_t)f + lo) ^ hi) < threshold;
        out[f] = beta * out[f] + (drop ? 0.0f : in[f] * scale);
      }
    }
  }
}

}  // namespace

extern const DropoutKernels dropout_kernels;
const DropoutKernels dropout_kernels = {apply};

}  // namespace pycap::PYCAP_ISA
