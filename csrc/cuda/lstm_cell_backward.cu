// One step of an LSTM backward, in two launches: the gradients of the pre-activations, and their
// products with the weights, which few_rows.h reads.
#include "few_rows.h"
#include "lstm_cell.h"
#include "lstm_gates.cuh"

namespace pycap::gpu {
namespace {

template <class T>
__global__ void cell_gradients(float* dc_prev,       // [N, H] or null
                               float* gates,         // [N, 4H]: activated; then dz
                               T* factors,           // [N, 4H]: dz
                               const T* dh,          // [N, H] or null
                               const float* dc,      // [N, H] or null
                               const float* c,       // [N, H]
                               const float* c_prev,  // [N, H]
                               int64_t count, int hidden, float beta) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int64_t first = at / hidden * 4 * hidden + at % hidden;
  float* gate = gates + first;
  const Gates activated = {gate[0], gate[hidden], gate[2 * static_cast<int64_t>(hidden)],
                           gate[3 * static_cast<int64_t>(hidden)]};
  float into_c = dc ? dc[at] : 0.f;
  const Gates d =
      lstm_cell_gradients(activated, c[at], c_prev[at], dh ? to_float(dh[at]) : 0.f, into_c);
  const float dz[4] = {d.i, d.f, d.g, d.o};
#pragma unroll
  for (int k = 0; k < 4; ++k) gate[k * static_cast<int64_t>(hidden)] = dz[k];
  if (static_cast<void*>(factors) != gates) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      factors[first + k * static_cast<int64_t>(hidden)] = from_float<T>(dz[k]);
  }
  if (dc_prev) dc_prev[at] = into_c + (beta != 0.f ? beta * dc_prev[at] : 0.f);
}

// Two neighbours of a row of T.
template <class T>
using TwoNumbers = std::conditional_t<sizeof(T) == 4, uint2, uint32_t>;

// Two columns, a row of both in each element, as two rows.
__device__ __forceinline__ void transpose(uint4 (&rows)[2], const uint2 (&columns)[4]) {
  rows[0] = make_uint4(columns[0].x, columns[1].x, columns[2].x, columns[3].x);
  rows[1] = make_uint4(columns[0].y, columns[1].y, columns[2].y, columns[3].y);
}
__device__ __forceinline__ void transpose(uint4 (&rows)[2], const uint32_t (&columns)[8]) {
  uint32_t low[4], high[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    low[i] = (columns[2 * i] & 0xffffu) | columns[2 * i + 1] << 16;
    high[i] = columns[2 * i] >> 16 | (columns[2 * i + 1] & 0xffff0000u);
  }
  rows[0] = make_uint4(low[0], low[1], low[2], low[3]);
  rows[1] = make_uint4(high[0], high[1], high[2], high[3]);
}

// One of the two products of the backward: out = beta * out + dz w.
template <class T>
struct Gradient {
  T* out;      // [N, columns]
  const T* w;  // [4H, columns]
  int columns;
  float beta;
};

constexpr int kColumns = 16, kSumStride = kColumns + 4;

// A block: 16 columns of 8*N rows; its warps share the 4H numbers of each. Blocks up to
// `first_blocks` work for the first gradient, the others for the second.
template <class T, bool split, int N, int warps, int depth>
__global__ void __launch_bounds__(kWarp* warps)
    cell_product(Gradient<T> first, Gradient<T> second, const T* dz, int64_t n, int length,
                 int first_blocks) {
  PYCAP_DYNAMIC_SHARED(bytes);
  float* partial = reinterpret_cast<float*>(bytes);  // [warps][8*N][kSumStride]
  const int warp = threadIdx.x / kWarp, group = threadIdx.x % kWarp / 4, pair = threadIdx.x % 4;
  const bool is_first = static_cast<int>(blockIdx.x) < first_blocks;
  const Gradient<T> made = is_first ? first : second;
  const int block = is_first ? blockIdx.x : blockIdx.x - first_blocks;
  const int first_column = block * kColumns;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * 8 * N;
  // This lane's two columns stand for the rows `group` and `group + 8` of w^T.
  const int column = first_column + 2 * group;
  const T* left = made.w + static_cast<int64_t>(kVector<T>) * pair * made.columns +
                  (column < made.columns ? column : 0);
  const T* right[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int64_t row = first_row + 8 * j + group;
    right[j] = dz + (row < n ? row : 0) * length + kVector<T> * pair;
  }
  TwoNumbers<T> a[depth][kVector<T>];
  uint4 to[depth][N];
  int chunk = warp;  // the next to be loaded
  const auto load = [&](int stage) {
    const bool inside = chunk * kChunk<T> < length;
    const int64_t k = static_cast<int64_t>(chunk) * kChunk<T>;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i)
      a[stage][i] =
          inside ? __ldg(reinterpret_cast<const TwoNumbers<T>*>(left + (k + i) * made.columns))
                 : TwoNumbers<T>{};
#pragma unroll
    for (int j = 0; j < N; ++j)
      to[stage][j] = inside ? load_16(right[j] + k) : make_uint4(0, 0, 0, 0);
    chunk += warps;
  };
#pragma unroll
  for (int stage = 0; stage < depth; ++stage) load(stage);
  float sums[1][N][4] = {};
  for (int done = warp; done * kChunk<T> < length; done += depth * warps) {
#pragma unroll
    for (int stage = 0; stage < depth; ++stage) {
      uint4 rows[1][2];
      transpose(rows[0], a[stage]);
      multiply<T, split>(sums, rows, to[stage]);
      load(stage);
    }
  }
  put_sums(partial + warp * 8 * N * kSumStride, kSumStride, sums);
  __syncthreads();
  for (int i = threadIdx.x; i < 8 * N * kColumns; i += kWarp * warps) {
    const int64_t row = first_row + i / kColumns;
    // Row r of w^T is column 2r, or 2(r - 8) + 1.
    const int r = i % kColumns / 2 + i % 2 * 8, column = first_column + i % kColumns;
    if (row >= n || column >= made.columns) continue;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < warps; ++k) sum += partial[(k * 8 * N + i / kColumns) * kSumStride + r];
    T& out = made.out[row * made.columns + column];
    if (made.beta != 0.f) sum += made.beta * to_float(out);
    out = from_float<T>(sum);
  }
}

template <class T, bool split, int N, int warps, int depth>
void product(const Gradient<T>& first, const Gradient<T>& second, const T* dz, const CellShape& s,
             cudaStream_t stream) {
  const unsigned first_blocks = first.out ? blocks_for(first.columns, kColumns) : 0;
  const unsigned second_blocks = second.out ? blocks_for(second.columns, kColumns) : 0;
  if (first_blocks + second_blocks == 0) return;
  const Launch how{{first_blocks + second_blocks, blocks_for(s.N, 8 * N)},
                   kWarp * warps,
                   sizeof(float) * warps * 8 * N * kSumStride,
                   stream};
  launch("lstm_cell_backward", cell_product<T, split, N, warps, depth>, how, first, second, dz, s.N,
         static_cast<int>(4 * s.H), static_cast<int>(first_blocks));
}

}  // namespace

void lstm_cell_backward(void* dx, void* dh_prev, float* dc_prev, float* gates, void* factors,
                        const void* dh, const float* dc, const float* c, const float* c_prev,
                        const void* w_x, const void* w_h, const CellShape& s, float beta_x,
                        float beta_h, float beta_c, Products products, cudaStream_t stream) {
  check_cell(s, products, 8);
  if (s.N == 0) return;
  with(products, [&](auto kind) {
    using T = typename decltype(kind)::T;
    constexpr bool split = decltype(kind)::split;
    const int hidden = static_cast<int>(s.H);
    T* dz = static_cast<T*>(factors);
    launch("lstm_cell_gradients", cell_gradients<T>, {blocks_for(s.N * s.H, 256), 256, 0, stream},
           dc_prev, gates, dz, static_cast<const T*>(dh), dc, c, c_prev, s.N * s.H, hidden, beta_c);
    const Gradient<T> to_h{static_cast<T*>(dh_prev), static_cast<const T*>(w_h), hidden, beta_h};
    const Gradient<T> to_x{static_cast<T*>(dx), static_cast<const T*>(w_x), static_cast<int>(s.I),
                           beta_x};
    if (s.N <= 8)
      product<T, split, 1, 16, 4>(to_h, to_x, dz, s, stream);
    else if (s.N <= 32)
      product<T, split, 4, 8, 2>(to_h, to_x, dz, s, stream);
    else
      product<T, split, 8, 8, 1>(to_h, to_x, dz, s, stream);
  });
}

}  // namespace pycap::gpu
