// Binds the first convolution of a network, from images of bytes.
#include "bind_cuda.h"
#include "cuda/conv2d_first.h"

namespace pycap::gpu {
namespace {

Bytes images(Address x, Address crops, Address scale, Address shift) {
  return {at<uint8_t>(x), at<int>(crops), at<float>(scale), at<float>(shift)};
}

void forward(Address y, Address x, Address crops, Address scale, Address shift, Address w,
             Address b, int of, int n, int h, int width, int k, int p, int q, bool relu,
             Address stream) {
  conv2d_first_forward(at<void>(y), images(x, crops, scale, shift), at<float>(w), at<float>(b),
                       products(of), {n, h, width, k, p, q}, relu, stream_at(stream));
}

int splits(int of, int n, int h, int width, int k, int p, int q) {
  return conv2d_first_splits(products(of), {n, h, width, k, p, q});
}

void weight(Address dw, Address db, Address partials, Address partials_b, Address dy, Address y,
            Address x, Address crops, Address scale, Address shift, int of, int n, int h, int width,
            int k, int p, int q, int splits, float beta_w, float beta_b, Address stream) {
  conv2d_first_weight(at<float>(dw), at<float>(db), at<float>(partials), at<float>(partials_b),
                      at<void>(dy), at<void>(y), images(x, crops, scale, shift), products(of),
                      {n, h, width, k, p, q}, splits, beta_w, beta_b, stream_at(stream));
}

}  // namespace

void bind_conv2d_first(py::module_& m) {
  m.def("conv2d_first_forward", &forward);
  m.def("conv2d_first_splits", &splits);
  m.def("conv2d_first_weight", &weight);
}

}  // namespace pycap::gpu
