// The LSTM's cooperative form in float16.
#include "lstm_sequence.cuh"

namespace pycap::gpu {

template struct LstmCooperative<half>;

}  // namespace pycap::gpu
