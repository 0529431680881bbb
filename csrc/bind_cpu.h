// What the files that bind pycap._cpu share: the kernels in use, and each group's entry.
#pragma once
#include <atomic>

#include "bind_check.h"
#include "pycap/kernels.h"

namespace pycap {

using Obj = py::handle;
using py::literals::operator""_a;
using Nogil = Released;

extern const Kernels* k;  // one instruction set's table, chosen when the module loads
extern std::atomic<int> thread_count;

void bind_elementwise(py::module_& m);
void bind_optim(py::module_& m);
void bind_resize(py::module_& m);

}  // namespace pycap
