// Crop, mirror and normalise uint8 images, parallel over rows.
#include "pycap/preprocess.h"

#include "storage.h"

namespace pycap::PYCAP_ISA {
namespace {

constexpr int64_t block = 48;  // numbers worked off at once: whole pixels, and whole vectors

template <class Num>
void apply(Num* y, const uint8_t* x, const int32_t* crops, const float* scale, const float* shift,
           int64_t N, int64_t H, int64_t W, int64_t P, int64_t Q, int threads) {
  float scales[block], shifts[block];
  for (int64_t i = 0; i < block; ++i) {
    scales[i] = scale[i % 3];
    shifts[i] = shift[i % 3];
  }
#pragma omp parallel for num_threads(threads) schedule(static) if (N * P * Q > 4096)
  for (int64_t row = 0; row < N * P; ++row) {
    const int64_t n = row / P, p = row % P;
    const int32_t* crop = crops + 3 * n;
    const uint8_t* in = x + ((n * H + crop[0] + p) * W + crop[1]) * 3;
    Num* out = y + row * Q * 3;
    uint8_t mirrored[block];
    for (int64_t i = 0; i < 3 * Q; i += block) {
      const int64_t count = min64(block, 3 * Q - i);
      const uint8_t* from = in + i;
      if (crop[2]) {
        const uint8_t* last = in + 3 * (Q - 1) - i;  // the pixel that comes first
        for (int64_t j = 0; j < count; j += 3) memcpy(mirrored + j, last - j, 3);
        from = mirrored;
      }
      if (count == block) {
        PYCAP_SIMD for (int64_t j = 0; j < block; ++j) out[i + j] =
            stored<Num>((float)from[j] * scales[j] + shifts[j]);
      } else {
        for (int64_t j = 0; j < count; ++j)
          out[i + j] = stored<Num>((float)from[j] * scales[j] + shifts[j]);
      }
    }
  }
}

}  // namespace

extern const PreprocessKernels<float> preprocess_kernels;
extern const PreprocessKernels<bf16> preprocess_kernels_bf16;
const PreprocessKernels<float> preprocess_kernels = {apply<float>};
const PreprocessKernels<bf16> preprocess_kernels_bf16 = {apply<bf16>};

}  // namespace pycap::PYCAP_ISA
