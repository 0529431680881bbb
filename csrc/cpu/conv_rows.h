// Rows of the effective output gradient: dy masked by the ReLU and unpooled by argmax, made on the
// fly.
#pragma once
#include "argmax.h"
#include "pycap/conv2d.h"

namespace {

using pycap::ConvShape;

// dst [Q,K] = row p of image n of the gradient of the pre-activation. y and argmax may be null.
inline void gradient_row(float* dst, const float* dy, const float* y, const uint8_t* argmax,
                         const ConvShape& s, int64_t n, int64_t p) {
  const int64_t Q = s.Q, K = s.K;
  if (!argmax) {
    const float* from = dy + (n * s.P + p) * Q * K;
    if (!y) {
      memcpy(dst, from, sizeof(float) * Q * K);
      return;
    }
    const float* out = y + (n * s.P + p) * Q * K;
    PYCAP_SIMD for (int64_t i = 0; i < Q * K; ++i) dst[i] = out[i] != 0.0f ? from[i] : 0.0f;
    return;
  }
  const int64_t P2 = s.P / 2, Q2 = Q / 2, A = ceil_div(K, 4), p2 = p / 2;
  if (p2 >= P2) {
    memset(dst, 0, sizeof(float) * Q * K);
    return;
  }
  const int64_t base = (n * P2 + p2) * Q2;
  for (int64_t q = 0; q < 2 * Q2; ++q) {
    const int64_t at = base + q / 2;
    unpool_pixel(dst + q * K, dy + at * K, y ? y + at * K : nullptr, argmax + at * A,
                 (int32_t)(2 * (p % 2) + q % 2), K);
  }
  if (Q % 2) memset(dst + (Q - 1) * K, 0, sizeof(float) * K);
}

}  // namespace
