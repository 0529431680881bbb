// Fibers: functions that run on stacks of their own and hand over to each other.
#pragma once
#include <cstddef>

namespace pycap::emu {

// Where a fiber that does not run goes on.
struct Fiber {
  void* state = nullptr;
};

// Makes a fiber that begins with entry(), which must not return, on the stack [stack, stack +
// bytes).
void make_fiber(Fiber& fiber, void* stack, size_t bytes, void (*entry)());

// Goes on with `to`; returns when another switch comes back to `from`.
void switch_fiber(Fiber& from, Fiber& to);

// Memory for `count` stacks, which is touched only where they are used.
class Stacks {
 public:
  static constexpr size_t kBytes = 64 * 1024;  // each

  explicit Stacks(size_t count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  char* at(size_t i) const { return base_ + i * kBytes; }

 private:
  char* base_;
  size_t bytes_;
};

}  // namespace pycap::emu
