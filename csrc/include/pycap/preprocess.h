// uint8 images to normalised float crops: the contract of the CPU kernel.
#pragma once
#include <cstdint>

namespace pycap {

// Num: what the images are stored in, float or bf16; sums are float32, each result is rounded once.
template <class Num>
struct PreprocessKernels {
  // y [N,P,Q,3] out = x*scale + shift; x uint8 [N,H,W,3]; crops int32 [N,3] = (top, left, flip),
  // checked to lie inside the image; scale, shift [3].
  void (*apply)(Num* y, const uint8_t* x, const int32_t* crops, const float* scale,
                const float* shift, int64_t N, int64_t H, int64_t W, int64_t P, int64_t Q,
                int threads);
};

}  // namespace pycap
