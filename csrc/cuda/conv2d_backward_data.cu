// Convolution's data gradient: the forward's sums over the output's gradient, with filters that
// conv2d_turn_filters has turned; on the way out beta, or the ReLU below and its bias gradient.
#include "conv2d_products.cuh"

namespace pycap::gpu {
namespace conv {
namespace {

// A turned copy costs nothing beside the rounded one that 16 bits need anyway, and with it both
// operands have the summed index contiguous, which is what ldmatrix and TensorFloat-32 want.
constexpr int kTurned = 32, kTurnedRows = 8;

template <class T>
__global__ void __launch_bounds__(kTurned* kTurnedRows)
    turn_filters_kernel(T* turned, const float* w, int c, int k) {
  PYCAP_SHARED(float, tile, [kTurned][kTurned + 1]);
  const int channel = blockIdx.x * kTurned, feature = blockIdx.y * kTurned, tap = blockIdx.z;
  const int x = threadIdx.x, y = threadIdx.y;
  for (int i = y; i < kTurned; i += kTurnedRows)
    if (feature + i < k && channel + x < c)
      tile[i][x] = w[(int64_t{feature + i} * kTaps + tap) * c + channel + x];
  __syncthreads();
  for (int i = y; i < kTurned; i += kTurnedRows)
    if (channel + i < c && feature + x < k)
      turned[(int64_t{channel + i} * kTaps + kTaps - 1 - tap) * k + feature + x] =
          from_float<T>(tile[x][i]);
}

// 16 bytes of T as floats and back.
template <class T>
struct Numbers {
  static constexpr int kCount = 16 / sizeof(T);
  float v[kCount];

  __device__ __forceinline__ static Numbers of(const uint4& raw) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    Numbers made;
#pragma unroll
    for (int e = 0; e < kCount; ++e)
      if constexpr (sizeof(T) == 4)
        made.v[e] = bits<float>(words[e]);
      else
        made.v[e] = to_float(bits<T>(static_cast<uint16_t>(words[e / 2] >> e % 2 * 16)));
    return made;
  }
  __device__ __forceinline__ uint4 raw() const {
    uint32_t words[4];
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if constexpr (sizeof(T) == 4)
        words[e] = bits<uint32_t>(v[e]);
      else
        words[e] = pack<T>(v[2 * e], v[2 * e + 1]);
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

// Here sizes.c are the output's channels, sizes.k the input's.
template <Products products, int columns>
__global__ void __launch_bounds__(kThreads, 2)
    backward_data_kernel(Element<products>* dx, float* partials, const Element<products>* dz,
                         const Element<products>* turned, const Element<products>* below,
                         Sizes sizes, float beta, int stages) {
  using Tile = conv::Tile<products, columns, false>;
  using T = typename Tile::T;
  PYCAP_DYNAMIC_SHARED(shared);
  const int tiles = (sizes.k + columns - 1) / columns;
  const int tile = blockIdx.x / tiles, first = blockIdx.x % tiles * columns;
  float sums[4][8][4];
  window_products<products, Tile>(sums, shared, dz, turned, sizes, tile, first, stages);

  // In float32 through shared memory: with beta, or in the sums, a number is rounded only once.
  const Place<Tile> place;
  const int group = place.lane / 4, pair = place.lane % 4;
  const Staged<float> staged(shared + Tile::kStaged);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower)
        staged.put(16 * i + 8 * lower + group, 8 * j + 2 * pair, sums[i][j][2 * lower],
                   sums[i][j][2 * lower + 1]);
  __syncwarp();

  constexpr int kCount = Numbers<T>::kCount, kLanes = kWarpTile / kCount;  // lanes to a row
  constexpr int kRows = kWarp / kLanes, kBatch = 8;
  const int row = place.lane / kLanes, number = place.lane % kLanes;
  const int64_t pixel = int64_t{tile} * Tile::kPixels + place.down + row;
  const int channel = first + place.across + number * kCount;
  const T* const beside = below != nullptr ? below : beta != 0 ? dx : nullptr;
  float totals[kCount] = {};
#pragma unroll 1
  for (int start = 0; start < kWarpTile; start += kBatch * kRows) {
    const auto there = [&](int i) {
      return pixel + start + i * kRows < sizes.pixels() && channel < sizes.k;
    };
    const int64_t at = (pixel + start) * sizes.k + channel, apart = int64_t{kRows} * sizes.k;
    uint4 others[kBatch];  // all at once: each takes its time, and none would pass a store
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (beside != nullptr && there(i))
        others[i] = *reinterpret_cast<const uint4*>(beside + at + i * apart);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (!there(i)) continue;
      Numbers<T> made;
#pragma unroll
      for (int part = 0; part < kCount / 4; ++part) {
        const float4 four = *reinterpret_cast<const float4*>(
            staged.piece(start + i * kRows + row, number * (kCount / 4) + part));
        made.v[4 * part] = four.x, made.v[4 * part + 1] = four.y;
        made.v[4 * part + 2] = four.z, made.v[4 * part + 3] = four.w;
      }
      if (beside != nullptr) {
        const Numbers<T> other = Numbers<T>::of(others[i]);
#pragma unroll
        for (int e = 0; e < kCount; ++e) {
          if (below == nullptr)
            made.v[e] += beta * other.v[e];
          else if (!(other.v[e] > 0))
            made.v[e] = 0;
          totals[e] += made.v[e];
        }
      }
      *reinterpret_cast<uint4*>(dx + at + i * apart) = made.raw();
    }
  }
  if (below == nullptr) return;

  // The tile's sums over pixels: over a warp's lanes, then over warps below each other.
  float* const of_warps = reinterpret_cast<float*>(shared);  // [kWarpsDown][columns]
  static_assert(Tile::kWarpsDown * columns * sizeof(float) <= Tile::kStaged);
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    for (int apart = kLanes; apart < kWarp; apart *= 2)
      totals[e] += __shfl_xor_sync(kAllLanes, totals[e], apart);
    if (place.lane < kLanes)
      of_warps[place.down / kWarpTile * columns + place.across + number * kCount + e] = totals[e];
  }
  __syncthreads();
  for (int column = threadIdx.x; column < columns && first + column < sizes.k; column += kThreads) {
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < Tile::kWarpsDown; ++warp) total += of_warps[warp * columns + column];
    partials[int64_t{tile} * sizes.k + first + column] = total;
  }
}

}  // namespace
}  // namespace conv

void conv2d_turn_filters(void* turned, const float* w, int c, int k, Products products,
                         cudaStream_t stream) {
  conv::check("conv2d_turn_filters", {0, 1, 1, c, k}, products);
  const dim3 grid(blocks_for(c, conv::kTurned), blocks_for(k, conv::kTurned), conv::kTaps);
  const dim3 block(conv::kTurned, conv::kTurnedRows);
  const auto turn = [&](auto* to) {
    launch("conv2d_turn_filters", conv::turn_filters_kernel<std::remove_pointer_t<decltype(to)>>,
           {grid, block, 0, stream}, to, w, c, k);
  };
  if (products == Products::bfloat16)
    turn(static_cast<bf16*>(turned));
  else if (products == Products::float16)
    turn(static_cast<half*>(turned));
  else
    turn(static_cast<float*>(turned));
}

int conv2d_data_tiles(int n, int h, int w, int c) {
  return static_cast<int>(blocks_for(int64_t{n} * h * w, conv::pixels_for(c)));
}

void conv2d_backward_data(void* dx, float* partials, const void* dz, const void* turned,
                          const void* below, int n, int h, int w, int c, int k, float beta,
                          Products products, cudaStream_t stream) {
  const conv::Sizes sizes{n, h, w, k, c};
  conv::check("conv2d_backward_data", sizes, products);
  if (below != nullptr && (beta != 0 || partials == nullptr))
    throw std::invalid_argument(
        "conv2d_backward_data: with below, beta must be 0 and partials must be there");
  if (n == 0) return;
  conv::dispatch(products, conv::columns_for(c), [&](auto p, auto columns) {
    using Tile = conv::Tile<p, columns, false>;
    using T = typename Tile::T;
    const int stages = conv::stages_for<Tile>();
    const unsigned grid = blocks_for(sizes.pixels(), Tile::kPixels) * blocks_for(c, Tile::kColumns);
    launch("conv2d_backward_data", conv::backward_data_kernel<p, columns>,
           {grid, conv::kThreads, Tile::shared(stages), stream}, static_cast<T*>(dx), partials,
           static_cast<const T*>(dz), static_cast<const T*>(turned), static_cast<const T*>(below),
           sizes, beta, stages);
  });
}

}  // namespace pycap::gpu
