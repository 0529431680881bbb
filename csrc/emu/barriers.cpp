// Barriers of a block, a cluster and the grid, and what they tell threads of each other's accesses.
#include <cstring>

#include "device.h"
#include "state.h"

namespace pycap::emu {

namespace {

// All accesses of these warps so far are ordered before all of their next ones.
void synchronise_all(const std::vector<Warp*>& warps) {
  Run& run = *current_run;
  Clock all;
  for (Warp* warp : warps) {
    synchronise(*warp);
    join(all, warp->known);
  }
  for (Warp* warp : warps) {
    const uint32_t own = local(run, *warp);
    warp->known = all;
    ++warp->known[own];
  }
}

Group& group_of(Scope scope) {
  Run& run = *current_run;
  if (scope == Scope::kGrid) return run.all;
  const Block& block = *current_thread->warp->block;
  return run.clusters[(&block - run.blocks.data()) / run.grid.cluster];
}

}  // namespace

Clock publish(Thread& thread) {
  Warp& warp = *thread.warp;
  Clock clock = warp.known;
  join(clock, thread.acquired);
  clock[local(*current_run, warp)] = ++warp.known[local(*current_run, warp)];
  return clock;
}

void synchronise(Warp& warp) {
  for (Thread& thread : warp.lanes) {
    if (thread.acquired.empty()) continue;
    join(warp.known, thread.acquired);
    thread.acquired.clear();
  }
  ++warp.known[local(*current_run, warp)];
}

void barrier_block(const char* file, int line) {
  void* where = __builtin_return_address(0);
  Block& block = *current_thread->warp->block;
  if (block.arrived && (block.barrier_line != line || std::strcmp(block.barrier_file, file)))
    fail("a divergent barrier: others of its block wait at the one in line " +
             std::to_string(block.barrier_line),
         where);
  block.barrier_file = file;
  block.barrier_line = line;
  if (++block.arrived < block.threads) return wait_at("wait at the barrier of their block", where);
  block.arrived = 0;
  progress();
  synchronise_all(block.warps);
  for (Warp* warp : block.warps)
    for (Thread& thread : warp->lanes)
      if (&thread != current_thread) make_ready(thread);
}

void barrier_arrive(Scope scope) {
  void* where = __builtin_return_address(0);
  if (scope == Scope::kGrid && !current_run->grid.cooperative)
    fail("waits for the whole grid, but the launch is not cooperative", where);
  Group& group = group_of(scope);
  join(group.published, publish(*current_thread));
  current_thread->phase[static_cast<int>(scope)] = group.phase + 1;
  if (++group.arrived < group.threads) return;
  group.arrived = 0;
  ++group.phase;
  group.completed = std::move(group.published);
  group.published = {};
  progress();
  for (Thread* thread : group.waiting) make_ready(*thread);
  group.waiting.clear();
}

void barrier_wait(Scope scope) {
  void* where = __builtin_return_address(0);
  Group& group = group_of(scope);
  const uint32_t phase = current_thread->phase[static_cast<int>(scope)];
  if (!phase) fail("waits at a barrier without having arrived there", where);
  if (group.phase < phase) {
    group.waiting.push_back(current_thread);
    wait_at(scope == Scope::kGrid ? "wait at the barrier of the grid"
                                  : "wait at the barrier of their cluster",
            where);
  }
  current_thread->phase[static_cast<int>(scope)] = 0;
  join(current_thread->warp->known, group.completed);
}

}  // namespace pycap::emu
