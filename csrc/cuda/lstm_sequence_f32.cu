// The LSTM's cooperative form in float32.
#include "lstm_sequence.cuh"

namespace pycap::gpu {

template struct LstmCooperative<float>;

}  // namespace pycap::gpu
