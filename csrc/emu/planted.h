// Small kernels with one fault each, and without it: what the emulation must find.
#pragma once
#include <string>
#include <vector>

namespace pycap::gpu {

// The names of the kernels.
std::vector<std::string> planted_names();

// Launches one on out [256], in [256] (16-byte aligned) and counters [4], which are zero. Healthy,
// out becomes what the kernel's comment says.
void run_planted(const std::string& name, bool healthy, float* out, const float* in, int* counters);

}  // namespace pycap::gpu
