// What the LSTM's backward keeps in its workspace.
#pragma once
#include "lstm.h"

namespace pycap::gpu {

template <class T>
struct LstmBackwardScratch {
  int* arrived;   // [tiles], zero before; for the exchange
  T* sent;        // [2,N,4H] of the last two steps, rounded to T; float: the gates themselves serve
  float* into_c;  // [N,H] the gradient that travels back through c
  float* past;    // [N,H] what reaches h past masked steps
};

// Bytes of each array, in that order, up to a multiple of 256.
template <class T>
struct LstmBackwardSizes {
  size_t arrived, sent, state;

  LstmBackwardSizes(int n, int hidden)
      : arrived(lstm_forward_workspace(n)),
        sent(std::is_same_v<T, float> ? 0 : rounded(2 * sizeof(T) * 4 * hidden * n)),
        state(rounded(sizeof(float) * hidden * n)) {}
  static size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }
};

template <class T>
LstmBackwardScratch<T> backward_scratch(void* workspace, int n, int hidden) {
  const LstmBackwardSizes<T> sizes(n, hidden);
  unsigned char* at = static_cast<unsigned char*>(workspace);
  unsigned char* const sent = at + sizes.arrived;
  unsigned char* const into_c = sent + sizes.sent;
  return {reinterpret_cast<int*>(at), reinterpret_cast<T*>(sent), reinterpret_cast<float*>(into_c),
          reinterpret_cast<float*>(into_c + sizes.state)};
}

}  // namespace pycap::gpu
