// 2x2 max-pooling, stride 2, an odd last row or column dropped: the contract of the CPU kernels.
#pragma once
#include <cstdint>

namespace pycap {

// argmax as in conv2d.h: two bits a channel, uint8 [N,H/2,W/2,ceil(C/4)].
struct PoolKernels {
  // y [N,H/2,W/2,C] out; argmax out; x [N,H,W,C] in. No aliasing.
  void (*forward)(float* y, uint8_t* argmax, const float* x, int64_t N, int64_t H, int64_t W,
                  int64_t C, int threads);
  // dx [N,H,W,C] = beta*dx + grad (beta 0: not read); dy [N,H/2,W/2,C] in. No aliasing.
  void (*backward)(float* dx, const float* dy, const uint8_t* argmax, int64_t N, int64_t H,
                   int64_t W, int64_t C, float beta, int threads);
};

}  // namespace pycap
