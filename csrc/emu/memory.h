// Checks of a kernel's accesses to memory.
#pragma once
#include <cstddef>

namespace pycap::emu {

// kRead, kWrite: plain accesses. kAtomic: may meet others of its kind. kLaunch, kLand: an
// asynchronous copy to shared memory begins, ends.
enum class Kind { kRead, kWrite, kAtomic, kLaunch, kLand };

// The running thread accesses [address, address + bytes). aligned: to what address must be a
// multiple of. where: an address in its code. Ends the launch with a report where that is not
// allowed.
void check_access(const void* address, size_t bytes, size_t aligned, Kind kind, void* where);

}  // namespace pycap::emu
