// Kernels with one fault each. The lines that may be reported end in a comment that names it.
#include <map>
#include <stdexcept>

#include "cuda/launch.h"
#include "cuda/order.h"
#include "cuda/tensor_cores.h"
#include "planted.h"

namespace pycap::gpu {
namespace {

namespace cg = cooperative_groups;

// out[i] = in[63 - i] in each of four blocks' 64 numbers, through shared memory.
template <bool kHealthy>
__global__ void missing_barrier(float* out, const float* in, int*) {
  PYCAP_SHARED(float, tile, [64]);
  const unsigned i = threadIdx.x, block = 64 * blockIdx.x;
  tile[i] = 0;
  __syncthreads();
  tile[i] = in[block + i];  // missing_barrier
  if (kHealthy) __syncthreads();
  out[block + i] = tile[63 - i];  // missing_barrier
}

// out[i] = in[i]: four blocks write a quarter each.
template <bool kHealthy>
__global__ void race_between_blocks(float* out, const float* in, int*) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x;
  out[kHealthy ? i : i / 2] = in[i];  // race_between_blocks
}

// out[i] = in[i], i < 256; the fault goes one further.
template <bool kHealthy>
__global__ void out_of_bounds(float* out, const float* in, int*) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x + (kHealthy ? 0 : 1);
  const float x = in[i - (kHealthy ? 0 : 1)];
  out[i] = x;  // out_of_bounds
}

// out[i] = in[i ^ 1] by way of a tile of 64; the fault touches a neighbour of the tile.
template <bool kHealthy>
__global__ void out_of_shared_bounds(float* out, const float* in, int*) {
  PYCAP_SHARED(float, tile, [64]);
  PYCAP_SHARED(float, other, [64]);
  const unsigned i = threadIdx.x, block = 64 * blockIdx.x;
  other[i] = 0;
  tile[i] = in[block + i];
  __syncthreads();
  const unsigned from = kHealthy ? i ^ 1 : i + 1;
  out[block + i] = tile[from] + other[i];  // out_of_shared_bounds
}

// out[i] = in[i] for even i, else 0.
template <bool kHealthy>
__global__ void uninitialised(float* out, const float* in, int*) {
  PYCAP_SHARED(float, tile, [64]);
  const unsigned i = threadIdx.x, block = 64 * blockIdx.x;
  if (kHealthy || i % 2 == 0) tile[i] = i % 2 ? 0 : in[block + i];
  __syncthreads();
  out[block + i] = tile[i];  // uninitialised
}

// out[i] = in[i]; some threads leave before the barrier.
template <bool kHealthy>
__global__ void divergent_barrier(float* out, const float* in, int*) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x;
  out[i] = in[i];
  if (!kHealthy && threadIdx.x >= 40) return;
  __syncthreads();  // divergent_barrier
}

// out[i] = in[i]; two barriers that half of the threads meet at each.
template <bool kHealthy>
__global__ void two_barriers(float* out, const float* in, int*) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x;
  out[i] = in[i];
  if (kHealthy || threadIdx.x < 32)
    __syncthreads();  // two_barriers
  else
    __syncthreads();  // two_barriers
}

// out[i] = in[i ^ 1] by a shuffle that some lanes skip.
template <bool kHealthy>
__global__ void divergent_lanes(float* out, const float* in, int*) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x;
  float x = in[i];
  if (kHealthy || threadIdx.x != 5) x = __shfl_xor_sync(kAllLanes, x, 1);  // divergent_lanes
  __syncwarp();                                                            // divergent_lanes
  out[i] = x;
}

// out[i] = in[i ^ 1], between the lanes of a warp.
template <bool kHealthy>
__global__ void missing_warp_barrier(float* out, const float* in, int*) {
  PYCAP_SHARED(float, tile, [64]);
  const unsigned i = threadIdx.x, block = 64 * blockIdx.x;
  tile[i] = 0;
  __syncwarp();
  tile[i] = in[block + i];  // missing_warp_barrier
  if (kHealthy) __syncwarp();
  out[block + i] = tile[i ^ 1];  // missing_warp_barrier
}

// out[i] = in[i + 64]: each block hands its numbers to the one before, which polls a counter. The
// fault counts before all threads of the block have written.
template <bool kHealthy>
__global__ void early_release(float* out, const float* in, int* counters) {
  const unsigned i = threadIdx.x, block = blockIdx.x, next = (block + 1) % gridDim.x;
  out[64 * ((block + 3) % 4) + i] = in[64 * block + i];  // early_release
  if (kHealthy) __syncthreads();
  if (i == 0) {
    add_release(&counters[block], 1);
    while (load_acquire(&counters[next]) < 1) {
    }
  }
  __syncthreads();
  const unsigned mine = 64 * block + i;
  out[mine] = out[mine] + 0;  // early_release
}

// The same by a barrier of the grid; the fault does without.
template <bool kHealthy>
__global__ void missing_grid_barrier(float* out, const float* in, int*) {
  const unsigned i = threadIdx.x, block = blockIdx.x;
  out[64 * ((block + 3) % 4) + i] = in[64 * block + i];  // missing_grid_barrier
  if (kHealthy) cg::this_grid().sync();
  const unsigned mine = 64 * block + i;
  out[mine] = out[mine] + 0;  // missing_grid_barrier
}

// out[i] = in[i]; every block waits for a fifth one, which there is not.
template <bool kHealthy>
__global__ void endless_wait(float* out, const float* in, int* counters) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x;
  out[i] = in[i];
  if (threadIdx.x == 0) {
    add_release(counters, 1);
    while (load_acquire(counters) < (kHealthy ? 4 : 5)) {  // endless_wait
    }
  }
}

// The same, with two counters that are looked at in turn.
template <bool kHealthy>
__global__ void endless_turns(float* out, const float* in, int* counters) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x;
  out[i] = in[i];
  if (threadIdx.x == 0) {
    add_release(counters, 1);
    const int all = kHealthy ? 4 : 5;
    while (load_acquire(counters) < all && !load_acquire(counters + 1)) {  // endless_turns
    }
  }
}

// out[i] = in[i + 64] through the shared memory of the next block of a cluster of four.
template <bool kHealthy>
__global__ void missing_cluster_barrier(float* out, const float* in, int*) {
  PYCAP_SHARED(float, tile, [64]);
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned i = threadIdx.x, block = 64 * blockIdx.x;
  tile[i] = 0;
  cluster.sync();
  tile[i] = in[block + i];  // missing_cluster_barrier
  if (kHealthy) cluster.sync();
  const float* next = cluster.map_shared_rank(&tile[0], (cluster.block_rank() + 1) % 4);
  out[block + i] = next[i];  // missing_cluster_barrier
  cluster.sync();            // no block ends while another reads its memory
}

// The same; the fault lets a block end while another may still read its memory.
template <bool kHealthy>
__global__ void early_end(float* out, const float* in, int*) {
  PYCAP_SHARED(float, tile, [64]);
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned i = threadIdx.x, block = 64 * blockIdx.x;
  tile[i] = in[block + i];
  cluster.sync();
  const float* next = cluster.map_shared_rank(&tile[0], (cluster.block_rank() + 1) % 4);
  out[block + i] = next[i];  // early_end
  if (kHealthy) cluster.sync();
}

// out[i] = in[i + 64] once more: each block puts its numbers into the memory of the one before it.
// The fault does so before that block may have begun.
template <bool kHealthy>
__global__ void early_begin(float* out, const float* in, int*) {
  PYCAP_SHARED(float, tile, [64]);
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned i = threadIdx.x, block = 64 * blockIdx.x;
  if (kHealthy) cluster.sync();
  float* before = cluster.map_shared_rank(&tile[0], (cluster.block_rank() + 3) % 4);
  before[i] = in[block + i];  // early_begin
  cluster.sync();
  out[block + i] = tile[i];
}

// out[i] = in[i]: each thread copies 16 bytes asynchronously.
template <bool kHealthy>
__global__ void missing_copy_wait(float* out, const float* in, int*) {
  PYCAP_SHARED(float4, tile, [64]);
  if (threadIdx.x < 16) copy_async_16(&tile[threadIdx.x], in + 64 * blockIdx.x + 4 * threadIdx.x);
  copy_async_commit();
  copy_async_wait<kHealthy ? 0 : 1>();
  __syncthreads();
  const float4 four = tile[threadIdx.x / 4];  // missing_copy_wait
  const unsigned which = threadIdx.x % 4;
  out[64 * blockIdx.x + threadIdx.x] = which == 0   ? four.x
                                       : which == 1 ? four.y
                                       : which == 2 ? four.z
                                                    : four.w;
}

// out[i] = in[i]; 16 bytes from an address that is a multiple of 4.
template <bool kHealthy>
__global__ void misaligned(float* out, const float* in, int*) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x;
  if (i % 4) return;
  const float* from = in + i - (kHealthy || !i ? 0 : 1);
  const float4 four = *reinterpret_cast<const float4*>(from);  // misaligned
  out[i] = four.x;
  out[i + 1] = four.y;
  out[i + 2] = four.z;
  out[i + 3] = four.w;
}

// out[0..127]: by mma.m16n8k16, ldmatrix and their layouts, the product of in as a 16 x 16 matrix
// with its transpose's first 8 columns. The fault skips the barrier before ldmatrix.
template <bool kHealthy>
__global__ void tensor_cores(float* out, const float* in, int*) {
  PYCAP_SHARED(uint4, rows, [32]);  // 16 x 16 numbers of 16 bits
  const unsigned lane = threadIdx.x;
  auto* numbers = reinterpret_cast<bf16*>(&rows[0]);
  for (int i = 0; i < 8; ++i)
    numbers[32 * i + lane] = from_float<bf16>(in[32 * i + lane]);  // tensor_cores
  if (kHealthy) __syncwarp();
  uint32_t a[4];
  ldmatrix_x4(a, &rows[lane % 16 * 2 + lane / 16]);  // tensor_cores
  const uint32_t b[2] = {a[0], a[2]};
  float d[4] = {};
  mma_16816<bf16>(d, a, b);
  const unsigned row = lane / 4, column = lane % 4 * 2;
  out[8 * row + column] = d[0];
  out[8 * row + column + 1] = d[1];
  out[8 * (row + 8) + column] = d[2];
  out[8 * (row + 8) + column + 1] = d[3];
}

// out: the product of in as a 16 x 16 matrix with its transpose, by nvcuda::wmma. The fault gives a
// row stride that leaves the array.
template <bool kHealthy>
__global__ void wmma(float* out, const float* in, int*) {
  using namespace nvcuda::wmma;
  PYCAP_SHARED(half, rows, [256]);
  for (int i = 0; i < 8; ++i)
    rows[32 * i + threadIdx.x] = from_float<half>(in[32 * i + threadIdx.x]);
  __syncwarp();
  fragment<matrix_a, 16, 16, 16, half, row_major> a;
  fragment<matrix_b, 16, 16, 16, half, col_major> b;
  fragment<accumulator, 16, 16, 16, float> sum;
  fill_fragment(sum, 0.0f);
  load_matrix_sync(a, rows, 16);
  load_matrix_sync(b, rows, 16);
  mma_sync(sum, a, b, sum);
  store_matrix_sync(out, sum, kHealthy ? 16 : 20, mem_row_major);  // wmma
}

// out[i]: of each warp, the sum of in by shuffles, plus 1000 times the number of positive ones by a
// vote; counters[0] counts threads atomically. The fault counts without atomics.
template <bool kHealthy>
__global__ void warp_sums(float* out, const float* in, int* counters) {
  const unsigned i = 64 * blockIdx.x + threadIdx.x;
  float sum = in[i];
  for (int step = 16; step; step /= 2) sum += __shfl_down_sync(kAllLanes, sum, step);
  sum = __shfl_sync(kAllLanes, sum, 0);
  const int positive = __popc(__ballot_sync(kAllLanes, in[i] > 0));
  out[i] = sum + 1000.0f * static_cast<float>(positive);
  if (kHealthy)
    atomicAdd(counters, 1);
  else
    counters[0] = counters[0] + 1;  // warp_sums
}

using Kernel = void (*)(float*, const float*, int*);
struct Planted {
  Kernel healthy, faulty;
  unsigned blocks, threads, cluster;
  bool cooperative;
};

#define PLANTED(name, ...)                          \
  {                                                 \
    #name, { name<true>, name<false>, __VA_ARGS__ } \
  }

const std::map<std::string, Planted>& all() {
  static const std::map<std::string, Planted> table{
      PLANTED(missing_barrier, 4, 64, 1, false),
      PLANTED(race_between_blocks, 4, 64, 1, false),
      PLANTED(out_of_bounds, 4, 64, 1, false),
      PLANTED(out_of_shared_bounds, 4, 64, 1, false),
      PLANTED(uninitialised, 4, 64, 1, false),
      PLANTED(divergent_barrier, 4, 64, 1, false),
      PLANTED(two_barriers, 4, 64, 1, false),
      PLANTED(divergent_lanes, 4, 64, 1, false),
      PLANTED(missing_warp_barrier, 4, 64, 1, false),
      PLANTED(early_release, 4, 64, 1, true),
      PLANTED(missing_grid_barrier, 4, 64, 1, true),
      PLANTED(endless_wait, 4, 64, 1, true),
      PLANTED(endless_turns, 4, 64, 1, true),
      PLANTED(missing_cluster_barrier, 4, 64, 4, false),
      PLANTED(early_begin, 4, 64, 4, false),
      PLANTED(early_end, 4, 64, 4, false),
      PLANTED(missing_copy_wait, 4, 64, 1, false),
      PLANTED(misaligned, 4, 64, 1, false),
      PLANTED(tensor_cores, 1, 32, 1, false),
      PLANTED(wmma, 1, 32, 1, false),
      PLANTED(warp_sums, 4, 64, 1, false),
  };
  return table;
}

}  // namespace

std::vector<std::string> planted_names() {
  std::vector<std::string> names;
  for (const auto& entry : all()) names.push_back(entry.first);
  return names;
}

void run_planted(const std::string& name, bool healthy, float* out, const float* in,
                 int* counters) {
  const auto found = all().find(name);
  if (found == all().end()) throw std::invalid_argument("no planted kernel is called " + name);
  const Planted& p = found->second;
  launch(name.c_str(), healthy ? p.healthy : p.faulty,
         {p.blocks, p.threads, 0, nullptr, p.cooperative, p.cluster}, out, in, counters);
}

}  // namespace pycap::gpu
