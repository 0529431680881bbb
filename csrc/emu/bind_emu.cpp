// What Python says to the emulation: which memory kernels may touch, what GPU there seems to be, in
// which order things happen.
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bind_cuda.h"
#include "emu/planted.h"

namespace pycap::gpu {

using Spans = std::vector<std::pair<Address, size_t>>;

void bind_emulation(py::module_& m) {
  m.def(
      "track",
      [](const Spans& spans) {
        for (const auto& [address, bytes] : spans) emu::track(at<void>(address), bytes);
      },
      "Kernels may touch these pieces of memory, (address, bytes) each.");
  m.def(
      "untrack",
      [](const Spans& spans) {
        for (const auto& span : spans) emu::untrack(at<void>(span.first));
      },
      "Takes back what `track` said.");
  m.def(
      "set_gpu",
      [](int multiprocessors, int capability, size_t shared_limit) {
        emu::device() = {multiprocessors, capability, shared_limit};
      },
      py::arg("multiprocessors"), py::arg("capability"), py::arg("shared_limit"),
      "What `gpu` says from now on.");
  m.def("set_seed", &emu::set_seed, py::arg("seed"),
        "Of the order in which blocks and threads run, and copies land.");
  m.def("planted_names", &planted_names, "Small kernels that are there with and without a fault.");
  m.def(
      "run_planted",
      [](const std::string& name, bool healthy, Address out, Address in, Address counters) {
        run_planted(name, healthy, at<float>(out), at<const float>(in), at<int>(counters));
      },
      py::arg("name"), py::arg("healthy"), py::arg("out"), py::arg("in"), py::arg("counters"),
      "Runs one on out [256], in [256] and counters [4], zero before.");
}

}  // namespace pycap::gpu
