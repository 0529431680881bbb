// One step of an LSTM on a GPU, for decoding: the contract of lstm_cell.cu (docs/math/lstm.md,
// "CUDA: one step"). T is the type of x, h, their gradients and the weights as they are multiplied.
#pragma once
#include <stdexcept>
#include <string>

#include "launch.h"
#include "products.h"

namespace pycap::gpu {

// What the kernels serve: I and H are multiples of 16 bytes of T, and those arrays which are said
// to be aligned lie at multiples of 16 bytes. N may be 0.
struct CellShape {
  int64_t N, I, H;
};

// Throws std::invalid_argument for what they do not serve. rows: that a block takes.
inline void check_cell(const CellShape& s, Products products, int rows) {
  const int64_t multiple = products == Products::tf32x3 || products == Products::tf32 ? 4 : 8;
  const auto sizes = "N = " + std::to_string(s.N) + ", I = " + std::to_string(s.I) +
                     ", H = " + std::to_string(s.H);
  if (s.I % multiple || s.H % multiple)
    throw std::invalid_argument("lstm_cell: " + sizes + ": I and H must be multiples of " +
                                std::to_string(multiple));
  const int64_t most = int64_t{65535} * rows,
                widest = 1 << 28;  // blocks in a grid's y; int's range
  if (s.N > most || s.I > widest || s.H > widest)
    throw std::invalid_argument("lstm_cell: " + sizes + " are more than N = " +
                                std::to_string(most) + ", I = H = " + std::to_string(widest));
}

// A block's part of the forward: so many hidden units of so many rows.
struct CellTile {
  int units, rows;
};
constexpr CellTile kCellTiles[] = {{4, 8}, {4, 32}, {8, 64}, {32, 64}};
constexpr int kCellTileCount = sizeof(kCellTiles) / sizeof(kCellTiles[0]);

// The tile, by its number, whose busiest multiprocessor is predicted to read least.
int lstm_cell_tile(const CellShape& shape);

// i,f,o = sigmoid, g = tanh of x w_x^T + h_prev w_h^T + b; c = f*c_prev + i*g; h = o*tanh(c).
// h T [N,H] out, c float [N,H] out, gates float [N,4H] out: activated i,f,g,o. x T [N,I], h_prev T
// [N,H], w_x T [4H,I], w_h T [4H,H]: aligned. c_prev float [N,H], b float [4H]. c may be c_prev; no
// other output may alias an input. tile: a number of kCellTiles, or -1 for lstm_cell_tile's.
void lstm_cell_forward(void* h, float* c, float* gates, const void* x, const void* h_prev,
                       const float* c_prev, const void* w_x, const void* w_h, const float* b,
                       const CellShape& shape, Products products, int tile, cudaStream_t stream);

// The gradients of the pre-activations, dz, and of what they came from but for the parameters:
// dc_prev = beta_c*dc_prev + ..., dh_prev = beta_h*dh_prev + dz w_h, dx = beta_x*dx + dz w_x; with
// beta 0 the old contents are not read. dx T [N,I], dh_prev T [N,H], dc_prev float [N,H]: out, or
// null: not wanted. gates float [N,4H] in: activated; out: dz. factors T [N,4H] scratch, aligned:
// dz as it is multiplied; where T is float it may be gates. dh T [N,H], dc float [N,H], or null:
// zero. c, c_prev float [N,H]. w_x T [4H,I], w_h T [4H,H]: aligned.
void lstm_cell_backward(void* dx, void* dh_prev, float* dc_prev, float* gates, void* factors,
                        const void* dh, const float* dc, const float* c, const float* c_prev,
                        const void* w_x, const void* w_h, const CellShape& shape, float beta_x,
                        float beta_h, float beta_c, Products products, cudaStream_t stream);

}  // namespace pycap::gpu
