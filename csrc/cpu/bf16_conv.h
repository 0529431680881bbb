// What the two halves of the bfloat16 convolution share with their table.
#pragma once
#include "pycap/conv2d_bf16.h"

namespace pycap::PYCAP_ISA {

size_t bf16_weight_workspace(const ConvShape& s, int threads);
void bf16_backward_weight(float* dw, float* db, const bf16* dy, const bf16* x, const bf16* y,
                          const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                          void* ws, int threads);

}  // namespace pycap::PYCAP_ISA
