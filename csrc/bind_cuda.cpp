// The module pycap._cuda, or pycap._cuda_emu where PYCAP_EMU is defined: what the GPU is, and each
// operation's kernels.
#include "bind_cuda.h"

namespace pycap::gpu {
namespace {

// {multiprocessors, compute capability times ten, bytes of shared memory that a block may have}.
py::tuple gpu() { return py::make_tuple(multiprocessors(), capability(), shared_limit()); }

}  // namespace

// CMake lists the operations: PYCAP_BIND(OP) for each csrc/bind_cuda_OP.cpp.
#define PYCAP_BIND(op) void bind_##op(py::module_& m);
#include "bindings.inc"
#undef PYCAP_BIND

PYBIND11_MODULE(PYCAP_MODULE, m) {
  m.def("gpu", &gpu,
        "(multiprocessors, compute capability times ten, bytes of shared memory that a block may "
        "have) of the current "
        "GPU; RuntimeError where there is none, or no driver");
#ifdef PYCAP_EMU
  bind_emulation(m);
#else
  m.attr("architectures") = PYCAP_ARCHITECTURES;  // of machine code (sm_) and PTX (compute_)
  m.attr("runtime") = CUDART_VERSION;
#endif
#define PYCAP_BIND(op) bind_##op(m);
#include "bindings.inc"
#undef PYCAP_BIND
}

}  // namespace pycap::gpu
