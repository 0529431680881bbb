// Crop, mirror and normalise uint8 images, parallel over rows.
#include "pycap/preprocess.h"

#include "common.h"

namespace pycap::PYCAP_ISA {
namespace {

void apply(float* y, const uint8_t* x, const int32_t* crops, const float* scale, const float* shift,
           int64_t N, int64_t H, int64_t W, int64_t P, int64_t Q, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (N * P * Q > 4096)
  for (int64_t row = 0; row < N * P; ++row) {
    const int64_t n = row / P, p = row % P;
    const int32_t* crop = crops + 3 * n;
    const uint8_t* in = x + ((n * H + crop[0] + p) * W + crop[1]) * 3;
    float* out = y + row * Q * 3;
    const int64_t step = crop[2] ? -3 : 3;
    if (crop[2]) in += 3 * (Q - 1);
    for (int64_t q = 0; q < Q; ++q)
      for (int64_t c = 0; c < 3; ++c)
        out[3 * q + c] = (float)in[step * q + c] * scale[c] + shift[c];
  }
}

}  // namespace

extern const PreprocessKernels preprocess_kernels;
const PreprocessKernels preprocess_kernels = {apply};

}  // namespace pycap::PYCAP_ISA
