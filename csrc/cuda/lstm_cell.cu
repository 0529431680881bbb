// One step of an LSTM forward, in one launch: bound by reading the weights, which few_rows.h does.
#include "few_rows.h"
#include "lstm_cell.h"
#include "lstm_gates.cuh"

namespace pycap::gpu {
namespace {

// A block: warps_m * warps_n * warps_k warps. Each multiplies 16*M rows of the weights (the four
// gates of 4*M units, a unit's side by side) by 8*N of x and h_prev, over its share of the chunks,
// with `depth` chunks on their way.
template <class T_, bool split_, int M_, int N_, int warps_m_, int warps_n_, int warps_k_,
          int depth_>
struct Forward {
  using T = T_;
  static constexpr bool split = split_;
  static constexpr int M = M_, N = N_, warps_m = warps_m_, warps_n = warps_n_, warps_k = warps_k_;
  static constexpr int depth = depth_;
  static constexpr int threads = kWarp * warps_m * warps_n * warps_k;
  static constexpr int units = 4 * M * warps_m, rows = 8 * N * warps_n, stride = 4 * units + 4;
  static constexpr size_t shared = sizeof(float) * warps_k * rows * stride;
};

// kCellTiles, for a type.
template <class T, bool split>
using Tile0 = Forward<T, split, 1, 1, 1, 1, 8, 4>;
template <class T, bool split>
using Tile1 = Forward<T, split, 1, 4, 1, 1, 8, 2>;
template <class T, bool split>
using Tile2 = Forward<T, split, 2, 4, 1, 2, 4, 2>;
template <class T, bool split>
using Tile3 = Forward<T, split, 2, 4, 4, 2, 1, 2>;

template <class F>
constexpr bool is(int tile) {
  return F::units == kCellTiles[tile].units && F::rows == kCellTiles[tile].rows;
}
static_assert(is<Tile0<float, false>>(0) && is<Tile1<float, false>>(1) &&
              is<Tile2<float, false>>(2) && is<Tile3<float, false>>(3) && kCellTileCount == 4);

template <class F>
__global__ void __launch_bounds__(F::threads) cell_forward(typename F::T* h,             // [N, H]
                                                           float* c,                     // [N, H]
                                                           float* gates,                 // [N, 4H]
                                                           const typename F::T* x,       // [N, I]
                                                           const typename F::T* h_prev,  // [N, H]
                                                           const float* c_prev,          // [N, H]
                                                           const typename F::T* w_x,     // [4H, I]
                                                           const typename F::T* w_h,     // [4H, H]
                                                           const float* b,               // [4H]
                                                           int64_t n, int inputs, int hidden) {
  using T = typename F::T;
  PYCAP_DYNAMIC_SHARED(bytes);
  float* partial = reinterpret_cast<float*>(bytes);  // [warps_k][rows][stride]
  const int warp = threadIdx.x / kWarp, group = threadIdx.x % kWarp / 4, pair = threadIdx.x % 4;
  const int warp_k = warp % F::warps_k, warp_n = warp / F::warps_k % F::warps_n;
  const int warp_m = warp / (F::warps_k * F::warps_n);
  const int first_unit = blockIdx.x * F::units;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * F::rows;

  // This lane's rows of both factors: of the inputs first, and of the states from chunk `turn` on.
  // Units and rows that are not there are read as the first ones; their sums go nowhere.
  const T* left[F::M][2];
  const T* right[F::N];
  int length = inputs;
  const auto point = [&](const T* w, const T* rows) {
#pragma unroll
    for (int m = 0; m < F::M; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int unit = first_unit + 4 * (warp_m * F::M + m) + 2 * i + group / 4;
        const int64_t row = static_cast<int64_t>(group % 4) * hidden + (unit < hidden ? unit : 0);
        left[m][i] = w + row * length + kVector<T> * pair;
      }
#pragma unroll
    for (int j = 0; j < F::N; ++j) {
      const int64_t row = first_row + 8 * (warp_n * F::N + j) + group;
      right[j] = rows + (row < n ? row : 0) * length + kVector<T> * pair;
    }
  };
  const int turn = (inputs + kChunk<T> - 1) / kChunk<T>;
  const int chunks = turn + (hidden + kChunk<T> - 1) / kChunk<T>;
  int chunk = warp_k;  // the next to be loaded
  bool on_inputs = true;
  point(w_x, x);

  uint4 a[F::depth][F::M][2], to[F::depth][F::N];
  const auto load = [&](int stage) {
    if (on_inputs && chunk >= turn) {
      on_inputs = false;
      length = hidden;
      point(w_h, h_prev);
    }
    const int k = (on_inputs ? chunk : chunk - turn) * kChunk<T>;
    const bool inside = k + kVector<T> * pair < length;
#pragma unroll
    for (int m = 0; m < F::M; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        a[stage][m][i] = inside ? load_16(left[m][i] + k) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < F::N; ++j)
      to[stage][j] = inside ? load_16(right[j] + k) : make_uint4(0, 0, 0, 0);
    chunk += F::warps_k;
  };
#pragma unroll
  for (int stage = 0; stage < F::depth; ++stage) load(stage);
  float sums[F::M][F::N][4] = {};
  for (int done = warp_k; done < chunks; done += F::depth * F::warps_k) {
#pragma unroll
    for (int stage = 0; stage < F::depth; ++stage) {
      multiply<T, F::split>(sums, a[stage], to[stage]);
      load(stage);
    }
  }
  put_sums(partial + (warp_k * F::rows + 8 * F::N * warp_n) * F::stride + 16 * F::M * warp_m,
           F::stride, sums);
  __syncthreads();

  for (int i = threadIdx.x; i < F::rows * F::units; i += F::threads) {
    const int unit = first_unit + i % F::units;
    const int64_t row = first_row + i / F::units;
    if (unit >= hidden || row >= n) continue;
    const float* bias = b + unit;
    Gates z = {bias[0], bias[hidden], bias[2 * static_cast<int64_t>(hidden)],
               bias[3 * static_cast<int64_t>(hidden)]};
#pragma unroll
    for (int k = 0; k < F::warps_k; ++k) {
      const float4 sum = *reinterpret_cast<const float4*>(
          partial + (k * F::rows + i / F::units) * F::stride + 4 * (i % F::units));
      z.i += sum.x;
      z.f += sum.y;
      z.g += sum.z;
      z.o += sum.w;
    }
    const Cell state = lstm_cell(z, c_prev[row * hidden + unit]);
    c[row * hidden + unit] = state.c;
    h[row * hidden + unit] = from_float<T>(state.h);
    float* gate = gates + row * 4 * hidden + unit;
    gate[0] = z.i;
    gate[hidden] = z.f;
    gate[2 * static_cast<int64_t>(hidden)] = z.g;
    gate[3 * static_cast<int64_t>(hidden)] = z.o;
  }
}

template <class F>
void forward(void* h, float* c, float* gates, const void* x, const void* h_prev,
             const float* c_prev, const void* w_x, const void* w_h, const float* b,
             const CellShape& s, cudaStream_t stream) {
  using T = typename F::T;
  const Launch how{
      {blocks_for(s.H, F::units), blocks_for(s.N, F::rows)}, F::threads, F::shared, stream};
  launch("lstm_cell_forward", cell_forward<F>, how, static_cast<T*>(h), c, gates,
         static_cast<const T*>(x), static_cast<const T*>(h_prev), c_prev,
         static_cast<const T*>(w_x), static_cast<const T*>(w_h), b, s.N, static_cast<int>(s.I),
         static_cast<int>(s.H));
}

}  // namespace

int lstm_cell_tile(const CellShape& s) {
  const int64_t processors = multiprocessors();
  int best = 0;
  int64_t least = INT64_MAX;
  for (int i = 0; i < kCellTileCount; ++i) {
    const CellTile& tile = kCellTiles[i];
    const int64_t blocks = int64_t{blocks_for(s.H, tile.units)} * blocks_for(s.N, tile.rows);
    const int64_t read = (blocks + processors - 1) / processors * (4 * tile.units + tile.rows);
    if (read < least) best = i, least = read;
  }
  return best;
}

void lstm_cell_forward(void* h, float* c, float* gates, const void* x, const void* h_prev,
                       const float* c_prev, const void* w_x, const void* w_h, const float* b,
                       const CellShape& s, Products products, int tile, cudaStream_t stream) {
  if (tile >= kCellTileCount)
    throw std::invalid_argument("lstm_cell: there is no tile " + std::to_string(tile) + ", but " +
                                std::to_string(kCellTileCount));
  if (tile < 0) tile = lstm_cell_tile(s);
  check_cell(s, products, kCellTiles[tile].rows);
  if (s.N == 0) return;
  with(products, [&](auto kind) {
    using T = typename decltype(kind)::T;
    constexpr bool split = decltype(kind)::split;
    const auto run = [&](auto form) {
      forward<decltype(form)>(h, c, gates, x, h_prev, c_prev, w_x, w_h, b, s, stream);
    };
    switch (tile) {
      case 0:
        return run(Tile0<T, split>{});
      case 1:
        return run(Tile1<T, split>{});
      case 2:
        return run(Tile2<T, split>{});
      default:
        return run(Tile3<T, split>{});
    }
  });
}

}  // namespace pycap::gpu
