// Chooses the bfloat16 kernels by the CPU at hand, or by name.
#include <cstdio>
#include <cstring>

#if defined(PYCAP_AMX) && !defined(PYCAP_EMULATE)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "pycap/kernels_bf16.h"

namespace pycap {

#if defined(PYCAP_AMX)
namespace v4_amx {
extern const Bf16Kernels bf16_table;
}
#endif

namespace {

#if defined(PYCAP_EMULATE)

const Bf16Kernels* tile_kernels() { return &v4_amx::bf16_table; }

#elif defined(PYCAP_AMX)

// One bit of CPUID leaf 7: __builtin_cpu_supports of older compilers does not know these features.
bool leaf7(unsigned subleaf, bool of_eax, int bit) {
  unsigned a = 7, b, c = subleaf, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (of_eax ? a : d) >> bit & 1;
}

// The CPU must have tiles and AVX512-BF16, and the operating system must grant the tiles' 8 KiB of
// state to this process.
const Bf16Kernels* tile_kernels() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  const bool amx_bf16 = leaf7(0, false, 22), amx_tile = leaf7(0, false, 24);
  if (!amx_bf16 || !amx_tile || !leaf7(1, true, 5)) return nullptr;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? &v4_amx::bf16_table
                                                                     : nullptr;
}

#else

const Bf16Kernels* tile_kernels() { return nullptr; }

#endif

}  // namespace

bool select_bf16_kernels(const char* isa, const char* wish, const Bf16Kernels** kernels,
                         const char** error) {
  static char message[256];
  *kernels = nullptr;
  const bool any = !wish || !*wish;
  if (!any && std::strcmp(wish, "float32") == 0) return true;
  if (!any && std::strcmp(wish, "amx") != 0) {
    std::snprintf(message, sizeof message,
                  "PYCAP_BF16=%.40s is unknown; choose one of: amx float32", wish);
    *error = message;
    return false;
  }
  if (std::strcmp(isa, "v4") == 0) *kernels = tile_kernels();
  if (any || *kernels) return true;
  std::snprintf(message, sizeof message,
                "PYCAP_BF16=amx: this CPU, its operating system or PYCAP_ISA=%s lacks its "
                "instructions; unset PYCAP_BF16",
                isa);
  *error = message;
  return false;
}

}  // namespace pycap
