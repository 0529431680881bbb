// Chooses the table of bfloat16 kernels by the CPU at hand, or by name.
#include <cstdio>
#include <cstring>

#if defined(PYCAP_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "pycap/kernels_bf16.h"

namespace pycap {

#ifdef PYCAP_X86
namespace v4_amx {
extern const Bf16Kernels bf16_table;
}
namespace v4_bf16 {
extern const Bf16Kernels bf16_table;
}
namespace v4 {
extern const Bf16Kernels bf16_table;
}
namespace v3 {
extern const Bf16Kernels bf16_table;
}
namespace v1 {
extern const Bf16Kernels bf16_table;
}

namespace {

// The feature bits come from CPUID leaf 7: __builtin_cpu_supports of older compilers lacks them.
bool leaf7(int subleaf, int bit_of_eax, int bit_of_edx) {
  unsigned a = 7, b, c = static_cast<unsigned>(subleaf), d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (bit_of_eax < 0 || a >> bit_of_eax & 1) && (bit_of_edx < 0 || d >> bit_of_edx & 1);
}

bool runs_bf16() { return leaf7(1, 5, -1); }

// Tiles must be there, and the operating system must grant their 8 KiB of state to this process.
bool runs_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return runs_bf16() && leaf7(0, -1, 22) && leaf7(0, -1, 24) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const Bf16Kernels* emulated(const char* isa) {
  return std::strcmp(isa, "v4") == 0   ? &v4::bf16_table
         : std::strcmp(isa, "v3") == 0 ? &v3::bf16_table
                                       : &v1::bf16_table;
}

}  // namespace

#else
namespace native {
extern const Bf16Kernels bf16_table;
}

namespace {

bool runs_bf16() { return false; }
bool runs_amx() { return false; }
const Bf16Kernels* emulated(const char*) { return &native::bf16_table; }

}  // namespace
#endif

const Bf16Kernels* select_bf16_kernels(const char* isa, const char* wish, const char** error) {
  static char message[256];
  const bool any = !wish || !*wish;
  const bool wide = std::strcmp(isa, "v4") == 0;  // the others were asked for to do without
#ifdef PYCAP_X86
  if (wide && (any || std::strcmp(wish, "amx") == 0) && runs_amx()) return &v4_amx::bf16_table;
  if (wide && (any || std::strcmp(wish, "avx512-bf16") == 0) && runs_bf16())
    return &v4_bf16::bf16_table;
#endif
  if (any || std::strcmp(wish, "emulated") == 0) return emulated(isa);
  const bool known = std::strcmp(wish, "amx") == 0 || std::strcmp(wish, "avx512-bf16") == 0;
  std::snprintf(
      message, sizeof message,
      known ? "PYCAP_BF16=%.40s: this CPU, or PYCAP_ISA=%s, lacks its instructions; unset it"
            : "PYCAP_BF16=%.40s is unknown; choose amx, avx512-bf16 or emulated (PYCAP_ISA is %s)",
      wish, isa);
  *error = message;
  return nullptr;
}

}  // namespace pycap
