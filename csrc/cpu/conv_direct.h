// Convolution of few input channels (the first layer): any filter, stride and padding, K a multiple
// of 16.
#pragma once
#include "pycap/conv2d.h"

namespace pycap::PYCAP_ISA {

bool direct_fits(const ConvShape& s);
size_t direct_forward_workspace(const ConvShape& s, int threads);
void direct_forward(float* y, uint8_t* argmax, const float* x, const float* w, const float* b,
                    const ConvShape& s, bool relu, void* ws, int threads);
size_t direct_weight_workspace(const ConvShape& s, int threads);
void direct_backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                            const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                            void* ws, int threads);

}  // namespace pycap::PYCAP_ISA
