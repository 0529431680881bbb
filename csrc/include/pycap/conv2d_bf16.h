// 2-D convolution on bfloat16 activations: the contract of the CPU kernels.
#pragma once
#include "pycap/bf16.h"
#include "pycap/conv2d.h"

namespace pycap {

// As Conv2dKernels, for shapes that `fits` accepts (stride 1, padding smaller than the filter); x,
// y, dx, dy are bfloat16, w, b, dw, db float32. Filters are packed beforehand, rounded to bfloat16:
// `packed` (64-byte aligned, `packed_bytes` long) may be kept while w does not change. Sums are
// float32, rounded once when stored.
struct Conv2dBf16Kernels {
  bool (*fits)(const ConvShape& s);
  // `data`: for backward_data, else for forward.
  size_t (*packed_bytes)(const ConvShape& s, bool data);
  void (*pack)(void* packed, const float* w, const ConvShape& s, bool data, int threads);

  size_t (*workspace)(const ConvShape& s, bool data, int threads);
  // argmax: null, or y is the pooled map (with ReLU).
  void (*forward)(bf16* y, uint8_t* argmax, const bf16* x, const void* packed, const float* b,
                  const ConvShape& s, bool relu, void* ws, int threads);
  void (*backward_data)(bf16* dx, const bf16* dy, const void* packed, const bf16* y,
                        const uint8_t* argmax, const ConvShape& s, float beta, void* ws,
                        int threads);

  size_t (*weight_workspace)(const ConvShape& s, int threads);
  void (*backward_weight)(float* dw, float* db, const bf16* dy, const bf16* x, const bf16* y,
                          const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                          void* ws, int threads);
};

}  // namespace pycap
