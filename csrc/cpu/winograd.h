// Winograd convolution, 3x3, stride 1, padding 1, channels in multiples of 16.
#pragma once
#include "pycap/conv2d.h"

namespace pycap::PYCAP_ISA {

bool winograd_fits(const ConvShape& s);
// Both directions of the map: forward (in C, out K) and data gradient (in K, out C).
size_t winograd_workspace(const ConvShape& s, bool data, int threads);
// The form of w that forward reads (see winograd_filters.h); without it forward makes it in ws.
size_t winograd_filter_floats(const ConvShape& s);
void winograd_prepare_filters(float* form, const float* w, const ConvShape& s, int threads);
void winograd_forward(float* y, uint8_t* argmax, const float* x, const float* w, const float* form,
                      const float* b, const ConvShape& s, bool relu, void* ws, int threads);
void winograd_backward_data(float* dx, const float* dy, const float* w, const float* y,
                            const uint8_t* argmax, const ConvShape& s, float beta, void* ws,
                            int threads);
// Whether threads share tiles in this direction (else each has its own).
bool winograd_shares(const ConvShape& s, bool data, int threads);
// blocks: shared, tiles, inputs, outputs, or null for the table's.
void winograd_force_blocks(const int64_t* blocks);
size_t winograd_weight_workspace(const ConvShape& s, int threads);
void winograd_backward_weight(float* dw, float* db, const float* dy, const float* x, const float* y,
                              const uint8_t* argmax, const ConvShape& s, float beta_w, float beta_b,
                              void* ws, int threads);

}  // namespace pycap::PYCAP_ISA
