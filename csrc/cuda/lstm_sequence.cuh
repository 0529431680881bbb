// The LSTM's sequence as one cooperative launch: after each step the blocks exchange the state
// through global memory (which the second-level cache holds). The grid is [blocks that hold the
// weights among them] x [groups], the groups having different tiles of the batch. `arrived` counts
// for each tile the blocks that published; all blocks run at once, so each may wait for the others.
#pragma once
#include <algorithm>
#include <stdexcept>

#include "lstm_steps.cuh"
#include "order.h"

namespace pycap::gpu {

// Float32 at 1,024 units: 16 units a block would be 256 KB of weights.
template <class T, int kHidden>
using SequenceShape = LstmShape<T, kHidden, (kHidden >= 1024 && sizeof(T) == 4) ? 8 : 16,
                                (kHidden < 256) ? sizeof(T) : 8, 2>;

template <class T, class Shape, int kLength>
struct ThroughMemory {
  static constexpr bool kThroughMemory = true;
  int* arrived;
  int first, last, stride, unit;

  __device__ __forceinline__ ThroughMemory(int* arrived, int n)
      : arrived(arrived),
        first(static_cast<int>(blockIdx.y)),
        last((n + Shape::kRows - 1) / Shape::kRows),
        stride(static_cast<int>(gridDim.y)),
        unit(static_cast<int>(blockIdx.x) * Shape::kUnits) {}

  __device__ __forceinline__ void send(T* slot, int, int, int, int, T value) const {
    *slot = value;
  }
  __device__ __forceinline__ void publish(int, int tile, int) const {
    if (threadIdx.x == 0) add_release(arrived + tile, 1);
  }
  // Each warp waits for itself: it needs no barrier of the block to go on.
  __device__ __forceinline__ void wait(int generation, int tile) const {
    if (threadIdx.x % kWarp == 0)
      while (load_acquire(arrived + tile) < generation * Shape::kBlocks) {
      }
    __syncwarp();
  }
  __device__ __forceinline__ uint4 load(const T* from, int, int, int row, int k) const {
    return load_shared_by_blocks(
        reinterpret_cast<const uint4*>(from + static_cast<int64_t>(row) * kLength + k));
  }
};

template <class T, int kHidden>
__global__ void __launch_bounds__((SequenceShape<T, kHidden>::kThreads), 1)
    lstm_sequence_forward(LstmForward<T> with) {
  using Shape = SequenceShape<T, kHidden>;
  PYCAP_DYNAMIC_SHARED(memory);
  ThroughMemory<T, Shape, kHidden> exchange(with.arrived, with.n);
  lstm_forward_steps<T, Shape>(with, exchange, reinterpret_cast<float*>(memory));
}

template <class T, int kHidden>
__global__ void __launch_bounds__((SequenceShape<T, kHidden>::kThreads), 1)
    lstm_sequence_backward(LstmBackward<T> with, LstmBackwardScratch<T> scratch) {
  using Shape = SequenceShape<T, kHidden>;
  PYCAP_DYNAMIC_SHARED(memory);
  ThroughMemory<T, Shape, 4 * kHidden> exchange(scratch.arrived, with.n);
  lstm_backward_steps<T, Shape>(with, scratch, exchange, reinterpret_cast<float*>(memory));
}

// The launch for n sequences, whose grid is empty where the GPU cannot hold one group.
template <class Shape, class... P>
Launch sequence_launch(void (*kernel)(P...), int floats, int n, cudaStream_t stream) {
  Launch how;
  how.block = Shape::kThreads;
  how.shared = sizeof(float) * floats;
  how.stream = stream;
  how.cooperative = true;
  const int held = resident_blocks(kernel, Shape::kThreads, how.shared) * multiprocessors();
  const int tiles = static_cast<int>(blocks_for(n, Shape::kRows));
  how.grid = dim3(Shape::kBlocks, std::min(held / Shape::kBlocks, tiles));
  return how;
}

template <class T, int kHidden>
Launch forward_launch(int n, cudaStream_t stream) {
  using Shape = SequenceShape<T, kHidden>;
  return sequence_launch<Shape>(lstm_sequence_forward<T, kHidden>, Shape::Forward::kSums, n,
                                stream);
}

template <class T, int kHidden>
Launch backward_launch(int n, cudaStream_t stream) {
  using Shape = SequenceShape<T, kHidden>;
  return sequence_launch<Shape>(lstm_sequence_backward<T, kHidden>, Shape::Backward::kSums, n,
                                stream);
}

// Why there is no such launch, or "".
inline std::string sequence_obstacle(const Launch& how) {
  if (how.grid.y > 0) return "";
  return std::to_string(how.grid.x) + " blocks of " + std::to_string(how.block.x) +
         " threads, which hold the weights among them, do not run at once on " +
         std::to_string(multiprocessors()) + " multiprocessors";
}

template <class... P, class... A>
void run_sequence(const char* name, void (*kernel)(P...), const Launch& how, int* arrived, int n,
                  A... arguments) {
  const std::string reason = sequence_obstacle(how);
  if (!reason.empty()) throw std::invalid_argument(std::string(name) + ": " + reason);
  zero(arrived, lstm_forward_workspace(n), how.stream);
  launch(name, kernel, how, arguments...);
}

template <class T>
std::string LstmCooperative<T>::obstacle(bool backward, int hidden) {
  return with_hidden(hidden, [&](auto size) {
    return sequence_obstacle(backward ? backward_launch<T, size>(1, nullptr)
                                      : forward_launch<T, size>(1, nullptr));
  });
}

template <class T>
void LstmCooperative<T>::forward(const LstmForward<T>& with, int hidden, cudaStream_t stream) {
  const std::string reason = with_hidden(hidden, [&](auto size) {
    run_sequence("lstm_sequence_forward", lstm_sequence_forward<T, size>,
                 forward_launch<T, size>(with.n, stream), with.arrived, with.n, with);
    return std::string();
  });
  if (!reason.empty()) throw std::invalid_argument("lstm_forward: " + reason);
}

template <class T>
void LstmCooperative<T>::backward(const LstmBackward<T>& with, int hidden, cudaStream_t stream) {
  const auto scratch = backward_scratch<T>(with.workspace, with.n, hidden);
  const std::string reason = with_hidden(hidden, [&](auto size) {
    run_sequence("lstm_sequence_backward", lstm_sequence_backward<T, size>,
                 backward_launch<T, size>(with.n, stream), scratch.arrived, with.n, with, scratch);
    return std::string();
  });
  if (!reason.empty()) throw std::invalid_argument("lstm_backward: " + reason);
}

}  // namespace pycap::gpu
