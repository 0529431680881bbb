// Atomic updates, release and acquire, and asynchronous copies.
#include <cstring>

#include "device.h"
#include "memory.h"
#include "state.h"

namespace pycap::emu {

namespace {

uint32_t load(const void* address) {
  uint32_t word;
  std::memcpy(&word, address, 4);
  return word;
}

// The word at an address has changed: who polls it may look again.
void changed(const void* address) {
  progress();
  const auto found = current_run->pollers.find(address);
  if (found == current_run->pollers.end()) return;
  for (Thread* thread : found->second) make_ready(*thread);
  current_run->pollers.erase(found);
}

void land(Copy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  if (copy.inside)
    std::memcpy(copy.shared, copy.global, copy.bytes);
  else
    std::memset(copy.shared, 0, copy.bytes);
}

}  // namespace

uint32_t atomic(void* address, uint32_t operand, uint32_t (*update)(uint32_t, uint32_t)) {
  check_access(address, 4, 4, Kind::kAtomic, __builtin_return_address(0));
  const uint32_t before = load(address), after = update(before, operand);
  std::memcpy(address, &after, 4);
  changed(address);
  return before;
}

uint32_t compare_and_swap(void* address, uint32_t expected, uint32_t desired) {
  void* where = __builtin_return_address(0);
  check_access(address, 4, 4, Kind::kAtomic, where);
  give_way(where);  // it usually stands in a loop
  const uint32_t before = load(address);
  if (before == expected) {
    std::memcpy(address, &desired, 4);
    changed(address);
  }
  return before;
}

void add_release(int* counter, int n) {
  check_access(counter, 4, 4, Kind::kAtomic, __builtin_return_address(0));
  join(current_run->released[counter], publish(*current_thread));
  *counter += n;
  changed(counter);
}

void store_release(int* flag, int value) {
  check_access(flag, 4, 4, Kind::kAtomic, __builtin_return_address(0));
  join(current_run->released[flag], publish(*current_thread));
  *flag = value;
  changed(flag);
}

int load_acquire(const int* counter) {
  void* where = __builtin_return_address(0);
  check_access(counter, 4, 4, Kind::kAtomic, where);
  Thread& thread = *current_thread;
  if (thread.polled == counter && thread.seen == *counter) {
    current_run->pollers[counter].push_back(&thread);
    wait_at("poll a counter", where);
  } else {
    give_way(where);
  }
  thread.polled = counter;
  thread.seen = *counter;
  const auto found = current_run->released.find(counter);
  if (found != current_run->released.end()) join(thread.acquired, found->second);
  return thread.seen;
}

void copy_async(void* shared, const void* global, int bytes, bool inside) {
  void* where = __builtin_return_address(0);
  const auto size = static_cast<size_t>(bytes);
  if (inside) check_access(global, size, size, Kind::kRead, where);
  check_access(shared, size, size, Kind::kLaunch, where);
  Copy copy{shared, global, static_cast<uint32_t>(bytes), inside, false, where};
  if (draw()() & 1) land(copy);
  current_thread->groups.back().push_back(copy);
}

void copy_async_commit() { current_thread->groups.emplace_back(); }

void copy_async_wait(int pending) {
  auto& groups = current_thread->groups;
  while (groups.size() > static_cast<size_t>(pending) + 1) {
    for (Copy& copy : groups.front()) {
      land(copy);
      check_access(copy.shared, copy.bytes, copy.bytes, Kind::kLand, copy.where);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace pycap::emu
