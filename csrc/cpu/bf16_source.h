// Rows of pixels for the bfloat16 convolutions: images, or gradients masked by ReLU and unpooled on
// the way.
#pragma once
#include "bf16.h"

namespace {

// An image [N,H,W,C]; with argmax, x and y are pooled maps [N,H/2,W/2,C]. y: its zeros mask x.
struct Source16 {
  const bf16* x;
  const bf16* y;
  const uint8_t* argmax;
  int64_t H, W, C;
};

inline bool is_zero(bf16 v) { return (v.bits & 0x7fff) == 0; }

// to [C] = x where y is not 0.
inline void masked_pixel(bf16* __restrict to, const bf16* x, const bf16* y, int64_t C) {
  PYCAP_SIMD for (int64_t c = 0; c < C; ++c) to[c].bits = (uint16_t)(is_zero(y[c]) ? 0 : x[c].bits);
}

// to [C] = x where the winner is `corner` and y (null: no mask) is not 0.
inline void unpooled_pixel(bf16* __restrict to, const bf16* x, const bf16* y, const uint8_t* argmax,
                           int32_t corner, int64_t C) {
  int64_t c = 0;
  for (; c + VL <= C; c += VL) {
    const VecI winner = unpack_winners(argmax + c / 4);
    VecU bits = load_bits(x + c);
    bits = winner == corner ? bits : 0 - VecU{};
    if (y) bits = (load_bits(y + c) & 0x7fff) != 0 ? bits : 0 - VecU{};
    store_bits(to + c, bits);
  }
  for (; c < C; ++c) {
    const bool on = ((argmax[c / 4] >> (2 * (c % 4))) & 3) == corner && !(y && is_zero(y[c]));
    to[c].bits = on ? x[c].bits : (uint16_t)0;
  }
}

// Row h of image n: pixel w goes to `to` + w*pitch bytes, [C] numbers each. Rows outside the image
// are zeros.
inline void read_row(char* to, int64_t pitch, const Source16& s, int64_t n, int64_t h) {
  const auto at = [&](int64_t w) { return reinterpret_cast<bf16*>(to + w * pitch); };
  if (h < 0 || h >= s.H) {
    for (int64_t w = 0; w < s.W; ++w) memset(at(w), 0, 2 * s.C);
  } else if (s.argmax) {
    const int64_t P = s.H / 2, Q = s.W / 2;
    for (int64_t w = 0; w < s.W; ++w) {
      if (h / 2 >= P || w / 2 >= Q) {
        memset(at(w), 0, 2 * s.C);
        continue;
      }
      const int64_t pixel = (n * P + h / 2) * Q + w / 2;
      unpooled_pixel(at(w), s.x + pixel * s.C, s.y ? s.y + pixel * s.C : nullptr,
                     s.argmax + pixel * ((s.C + 3) / 4), (int32_t)(2 * (h % 2) + w % 2), s.C);
    }
  } else {
    const int64_t first = (n * s.H + h) * s.W;
    for (int64_t w = 0; w < s.W; ++w) {
      if (s.y)
        masked_pixel(at(w), s.x + (first + w) * s.C, s.y + (first + w) * s.C, s.C);
      else
        memcpy(at(w), s.x + (first + w) * s.C, 2 * s.C);
    }
  }
}

}  // namespace
