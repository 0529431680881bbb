// 2x2 max-pooling, stride 2, an odd last row or column dropped: the contract of the CPU kernels.
#pragma once
#include <cstdint>

namespace pycap {

// argmax as in conv2d.h: two bits a channel, uint8 [N,H/2,W/2,ceil(C/4)].
// Num: what activations are stored in, float or bf16; sums are float32, each result is rounded
// once.
template <class Num>
struct PoolKernels {
  // y [N,H/2,W/2,C] out; argmax out; x [N,H,W,C] in. No aliasing.
  void (*forward)(Num* y, uint8_t* argmax, const Num* x, int64_t N, int64_t H, int64_t W, int64_t C,
                  int threads);
  // dx [N,H,W,C] = beta*dx + grad (beta 0: not read); dy [N,H/2,W/2,C] in. No aliasing.
  void (*backward)(Num* dx, const Num* dy, const uint8_t* argmax, int64_t N, int64_t H, int64_t W,
                   int64_t C, float beta, int threads);
};

}  // namespace pycap
