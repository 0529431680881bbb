// Chooses the table of kernels by the CPU at hand, or by name.
#include <cstdio>
#include <cstring>

#include "pycap/kernels.h"

#ifdef PYCAP_X86
#include <cpuid.h>
#endif

namespace pycap {

#ifdef PYCAP_X86
namespace v4 {
extern const Kernels table;
}
namespace v3 {
extern const Kernels table;
}
namespace v1 {
extern const Kernels table;
}

namespace {

// By hand: clang's __builtin_cpu_supports did not know it before version 15.
bool runs_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool runs_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && runs_f16c();
}

bool runs_v4() {
#if defined(PYCAP_EMULATE)
  return runs_v3();
#endif
  return runs_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

struct Choice {
  const char* name;
  bool (*runs)();
  const Kernels* table;
};

const Choice kChoices[] = {{"v4", runs_v4, &v4::table},
                           {"v3", runs_v3, &v3::table},
                           {"v1", [] { return true; }, &v1::table}};

}  // namespace
#else
namespace native {
extern const Kernels table;
}

namespace {

struct Choice {
  const char* name;
  bool (*runs)();
  const Kernels* table;
};

const Choice kChoices[] = {{"native", [] { return true; }, &native::table}};

}  // namespace
#endif

const Kernels* select_kernels(const char* wish, const char** error) {
  static char message[256];
  if (!wish || !*wish) {
    for (const Choice& c : kChoices)
      if (c.runs()) return c.table;
  }
  for (const Choice& c : kChoices) {
    if (std::strcmp(wish, c.name) != 0) continue;
    if (c.runs()) return c.table;
    std::snprintf(message, sizeof message,
                  "PYCAP_ISA=%s: this CPU lacks its instructions; unset PYCAP_ISA", c.name);
    *error = message;
    return nullptr;
  }
  int at =
      std::snprintf(message, sizeof message, "PYCAP_ISA=%.40s is unknown; choose one of:", wish);
  for (const Choice& c : kChoices)
    at += std::snprintf(message + at, sizeof message - at, " %s", c.name);
  *error = message;
  return nullptr;
}

}  // namespace pycap
