// What the compiler calls before each access of code compiled with -fsanitize=thread: in a kernel,
// the access is checked. This library is not linked with ThreadSanitizer, and this file is not
// compiled with it.
#include <cstddef>

#include "memory.h"
#include "state.h"

using pycap::emu::Kind;

namespace {

inline void access(const void* address, size_t bytes, size_t aligned, Kind kind, void* where) {
  if (pycap::emu::current_thread) pycap::emu::check_access(address, bytes, aligned, kind, where);
}

}  // namespace

#define PYCAP_EMU_HOOK __attribute__((visibility("default")))
#define PYCAP_EMU_ACCESSES(bytes)                                       \
  PYCAP_EMU_HOOK void __tsan_read##bytes(void* p) {                     \
    access(p, bytes, bytes, Kind::kRead, __builtin_return_address(0));  \
  }                                                                     \
  PYCAP_EMU_HOOK void __tsan_write##bytes(void* p) {                    \
    access(p, bytes, bytes, Kind::kWrite, __builtin_return_address(0)); \
  }                                                                     \
  PYCAP_EMU_HOOK void __tsan_unaligned_read##bytes(void* p) {           \
    access(p, bytes, 1, Kind::kRead, __builtin_return_address(0));      \
  }                                                                     \
  PYCAP_EMU_HOOK void __tsan_unaligned_write##bytes(void* p) {          \
    access(p, bytes, 1, Kind::kWrite, __builtin_return_address(0));     \
  }

extern "C" {

PYCAP_EMU_ACCESSES(1)
PYCAP_EMU_ACCESSES(2)
PYCAP_EMU_ACCESSES(4)
PYCAP_EMU_ACCESSES(8)
PYCAP_EMU_ACCESSES(16)

PYCAP_EMU_HOOK void __tsan_read_range(void* p, size_t bytes) {
  access(p, bytes, 1, Kind::kRead, __builtin_return_address(0));
}
PYCAP_EMU_HOOK void __tsan_write_range(void* p, size_t bytes) {
  access(p, bytes, 1, Kind::kWrite, __builtin_return_address(0));
}
PYCAP_EMU_HOOK void __tsan_init() {}
PYCAP_EMU_HOOK void __tsan_func_entry(void*) {}
PYCAP_EMU_HOOK void __tsan_func_exit() {}
PYCAP_EMU_HOOK void __tsan_vptr_update(void**, void*) {}
// What guards the initialisation of a static variable of a function.
PYCAP_EMU_HOOK unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
}
