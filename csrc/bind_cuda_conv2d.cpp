// Binds the convolutions of csrc/cuda/conv2d.h.
#include "bind_cuda.h"
#include "cuda/conv2d.h"

namespace pycap::gpu {
void bind_conv2d(py::module_& m) {
  m.def(
      "conv2d_forward",
      [](Address y, Address x, Address filters, Address b, int n, int h, int w, int c, int k,
         bool relu, int kind, Address stream) {
        conv2d_forward(at<void>(y), at<void>(x), at<void>(filters), at<float>(b), n, h, w, c, k,
                       relu, products(kind), stream_at(stream));
      },
      "csrc/cuda/conv2d.h says what these take.");
  m.def("conv2d_forward_pool", [](Address y, Address argmax, Address x, Address filters, Address b,
                                  int n, int h, int w, int c, int k, int kind, Address stream) {
    conv2d_forward_pool(at<void>(y), at<uint8_t>(argmax), at<void>(x), at<void>(filters),
                        at<float>(b), n, h, w, c, k, products(kind), stream_at(stream));
  });
  m.def("conv2d_turn_filters", [](Address turned, Address w, int c, int k, int kind,
                                  Address stream) {
    conv2d_turn_filters(at<void>(turned), at<float>(w), c, k, products(kind), stream_at(stream));
  });
  m.def("conv2d_data_tiles", &conv2d_data_tiles);
  m.def("conv2d_backward_data", [](Address dx, Address partials, Address dz, Address turned,
                                   Address below, int n, int h, int w, int c, int k, float beta,
                                   int kind, Address stream) {
    conv2d_backward_data(at<void>(dx), at<float>(partials), at<void>(dz), at<void>(turned),
                         at<void>(below), n, h, w, c, k, beta, products(kind), stream_at(stream));
  });
}

}  // namespace pycap::gpu
