// The LSTM's cooperative form in bfloat16.
#include "lstm_sequence.cuh"

namespace pycap::gpu {

template struct LstmCooperative<bf16>;

}  // namespace pycap::gpu
