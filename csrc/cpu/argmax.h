// The 2x2 window's winners at two bits a channel, and the pooling of one output row.
#pragma once
#include "common.h"

namespace {

// Sixteen channels' winners are exactly one 32-bit word, lane l in bits 2*l.
inline uint32_t load_word(const uint8_t* p, int64_t bytes) {
  uint32_t word = 0;
  memcpy(&word, p, bytes);
  return word;
}

// y [K] and argmax [ceil(K/4)] of the window with corners a (0,0), b (0,1), c (1,0), d (1,1), each [K]. NaN wins.
inline void pool_pixel(float* __restrict y, uint8_t* __restrict argmax, const float* a,
                       const float* b, const float* c, const float* d, int64_t K) {
  for (int64_t k0 = 0; k0 < K; k0 += 16) {
    const int64_t w = min64(16, K - k0);
    uint32_t word = 0;
    if (w == 16) {
#pragma omp simd reduction(| : word)
      for (int64_t l = 0; l < 16; ++l) {
        const float va = a[k0 + l], vb = b[k0 + l], vc = c[k0 + l], vd = d[k0 + l];
        float best = va;
        uint32_t at = 0;
        bool take = (vb > best) | ((vb != vb) & (best == best));
        best = take ? vb : best;
        at = take ? 1u : at;
        take = (vc > best) | ((vc != vc) & (best == best));
        best = take ? vc : best;
        at = take ? 2u : at;
        take = (vd > best) | ((vd != vd) & (best == best));
        best = take ? vd : best;
        at = take ? 3u : at;
        y[k0 + l] = best;
        word |= at << (uint32_t)(2 * l);
      }
    } else {
      for (int64_t l = 0; l < w; ++l) {
        const float v[4] = {a[k0 + l], b[k0 + l], c[k0 + l], d[k0 + l]};
        uint32_t at = 0;
        for (uint32_t i = 1; i < 4; ++i)
          if (v[i] > v[at] || (v[i] != v[i] && v[at] == v[at])) at = i;
        y[k0 + l] = v[at];
        word |= at << (uint32_t)(2 * l);
      }
    }
    memcpy(argmax + k0 / 4, &word, ceil_div(w, 4));
  }
}

// out [K] = dy [K] where the winner is `corner` and y (null: no mask) is not 0, else 0.
inline void unpool_pixel(float* __restrict out, const float* dy, const float* y,
                         const uint8_t* argmax, uint32_t corner, int64_t K) {
  for (int64_t k0 = 0; k0 < K; k0 += 16) {
    const int64_t w = min64(16, K - k0);
    const uint32_t word = load_word(argmax + k0 / 4, ceil_div(w, 4));
    if (w == 16 && y) {
      PYCAP_SIMD for (int64_t l = 0; l < 16; ++l) {
        const uint32_t at = (word >> (uint32_t)(2 * l)) & 3u;
        out[k0 + l] = (at == corner) & (y[k0 + l] != 0.0f) ? dy[k0 + l] : 0.0f;
      }
    } else if (w == 16) {
      PYCAP_SIMD for (int64_t l = 0; l < 16; ++l) {
        const uint32_t at = (word >> (uint32_t)(2 * l)) & 3u;
        out[k0 + l] = at == corner ? dy[k0 + l] : 0.0f;
      }
    } else {
      for (int64_t l = 0; l < w; ++l) {
        const bool on = ((word >> (2 * l)) & 3u) == corner && (!y || y[k0 + l] != 0.0f);
        out[k0 + l] = on ? dy[k0 + l] : 0.0f;
      }
    }
  }
}

}  // namespace
