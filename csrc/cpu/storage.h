// What kernels that are written once for float32 and bfloat16 storage use; arithmetic is float32.
#pragma once
#include "bf16.h"

namespace {

inline float widen(float v) { return v; }

template <class T>
inline T stored(float v) {
  if constexpr (sizeof(T) == sizeof(float))
    return v;
  else
    return narrow(v);
}

// y = beta*y + v, rounded once; y is not read when beta is 0.
inline void store_beta(bf16* y, const float* v, int64_t n, float beta) {
  int64_t i = 0;
  if (beta == 0.0f) {
    for (; i + VL <= n; i += VL) store(y + i, load(v + i));
    for (; i < n; ++i) y[i] = narrow(v[i]);
  } else {
    for (; i + VL <= n; i += VL) store(y + i, beta * load(y + i) + load(v + i));
    for (; i < n; ++i) y[i] = narrow(beta * widen(y[i]) + v[i]);
  }
}

inline void scale_beta(bf16* y, int64_t n, float beta) {
  if (beta == 0.0f) {
    memset(y, 0, sizeof(bf16) * n);
  } else if (beta != 1.0f) {
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store(y + i, beta * load(y + i));
    for (; i < n; ++i) y[i] = narrow(beta * widen(y[i]));
  }
}

}  // namespace
