#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace pycap::emu {

#ifdef __x86_64__

// The callee-saved registers go on the stack, so that a fiber's state is its stack pointer. Not
// swapcontext, which makes two system calls.
extern "C" void pycap_emu_switch(void** from, void* to);
asm(R"(
.text
.globl pycap_emu_switch
.hidden pycap_emu_switch
.type pycap_emu_switch, @function
pycap_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pycap_emu_switch, .-pycap_emu_switch
)");

void make_fiber(Fiber& fiber, void* stack, size_t bytes, void (*entry)()) {
  auto** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes);
  *--top = nullptr;  // where entry would return to; this also aligns its frame
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.state = top;
}

void switch_fiber(Fiber& from, Fiber& to) { pycap_emu_switch(&from.state, to.state); }

#else

void make_fiber(Fiber& fiber, void* stack, size_t bytes, void (*entry)()) {
  auto* context = new (stack) ucontext_t;  // at the far end of the stack, which grows towards it
  getcontext(context);
  context->uc_stack.ss_sp = static_cast<char*>(stack) + sizeof(ucontext_t);
  context->uc_stack.ss_size = bytes - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  fiber.state = context;
}

void switch_fiber(Fiber& from, Fiber& to) {
  ucontext_t here;
  from.state = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to.state));
}

#endif

Stacks::Stacks(size_t count) : bytes_(count * kBytes) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(memory);
}

Stacks::~Stacks() { munmap(base_, bytes_); }

}  // namespace pycap::emu
