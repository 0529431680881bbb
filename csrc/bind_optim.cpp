// Binds the optimisers' steps over lists of parameters.
#include <cmath>

#include "bind_cpu.h"

namespace pycap {
namespace {

// Lists of equally shaped arrays; an absent state list is None.
std::vector<OptimTensor> tensors(const Args& a, const py::list& params, const py::list& grads,
                                 const py::object& s0, const py::object& s1) {
  const py::list none;
  const py::list first = s0.is_none() ? none : py::list(s0),
                 second = s1.is_none() ? none : py::list(s1);
  if (grads.size() != params.size() || (!s0.is_none() && first.size() != params.size()) ||
      (!s1.is_none() && second.size() != params.size()))
    a.bad_value("the lists differ in length: " + std::to_string(params.size()) + " params, " +
                std::to_string(grads.size()) + " grads");
  std::vector<OptimTensor> out;
  out.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const py::array p = py::cast<py::array>(params[i]);
    const Shape shape(p.shape(), p.shape() + p.ndim());
    const std::string at = "[" + std::to_string(i) + "]";
    out.push_back(
        {a.data<float>(params[i], ("params" + at).c_str(), shape, kOut),
         a.data<float>(grads[i], ("grads" + at).c_str(), shape),
         s0.is_none() ? nullptr
                      : a.data<float>(first[i], ("first states" + at).c_str(), shape, kOut),
         s1.is_none() ? nullptr
                      : a.data<float>(second[i], ("second states" + at).c_str(), shape, kOut),
         static_cast<int64_t>(p.size())});
  }
  return out;
}

void sgd_step(const py::list& params, const py::list& grads, const py::list& momenta, double lr,
              double momentum, double weight_decay, double grad_scale, double clip) {
  const Args a("sgd_step");
  const auto t = tensors(a, params, grads, momenta, py::none());
  const OptimHyper hp{lr, momentum, 0.0, 0.0, weight_decay, grad_scale, clip, 1.0, 1.0};
  Nogil nogil(a);
  k->optim->sgd(t.data(), static_cast<int64_t>(t.size()), hp, thread_count);
}

void rmsprop_step(const py::list& params, const py::list& grads, const py::list& squares, double lr,
                  double alpha, double eps, double weight_decay, double grad_scale, double clip) {
  const Args a("rmsprop_step");
  const auto t = tensors(a, params, grads, squares, py::none());
  const OptimHyper hp{lr, alpha, 0.0, eps, weight_decay, grad_scale, clip, 1.0, 1.0};
  Nogil nogil(a);
  k->optim->rmsprop(t.data(), static_cast<int64_t>(t.size()), hp, thread_count);
}

void adam_step(const py::list& params, const py::list& grads, const py::list& ms,
               const py::list& vs, double lr, double beta1, double beta2, double eps,
               double weight_decay, int64_t step, double grad_scale, double clip) {
  const Args a("adam_step");
  if (step < 1) a.bad_value("step counts from 1, got " + std::to_string(step));
  const auto t = tensors(a, params, grads, ms, vs);
  const double c1 = 1.0 - std::pow(beta1, static_cast<double>(step));
  const double c2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  const OptimHyper hp{lr, beta1, beta2, eps, weight_decay, grad_scale, clip, c1, c2};
  Nogil nogil(a);
  k->optim->adam(t.data(), static_cast<int64_t>(t.size()), hp, thread_count);
}

std::vector<OptimTensor> readable(const Args& a, const py::list& arrays) {
  std::vector<OptimTensor> out;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const py::array x = py::cast<py::array>(arrays[i]);
    const std::string name = "arrays[" + std::to_string(i) + "]";
    const float* g = a.data<float>(x, name.c_str(), Shape(x.shape(), x.shape() + x.ndim()));
    out.push_back({nullptr, g, nullptr, nullptr, static_cast<int64_t>(x.size())});
  }
  return out;
}

size_t sum_squares_workspace(const py::list& arrays) {
  const auto t = readable(Args("sum_squares"), arrays);
  return k->optim->sum_squares_workspace(t.data(), static_cast<int64_t>(t.size()));
}

double sum_squares(const py::list& arrays, Obj ws) {
  const Args a("sum_squares");
  const auto t = readable(a, arrays);
  const auto count = static_cast<int64_t>(t.size());
  void* scratch = a.workspace(ws, k->optim->sum_squares_workspace(t.data(), count));
  Nogil nogil(a);
  return k->optim->sum_squares(t.data(), count, scratch, thread_count);
}

}  // namespace

void bind_optim(py::module_& m) {
  m.def("sgd_step", sgd_step, "params"_a, "grads"_a, "momenta"_a, "lr"_a, "momentum"_a,
        "weight_decay"_a, "grad_scale"_a, "clip"_a);
  m.def("rmsprop_step", rmsprop_step, "params"_a, "grads"_a, "squares"_a, "lr"_a, "alpha"_a,
        "eps"_a, "weight_decay"_a, "grad_scale"_a, "clip"_a);
  m.def("adam_step", adam_step, "params"_a, "grads"_a, "ms"_a, "vs"_a, "lr"_a, "beta1"_a, "beta2"_a,
        "eps"_a, "weight_decay"_a, "step"_a, "grad_scale"_a, "clip"_a);
  m.def("sum_squares_workspace", sum_squares_workspace);
  m.def("sum_squares", sum_squares);
}

}  // namespace pycap
