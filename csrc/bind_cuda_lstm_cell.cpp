// Binds one step of the LSTM on a GPU.
#include "bind_cuda.h"
#include "cuda/lstm_cell.h"

namespace pycap::gpu {
namespace {

void forward(Address h, Address c, Address gates, Address x, Address h_prev, Address c_prev,
             Address w_x, Address w_h, Address b, int64_t n, int64_t i, int64_t hidden,
             int multiplied, int tile, Address stream) {
  lstm_cell_forward(at<void>(h), at<float>(c), at<float>(gates), at<void>(x), at<void>(h_prev),
                    at<float>(c_prev), at<void>(w_x), at<void>(w_h), at<float>(b), {n, i, hidden},
                    products(multiplied), tile, stream_at(stream));
}

void backward(Address dx, Address dh_prev, Address dc_prev, Address gates, Address factors,
              Address dh, Address dc, Address c, Address c_prev, Address w_x, Address w_h,
              int64_t n, int64_t i, int64_t hidden, float beta_x, float beta_h, float beta_c,
              int multiplied, Address stream) {
  lstm_cell_backward(at<void>(dx), at<void>(dh_prev), at<float>(dc_prev), at<float>(gates),
                     at<void>(factors), at<void>(dh), at<float>(dc), at<float>(c),
                     at<float>(c_prev), at<void>(w_x), at<void>(w_h), {n, i, hidden}, beta_x,
                     beta_h, beta_c, products(multiplied), stream_at(stream));
}

}  // namespace

void bind_lstm_cell(py::module_& m) {
  m.def("lstm_cell_forward", &forward, "As csrc/cuda/lstm_cell.h says.");
  m.def("lstm_cell_backward", &backward, "As csrc/cuda/lstm_cell.h says.");
  m.def(
      "lstm_cell_tile",
      [](int64_t n, int64_t i, int64_t hidden) { return lstm_cell_tile({n, i, hidden}); },
      "The tile that the forward takes for tile -1.");
  py::list tiles;
  for (const CellTile& tile : kCellTiles) tiles.append(py::make_tuple(tile.units, tile.rows));
  m.attr("LSTM_CELL_TILES") = py::tuple(tiles);
}

}  // namespace pycap::gpu
