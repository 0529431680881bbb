// The loops over the steps of an LSTM, forward and backward, of one block. A block holds the
// weights of kUnits hidden units and computes these for tiles of sequences; its `Exchange` brings
// the other blocks' units of the step before. The exchange is numbered: generation g is what the
// products of the (g+1)-th step of the loop take.
//
// An Exchange has
//   first, last, stride       the tiles of sequences that this block takes in turn
//   unit                      its first hidden unit
//   send(slot, g, tile, row, column, value)   one number of generation g; slot: its global address
//   publish(g, tile, rows)    after a barrier: what the block sent is complete for these rows
//   wait(g, tile)             until all blocks have published
//   load(from, g, tile, row, k)               16 bytes; from: the global address of the tile's row
//   0
// and kThroughMemory, whether `send` stores to `slot`.
#pragma once
#include "lstm_gates.cuh"
#include "lstm_product.cuh"
#include "lstm_workspace.h"

namespace pycap::gpu {

// How a block works on one size. kUnits: hidden units a block. kTiles: tiles of eight sequences
// that are multiplied at once.
template <class T, int kHiddenUnits, int kUnitsABlock, int kWarpsABlock, int kTiles>
struct LstmShape {
  static constexpr int kHidden = kHiddenUnits, kUnits = kUnitsABlock;
  static constexpr int kThreads = kWarp * kWarpsABlock, kBlocks = kHidden / kUnits;
  static constexpr int kRows = 8 * kTiles;                                   // sequences of a tile
  static constexpr int kItems = (kRows * kUnits + kThreads - 1) / kThreads;  // cells of a thread
  using Forward = Product<T, true, 4 * kUnits, kHidden, kWarpsABlock, kTiles>;
  using Backward = Product<T, false, kUnits, 4 * kHidden, kWarpsABlock, kTiles>;
};

// serve(std::integral_constant<int, hidden>()), which gives a reason or "", where there are kernels
// for so many hidden units; else that there are none.
template <class Serve>
std::string with_hidden(int hidden, const Serve& serve) {
  switch (hidden) {
    case 64:
      return serve(std::integral_constant<int, 64>());
    case 256:
      return serve(std::integral_constant<int, 256>());
    case 512:
      return serve(std::integral_constant<int, 512>());
    case 1024:
      return serve(std::integral_constant<int, 1024>());
    default:
      return "there are kernels for 64, 256, 512 and 1024 hidden units, not for " +
             std::to_string(hidden);
  }
}

// The cell that is a thread's item of a tile.
template <class Shape>
struct LstmItem {
  int row, unit;  // within the tile and the block
  bool inside;

  __device__ __forceinline__ LstmItem(int item, int rows) {
    const int number = static_cast<int>(threadIdx.x) + item * Shape::kThreads;
    row = number / Shape::kUnits, unit = number % Shape::kUnits;
    inside = row < rows;
  }
};

__device__ __forceinline__ Gates load_gates(const float* gates, int hidden) {
  return {gates[0], gates[hidden], gates[2 * hidden], gates[3 * hidden]};
}

__device__ __forceinline__ void store_gates(float* gates, int hidden, const Gates& z) {
  gates[0] = z.i, gates[hidden] = z.f, gates[2 * hidden] = z.g, gates[3 * hidden] = z.o;
}

// *to = beta * *to + value, rounded once; with beta 0 the old contents are not read.
template <class T>
__device__ __forceinline__ void accumulate(T* to, float value, float beta) {
  *to = from_float<T>(beta != 0.0f ? value + beta * to_float(*to) : value);
}

template <class T, class Shape, class Exchange>
__device__ __forceinline__ void lstm_forward_steps(const LstmForward<T>& with, Exchange& exchange,
                                                   float* partial) {
  using Weights = typename Shape::Forward;
  constexpr int kHidden = Shape::kHidden, kRows = Shape::kRows, kItems = Shape::kItems;
  Weights weights;
  weights.load_gates(with.w_h, kHidden, exchange.unit);
  static_assert(Shape::kThreads % Shape::kUnits == 0);  // all items of a thread are of one unit
  const Gates bias =
      load_gates(with.b + exchange.unit + static_cast<int>(threadIdx.x) % Shape::kUnits, kHidden);
  for (int step = 0; step < with.steps; ++step) {
    const bool multiplies = step > 0 || with.h0;
    for (int tile = exchange.first; tile < exchange.last; tile += exchange.stride) {
      const int rows = min(kRows, with.n - tile * kRows);
      const int64_t first = static_cast<int64_t>(tile) * kRows;
      const int64_t now = static_cast<int64_t>(step) * with.n + first;
      const T* h_before = with.h0 ? with.h0 + first * kHidden : nullptr;
      const float* c_before = with.c0 ? with.c0 + first * kHidden : nullptr;
      if (step > 0) {
        h_before = with.h + (now - with.n) * kHidden;
        c_before = with.c + (now - with.n) * kHidden;
      }

      // Read ahead of the wait: what no other block writes.
      Gates z[kItems];
      float state[kItems], kept[kItems];
      bool runs[kItems];
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const LstmItem<Shape> cell(item, rows);
        z[item] = {}, state[item] = kept[item] = 0.0f, runs[item] = true;
        if (!cell.inside) continue;
        const int64_t at = static_cast<int64_t>(cell.row) * kHidden + exchange.unit + cell.unit;
        z[item] = load_gates(
            with.gates + (now + cell.row) * (4 * kHidden) + exchange.unit + cell.unit, kHidden);
        if (c_before) state[item] = c_before[at];
        if (with.mask) {
          runs[item] = with.mask[now + cell.row] != 0;
          if (h_before) kept[item] = to_float(h_before[at]);
        }
      }

      if (multiplies) {
        if (step > 0) exchange.wait(step, tile);
        weights.multiply(
            partial,
            [&](int row, int k) {  // rows past the end read the last one again
              return exchange.load(h_before, step, tile, min(row, rows - 1), k);
            },
            with.exact);
      }
      __syncthreads();
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const LstmItem<Shape> cell(item, rows);
        if (!cell.inside) continue;
        float sum[4] = {};
        if (multiplies) Weights::total(sum, partial, cell.row, 4 * cell.unit);
        z[item] = {z[item].i + bias.i + sum[0], z[item].f + bias.f + sum[1],
                   z[item].g + bias.g + sum[2], z[item].o + bias.o + sum[3]};
        Cell made = lstm_cell(z[item], state[item]);
        if (!runs[item]) z[item] = {}, made = {kept[item], state[item]};  // x may be anything there
        state[item] = made.c;
        const T h = from_float<T>(made.h);
        const int unit = exchange.unit + cell.unit;
        T* slot = with.h + (now + cell.row) * kHidden + unit;
        exchange.send(slot, step + 1, tile, cell.row, unit, h);
        if constexpr (!Exchange::kThroughMemory) *slot = h;
      }
      __syncthreads();  // what was sent is complete, and the partial sums are read
      if (step + 1 < with.steps) exchange.publish(step + 1, tile, rows);
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const LstmItem<Shape> cell(item, rows);
        if (!cell.inside) continue;
        const int unit = exchange.unit + cell.unit;
        with.c[(now + cell.row) * kHidden + unit] = state[item];
        store_gates(with.gates + (now + cell.row) * (4 * kHidden) + unit, kHidden, z[item]);
      }
    }
  }
}

template <class T, class Shape, class Exchange>
__device__ __forceinline__ void lstm_backward_steps(const LstmBackward<T>& with,
                                                    const LstmBackwardScratch<T>& scratch,
                                                    Exchange& exchange, float* partial) {
  using Weights = typename Shape::Backward;
  constexpr int kHidden = Shape::kHidden, kRows = Shape::kRows, kItems = Shape::kItems;
  constexpr int kGates = 4 * kHidden;
  constexpr bool kSentAsGates = std::is_same_v<T, float>;
  // Where the gradients of the gates of a step are sent, from the tile's first row on.
  const auto slots = [&](int step, int64_t first) {
    if constexpr (kSentAsGates)
      return with.gates + (static_cast<int64_t>(step) * with.n + first) * kGates;
    else
      return scratch.sent + (static_cast<int64_t>(step % 2) * with.n + first) * kGates;
  };
  Weights weights;
  weights.load_units(with.w_h, kHidden, exchange.unit);
  const int generations = with.steps + (with.dh0 ? 1 : 0);
  for (int done = 0; done < generations; ++done) {
    const int step = with.steps - 1 - done;  // -1: only the product that gives dh0
    for (int tile = exchange.first; tile < exchange.last; tile += exchange.stride) {
      const int rows = min(kRows, with.n - tile * kRows);
      const int64_t first = static_cast<int64_t>(tile) * kRows;
      const int64_t now = static_cast<int64_t>(step) * with.n + first;
      const float* c_before = with.c0 ? with.c0 + first * kHidden : nullptr;
      if (step > 0) c_before = with.c + (now - with.n) * kHidden;
      const float* into_c_from = done > 0 ? scratch.into_c : with.dc_n;

      // Read ahead of the wait: what no other block writes.
      Gates a[kItems];
      float state[kItems], before[kItems], into_c[kItems], into_h[kItems];
      bool runs[kItems];
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const LstmItem<Shape> cell(item, rows);
        a[item] = {}, state[item] = before[item] = into_c[item] = into_h[item] = 0.0f;
        runs[item] = true;
        if (!cell.inside) continue;
        const int unit = exchange.unit + cell.unit;
        const int64_t at = static_cast<int64_t>(cell.row) * kHidden + unit;
        if (with.mask && done > 0) into_h[item] = scratch.past[first * kHidden + at];
        if (step < 0) continue;
        a[item] = load_gates(with.gates + (now + cell.row) * kGates + unit, kHidden);
        state[item] = with.c[now * kHidden + at];
        if (c_before) before[item] = c_before[at];
        if (into_c_from) into_c[item] = into_c_from[first * kHidden + at];
        if (with.dh) into_h[item] += to_float(with.dh[now * kHidden + at]);
        if (with.mask) runs[item] = with.mask[now + cell.row] != 0;
      }

      if (done > 0) {
        exchange.wait(done, tile);
        const T* from = slots(step + 1, first);
        weights.multiply(
            partial,
            [&](int row, int k) { return exchange.load(from, done, tile, min(row, rows - 1), k); },
            with.exact);
      }
      __syncthreads();
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const LstmItem<Shape> cell(item, rows);
        if (!cell.inside) continue;
        const int unit = exchange.unit + cell.unit;
        float sum[1] = {};
        if (done > 0) Weights::total(sum, partial, cell.row, cell.unit);
        into_h[item] += sum[0];
        if (step < 0) {
          accumulate(with.dh0 + (first + cell.row) * kHidden + unit, into_h[item], with.beta_h);
          continue;
        }
        float dc = into_c[item];
        a[item] = lstm_cell_gradients(a[item], state[item], before[item], into_h[item], dc);
        if (runs[item])
          into_c[item] = dc, into_h[item] = 0.0f;
        else
          a[item] = {};
        T* slot = slots(step, first) + static_cast<int64_t>(cell.row) * kGates + unit;
        const float values[4] = {a[item].i, a[item].f, a[item].g, a[item].o};
#pragma unroll
        for (int gate = 0; gate < 4; ++gate)
          exchange.send(slot + gate * kHidden, done + 1, tile, cell.row, gate * kHidden + unit,
                        from_float<T>(values[gate]));
      }
      __syncthreads();  // what was sent is complete, and the partial sums are read
      if (done + 1 < generations) exchange.publish(done + 1, tile, rows);
      if (step < 0) continue;
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const LstmItem<Shape> cell(item, rows);
        if (!cell.inside) continue;
        const int unit = exchange.unit + cell.unit;
        const int64_t at = (first + cell.row) * kHidden + unit;
        if constexpr (!(kSentAsGates && Exchange::kThroughMemory))
          store_gates(with.gates + (now + cell.row) * kGates + unit, kHidden, a[item]);
        if (step > 0)
          scratch.into_c[at] = into_c[item];
        else if (with.dc0)
          accumulate(with.dc0 + at, into_c[item], with.beta_c);
        if (with.mask) scratch.past[at] = into_h[item];
      }
    }
  }
}

}  // namespace pycap::gpu
