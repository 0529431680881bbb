// What every kernel file shares. Kernel files are compiled once per instruction set, so everything
// here has internal linkage: a vague-linkage symbol (a std template, say) could be taken from the
// AVX-512 build by the baseline one.
#pragma once
#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef PYCAP_ISA
#error "compile kernel files with -DPYCAP_ISA=v4, v3, v1 or native"
#endif

// AVX-512, or its widths where a build for tests has no such instructions.
#if defined(__AVX512F__) || defined(PYCAP_EMULATE_V4)
#define PYCAP_V4
#endif

#define PYCAP_SIMD _Pragma("omp simd")

namespace {

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Floats rounded up to whole cache lines, so that every piece of a workspace is 64-byte aligned.
inline int64_t align_floats(int64_t n) { return (n + 15) & ~int64_t{15}; }

struct Range {
  int64_t begin, end;
};

// Part `i` of `parts` of [0, n), cut at multiples of `grain`.
inline Range split(int64_t n, int64_t parts, int64_t i, int64_t grain = 1) {
  const int64_t units = ceil_div(n, grain);
  const int64_t begin = units * i / parts * grain, end = units * (i + 1) / parts * grain;
  return {min64(begin, n), min64(end, n)};
}

// NaN stays NaN: the comparison is false and x passes.
inline float relu1(float x) { return x < 0.0f ? 0.0f : x; }

// y = beta*y + v without reading y when beta is 0.
inline void store_beta(float* y, const float* v, int64_t n, float beta) {
  if (beta == 0.0f) {
    memcpy(y, v, sizeof(float) * n);
  } else {
    PYCAP_SIMD for (int64_t i = 0; i < n; ++i) y[i] = beta * y[i] + v[i];
  }
}

inline void scale_beta(float* y, int64_t n, float beta) {
  if (beta == 0.0f) {
    memset(y, 0, sizeof(float) * n);
  } else if (beta != 1.0f) {
    PYCAP_SIMD for (int64_t i = 0; i < n; ++i) y[i] *= beta;
  }
}

}  // namespace
