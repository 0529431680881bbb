// The pointwise part of an LSTM step in float32 (docs/math/lstm.md).
#pragma once
#include "types.h"

namespace pycap::gpu {

// exp may overflow to infinity, which gives 0.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The gates i, f, g, o of one unit: pre-activations, activations or gradients.
struct Gates {
  float i, f, g, o;
};

struct Cell {
  float h, c;
};

// Activates the gates.
__device__ __forceinline__ Cell lstm_cell(Gates& z, float c_before) {
  z = {sigmoid(z.i), sigmoid(z.f), tanhf(z.g), sigmoid(z.o)};
  const float c = z.f * c_before + z.i * z.g;
  return {z.o * tanhf(c), c};
}

// The gradients of the pre-activations from the activated gates, the cell state after and before
// and the gradients of h and c; dc becomes the gradient of the cell state before.
__device__ __forceinline__ Gates lstm_cell_gradients(const Gates& a, float c, float c_before,
                                                     float dh, float& dc) {
  const float tanh_c = tanhf(c);
  dc += dh * a.o * (1.0f - tanh_c * tanh_c);
  const Gates d = {dc * a.g * a.i * (1.0f - a.i), dc * c_before * a.f * (1.0f - a.f),
                   dc * a.i * (1.0f - a.g * a.g), dh * tanh_c * a.o * (1.0f - a.o)};
  dc *= a.f;
  return d;
}

}  // namespace pycap::gpu
