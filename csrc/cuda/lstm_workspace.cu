// How much scratch memory the LSTM's sequence needs.
#include "lstm_workspace.h"

namespace pycap::gpu {

size_t lstm_forward_workspace(int n) {
  // A counter for each tile, of eight sequences or more.
  return (sizeof(int) * blocks_for(n, 8) + 255) / 256 * 256;
}

template <class T>
size_t lstm_backward_workspace(int n, int hidden) {
  const LstmBackwardSizes<T> sizes(n, hidden);
  return sizes.arrived + sizes.sent + 2 * sizes.state;
}

template size_t lstm_backward_workspace<float>(int n, int hidden);
template size_t lstm_backward_workspace<bf16>(int n, int hidden);
template size_t lstm_backward_workspace<half>(int n, int hidden);

}  // namespace pycap::gpu
