// 2x2 max-pooling, parallel over output rows.
#include "pycap/pool.h"

#include "argmax.h"

namespace pycap::PYCAP_ISA {
namespace {

template <class Num>
void forward(Num* y, uint8_t* argmax, const Num* x, int64_t N, int64_t H, int64_t W, int64_t C,
             int threads) {
  const int64_t P = H / 2, Q = W / 2, A = ceil_div(C, 4);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < N * P; ++row) {
    const Num* top = x + ((row / P) * H + 2 * (row % P)) * W * C;
    const Num* bottom = top + W * C;
    for (int64_t q = 0; q < Q; ++q) {
      const Num* a = top + 2 * q * C;
      const Num* c = bottom + 2 * q * C;
      pool_pixel(y + (row * Q + q) * C, argmax + (row * Q + q) * A, a, a + C, c, c + C, C);
    }
  }
}

template <class Num>
void backward(Num* dx, const Num* dy, const uint8_t* argmax, int64_t N, int64_t H, int64_t W,
              int64_t C, float beta, int threads) {
  const int64_t P = H / 2, Q = W / 2, A = ceil_div(C, 4);
  const Num* no_mask = nullptr;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < N * H; ++row) {
    const int64_t n = row / H, h = row % H;
    Num* out = dx + row * W * C;
    if (h / 2 >= P) {
      scale_beta(out, W * C, beta);
      continue;
    }
    for (int64_t w = 0; w < W; ++w) {
      if (w / 2 >= Q) {
        scale_beta(out + w * C, C, beta);
        continue;
      }
      const int64_t from = (n * P + h / 2) * Q + w / 2;
      const int32_t corner = (int32_t)(2 * (h % 2) + w % 2);
      if (beta == 0.0f) {
        unpool_pixel(out + w * C, dy + from * C, no_mask, argmax + from * A, corner, C);
        continue;
      }
      constexpr int64_t block = 128;
      float grad[block];
      for (int64_t c0 = 0; c0 < C; c0 += block) {
        const int64_t n_c = min64(block, C - c0);
        unpool_pixel(grad, dy + from * C + c0, no_mask, argmax + from * A + c0 / 4, corner, n_c);
        store_beta(out + w * C + c0, grad, n_c, beta);
      }
    }
  }
}

}  // namespace

extern const PoolKernels<float> pool_kernels;
extern const PoolKernels<bf16> pool_kernels_bf16;
const PoolKernels<float> pool_kernels = {forward<float>, backward<float>};
const PoolKernels<bf16> pool_kernels_bf16 = {forward<bf16>, backward<bf16>};

}  // namespace pycap::PYCAP_ISA
