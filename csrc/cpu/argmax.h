// The 2x2 window's winners at two bits a channel: max-pooling of a window and its reverse.
#pragma once
#include "storage.h"

namespace {

// The value and index of the larger; NaN wins, and the first of equals stays.
inline void contend(Vec* best, VecI* at, Vec v, int32_t corner) {
  const VecI take = (v > *best) | ((v != v) & (*best == *best));
  *best = select(take, v, *best);
  *at = take ? corner - VecI{} : *at;
}

// y [K] and argmax [ceil(K/4)] of the window with corners a (0,0), b (0,1), c (1,0), d (1,1), each
// [K].
template <class Y, class X>
inline void pool_pixel(Y* __restrict y, uint8_t* __restrict argmax, const X* a, const X* b,
                       const X* c, const X* d, int64_t K) {
  int64_t k = 0;
  for (; k + VL <= K; k += VL) {
    Vec best = load(a + k);
    VecI at{};
    contend(&best, &at, load(b + k), 1);
    contend(&best, &at, load(c + k), 2);
    contend(&best, &at, load(d + k), 3);
    store(y + k, best);
    pack_winners(argmax + k / 4, at);
  }
  for (; k < K; ++k) {
    const float v[4] = {widen(a[k]), widen(b[k]), widen(c[k]), widen(d[k])};
    uint32_t at = 0;
    for (uint32_t i = 1; i < 4; ++i)
      if (v[i] > v[at] || (v[i] != v[i] && v[at] == v[at])) at = i;
    y[k] = stored<Y>(v[at]);
    uint8_t* byte = argmax + k / 4;
    const uint32_t bits = at << (2 * (k % 4));
    *byte = (uint8_t)(k % 4 ? *byte | bits : bits);
  }
}

// out [K] = dy [K] where the winner is `corner` and y (null: no mask) is not 0, else 0.
template <class Out, class T>
inline void unpool_pixel(Out* __restrict out, const T* dy, const T* y, const uint8_t* argmax,
                         int32_t corner, int64_t K) {
  int64_t k = 0;
  for (; k + VL <= K; k += VL) {
    Vec g = load(dy + k);
    if (y) g = select(load(y + k) != 0.0f, g, Vec{});
    store(out + k, select(unpack_winners(argmax + k / 4) == corner, g, Vec{}));
  }
  for (; k < K; ++k) {
    const bool on = ((argmax[k / 4] >> (2 * (k % 4))) & 3) == corner && (!y || widen(y[k]) != 0.0f);
    out[k] = stored<Out>(on ? widen(dy[k]) : 0.0f);
  }
}

}  // namespace
