// The LSTM's sequence with clusters of blocks, which hold the weights among them: after each step a
// block copies its part of the state into the shared memory of the others, and the barrier of the
// cluster tells when all of it is there. Each cluster has its own sequences and waits for no other,
// so that any number of them may be launched.
//
// Compiled for all architectures, but of use on sm_90 only: kernels are empty where there are no
// clusters.
#include <algorithm>
#include <stdexcept>

#include "lstm_steps.cuh"

#if defined(PYCAP_EMU) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PYCAP_HAS_CLUSTERS 1
#else
#define PYCAP_HAS_CLUSTERS 0
#endif

namespace pycap::gpu {
namespace {

// 16 blocks hold 2 MB of weights at most in their registers, and a cluster is no larger.
template <class T>
constexpr int kMostHidden = sizeof(T) == 2 ? 512 : 256;

// In half precision 32 units a block: eight blocks at 256 units, so that twice as many clusters
// fit.
template <class T, int kHidden>
using ClusterShape = LstmShape<T, kHidden, (kHidden >= 256 && sizeof(T) == 2) ? 32 : 16,
                               (kHidden < 256) ? sizeof(T) : 8, 1>;

// Of a row of the operand in shared memory: rows begin half of all banks apart, so that the two
// rows of which eight lanes load 16 bytes each do not share a bank.
template <class T, int kLength>
constexpr int kPitch = kLength + 64 / static_cast<int>(sizeof(T));

#if PYCAP_HAS_CLUSTERS

template <class T, class Shape, int kLength>
struct ThroughCluster {
  static constexpr bool kThroughMemory = false;
  static constexpr int kPack = 16 / sizeof(T);
  static constexpr int kParts = Shape::kUnits / kPack;    // copies of 16 bytes a block's units take
  static constexpr int kRuns = kLength / Shape::kHidden;  // of units in a row: h, or four gates
  static constexpr int kCopies = Shape::kRows * kRuns * kParts;  // of a tile to one block

  cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  T* operand;  // [2][rows][kPitch], by the generation's parity
  int rows;    // of this cluster, up to a multiple of a tile's
  int first, last, stride = 1, unit;

  __device__ __forceinline__ ThroughCluster(T* operand, int n, int tiles)
      : operand(operand),
        rows(tiles * Shape::kRows),
        first(static_cast<int>(blockIdx.y) * tiles),
        last(min(first + tiles, (n + Shape::kRows - 1) / Shape::kRows)),
        unit(static_cast<int>(cluster.block_rank()) * Shape::kUnits) {}

  __device__ __forceinline__ T* at(int generation, int tile, int row, int column) const {
    return operand +
           (generation % 2 * rows + (tile - first) * Shape::kRows + row) * kPitch<T, kLength> +
           column;
  }

  // Before the first step: the state that all steps begin with, and that all blocks are there.
  __device__ __forceinline__ void begin(const T* state, int n) {
    if (state) {
      const int first_row = first * Shape::kRows;
      constexpr int kPieces = kLength / kPack;
      for (int piece = threadIdx.x; piece < min(rows, n - first_row) * kPieces;
           piece += Shape::kThreads) {
        const int row = piece / kPieces, column = piece % kPieces * kPack;
        copy_16(at(0, first, row, column),
                state + static_cast<int64_t>(first_row + row) * kLength + column);
      }
    }
    cluster.sync();
  }

  // To this block's own copy, where `publish` and this block's product find it.
  __device__ __forceinline__ void send(T*, int generation, int tile, int row, int column,
                                       T value) const {
    *at(generation, tile, row, column) = value;
  }

  __device__ __forceinline__ void publish(int generation, int tile, int present) const {
    for (int copy = threadIdx.x; copy < kCopies * (Shape::kBlocks - 1); copy += Shape::kThreads) {
      const int part = copy % kParts, run = copy / kParts % kRuns;
      const int row = copy / (kParts * kRuns) % Shape::kRows;
      if (row >= present) continue;
      const unsigned rank = (cluster.block_rank() + 1 + copy / kCopies) % Shape::kBlocks;
      T* const mine = at(generation, tile, row, run * Shape::kHidden + unit + part * kPack);
      copy_16(cluster.map_shared_rank(mine, rank), mine);
    }
    if (tile == last - 1) cluster.barrier_arrive();
  }
  __device__ __forceinline__ void wait(int, int tile) const {
    if (tile == first) cluster.barrier_wait();
  }
  __device__ __forceinline__ uint4 load(const T*, int generation, int tile, int row, int k) const {
    return *reinterpret_cast<const uint4*>(at(generation, tile, row, k));
  }

 private:
  static __device__ __forceinline__ void copy_16(T* to, const T* from) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  }
};

#endif

// Shared memory: the partial sums, then the operand. tiles: of a cluster.
template <class T, int kHidden>
__global__ void __launch_bounds__((ClusterShape<T, kHidden>::kThreads), 1)
    lstm_cluster_forward(LstmForward<T> with, int tiles) {
#if PYCAP_HAS_CLUSTERS
  using Shape = ClusterShape<T, kHidden>;
  PYCAP_DYNAMIC_SHARED(memory);
  float* const partial = reinterpret_cast<float*>(memory);
  ThroughCluster<T, Shape, kHidden> exchange(reinterpret_cast<T*>(partial + Shape::Forward::kSums),
                                             with.n, tiles);
  exchange.begin(with.h0, with.n);
  lstm_forward_steps<T, Shape>(with, exchange, partial);
#endif
}

template <class T, int kHidden>
__global__ void __launch_bounds__((ClusterShape<T, kHidden>::kThreads), 1)
    lstm_cluster_backward(LstmBackward<T> with, LstmBackwardScratch<T> scratch, int tiles) {
#if PYCAP_HAS_CLUSTERS
  using Shape = ClusterShape<T, kHidden>;
  PYCAP_DYNAMIC_SHARED(memory);
  float* const partial = reinterpret_cast<float*>(memory);
  ThroughCluster<T, Shape, 4 * kHidden> exchange(
      reinterpret_cast<T*>(partial + Shape::Backward::kSums), with.n, tiles);
  exchange.begin(nullptr, with.n);
  lstm_backward_steps<T, Shape>(with, scratch, exchange, partial);
#endif
}

struct ClusterLaunch {
  Launch how;
  int tiles;           // of a cluster
  std::string reason;  // why there is no launch, or ""
};

// As few tiles a cluster as let all clusters run at once, if its shared memory holds so many.
template <class T, class Shape, class Weights, int kLength, class... P>
ClusterLaunch plan(void (*kernel)(P...), int n, cudaStream_t stream) {
  const size_t sums = sizeof(float) * Weights::kSums;
  const size_t tile = 2 * sizeof(T) * Shape::kRows * kPitch<T, kLength>;
  ClusterLaunch made{{}, 1, ""};
  Launch& how = made.how;
  how.grid = Shape::kBlocks;
  how.block = Shape::kThreads;
  how.shared = sums + tile;
  how.stream = stream;
  how.cluster = Shape::kBlocks;
  const int clusters = resident_clusters(kernel, how);
  if (clusters == 0) {
    made.reason = "no cluster of " + std::to_string(Shape::kBlocks) + " blocks with " +
                  std::to_string(how.shared) + " bytes of shared memory each runs on this GPU";
    return made;
  }
  const int all = static_cast<int>(blocks_for(n, Shape::kRows));
  const int room = static_cast<int>((shared_limit() - sums) / tile);
  made.tiles = std::min(static_cast<int>(blocks_for(all, clusters)), room);
  how.shared = sums + made.tiles * tile;
  how.grid = dim3(Shape::kBlocks, blocks_for(all, made.tiles));
  return made;
}

template <class T, int kHidden>
ClusterLaunch forward_plan(int n, cudaStream_t stream) {
  using Shape = ClusterShape<T, kHidden>;
  return plan<T, Shape, typename Shape::Forward, kHidden>(lstm_cluster_forward<T, kHidden>, n,
                                                          stream);
}

template <class T, int kHidden>
ClusterLaunch backward_plan(int n, cudaStream_t stream) {
  using Shape = ClusterShape<T, kHidden>;
  return plan<T, Shape, typename Shape::Backward, 4 * kHidden>(lstm_cluster_backward<T, kHidden>, n,
                                                               stream);
}

// serve(std::integral_constant<int, hidden>()), which gives a reason or "", where a cluster can
// hold so many hidden units; else why there is none.
template <class T, class Serve>
std::string with_cluster(int hidden, const Serve& serve) {
  if (capability() / 10 != 9)
    return "clusters are made for sm_90, and this GPU is sm_" + std::to_string(capability());
  return with_hidden(hidden, [&](auto size) -> std::string {
    if constexpr (size <= kMostHidden<T>)
      return serve(size);
    else
      return "a cluster holds the weights of " + std::to_string(kMostHidden<T>) +
             " hidden units at most, not of " + std::to_string(size);
  });
}

}  // namespace

template <class T>
std::string LstmCluster<T>::obstacle(bool backward, int hidden) {
  return with_cluster<T>(hidden, [&](auto size) {
    return (backward ? backward_plan<T, size>(1, nullptr) : forward_plan<T, size>(1, nullptr))
        .reason;
  });
}

template <class T>
void LstmCluster<T>::forward(const LstmForward<T>& with, int hidden, cudaStream_t stream) {
  const std::string reason = with_cluster<T>(hidden, [&](auto size) {
    const ClusterLaunch plan = forward_plan<T, size>(with.n, stream);
    if (plan.reason.empty())
      launch("lstm_cluster_forward", lstm_cluster_forward<T, size>, plan.how, with, plan.tiles);
    return plan.reason;
  });
  if (!reason.empty()) throw std::invalid_argument("lstm_forward: " + reason);
}

template <class T>
void LstmCluster<T>::backward(const LstmBackward<T>& with, int hidden, cudaStream_t stream) {
  const auto scratch = backward_scratch<T>(with.workspace, with.n, hidden);
  const std::string reason = with_cluster<T>(hidden, [&](auto size) {
    const ClusterLaunch plan = backward_plan<T, size>(with.n, stream);
    if (plan.reason.empty())
      launch("lstm_cluster_backward", lstm_cluster_backward<T, size>, plan.how, with, scratch,
             plan.tiles);
    return plan.reason;
  });
  if (!reason.empty()) throw std::invalid_argument("lstm_backward: " + reason);
}

template struct LstmCluster<float>;
template struct LstmCluster<bf16>;
template struct LstmCluster<half>;

}  // namespace pycap::gpu
