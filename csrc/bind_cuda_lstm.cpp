// Binds the LSTM's sequence on a GPU.
#include "bind_cuda.h"
#include "cuda/lstm.h"

namespace pycap::gpu {
namespace {

// serve(T()) for the type of h and the weights.
template <class Serve>
auto with_type(Products products, const Serve& serve) {
  switch (products) {
    case Products::bfloat16:
      return serve(bf16());
    case Products::float16:
      return serve(half());
    default:
      return serve(float());
  }
}

// serve(LstmCooperative<T>()) or serve(LstmCluster<T>()).
template <class T, class Serve>
auto with_form(int form, const Serve& serve) {
  switch (static_cast<LstmForm>(form)) {
    case LstmForm::kCooperative:
      return serve(LstmCooperative<T>());
    case LstmForm::kCluster:
      return serve(LstmCluster<T>());
  }
  throw std::invalid_argument("lstm: no form " + std::to_string(form));
}

std::string obstacle(int form, bool backward, int products, int hidden) {
  return with_type(gpu::products(products), [&](auto type) {
    return with_form<decltype(type)>(
        form, [&](auto chosen) { return chosen.obstacle(backward, hidden); });
  });
}

size_t workspace(bool backward, int products, int n, int hidden) {
  if (!backward) return lstm_forward_workspace(n);
  return with_type(gpu::products(products),
                   [&](auto type) { return lstm_backward_workspace<decltype(type)>(n, hidden); });
}

void forward(Address h, Address c, Address gates, Address scratch, Address b, Address h0,
             Address c0, Address w_h, Address mask, int steps, int n, int hidden, int form,
             int products, Address stream) {
  const auto how = gpu::products(products);
  with_type(how, [&](auto type) {
    using T = decltype(type);
    const LstmForward<T> with = {at<T>(h),
                                 at<float>(c),
                                 at<float>(gates),
                                 at<float>(b),
                                 at<T>(h0),
                                 at<float>(c0),
                                 at<T>(w_h),
                                 at<uint8_t>(mask),
                                 at<int>(scratch),
                                 steps,
                                 n,
                                 how != Products::tf32};
    with_form<T>(form, [&](auto chosen) { chosen.forward(with, hidden, stream_at(stream)); });
  });
}

void backward(Address gates, Address dh0, Address dc0, Address scratch, Address dh, Address dc_n,
              Address c, Address c0, Address w_h, Address mask, int steps, int n, int hidden,
              float beta_h, float beta_c, int form, int products, Address stream) {
  const auto how = gpu::products(products);
  with_type(how, [&](auto type) {
    using T = decltype(type);
    const LstmBackward<T> with = {at<float>(gates),
                                  at<T>(dh0),
                                  at<float>(dc0),
                                  at<T>(dh),
                                  at<float>(dc_n),
                                  at<float>(c),
                                  at<float>(c0),
                                  at<T>(w_h),
                                  at<uint8_t>(mask),
                                  at<void>(scratch),
                                  steps,
                                  n,
                                  beta_h,
                                  beta_c,
                                  how != Products::tf32};
    with_form<T>(form, [&](auto chosen) { chosen.backward(with, hidden, stream_at(stream)); });
  });
}

}  // namespace

void bind_lstm(py::module_& m) {
  m.def("lstm_obstacle", &obstacle,
        "Why the current GPU cannot run a form of the LSTM's sequence for so many hidden units, or "
        "\"\".");
  m.def("lstm_workspace", &workspace, "Bytes of scratch for n sequences.");
  m.def("lstm_forward", &forward, "As csrc/cuda/lstm.h says.");
  m.def("lstm_backward", &backward, "As csrc/cuda/lstm.h says.");
}

}  // namespace pycap::gpu
