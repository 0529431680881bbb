// Runs the threads of a grid as fibers in a drawn order, and knows when they wait for each other.
#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "device.h"
#include "memory.h"
#include "state.h"

namespace pycap::emu {

Run* current_run = nullptr;
Thread* current_thread = nullptr;

namespace {

constexpr size_t kStaticShared = 48 * 1024;  // what nvcc allows a block's arrays, arguments apart
constexpr size_t kGap = 64;                  // between arrays, so that a step past an end is seen

std::mt19937_64 generator{1};

std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

uint3 unravel(uint64_t i, const dim3& shape) {
  return {static_cast<unsigned>(i % shape.x), static_cast<unsigned>(i / shape.x % shape.y),
          static_cast<unsigned>(i / shape.x / shape.y)};
}

uint64_t count(const dim3& shape) { return uint64_t{shape.x} * shape.y * shape.z; }

void enter() {
  current_thread->warp->block->begun = true;
  current_run->body(current_run->call);
  Thread& thread = *current_thread;
  thread.state = State::kDone;
  ++thread.warp->block->ended;
  ++current_run->done;
  progress();
  switch_fiber(thread.fiber, current_run->host);
}

// What every thread waits at, for a report of a deadlock.
std::string standing(const Run& run) {
  std::map<std::string, std::pair<unsigned, const Thread*>> places;
  for (const Warp& warp : run.warps)
    for (const Thread& thread : warp.lanes) {
      const std::string place =
          thread.state == State::kDone ? "returned" : thread.at + (" at " + location(thread.where));
      auto& entry = places.try_emplace(place, 0, &thread).first->second;
      ++entry.first;
    }
  std::string out;
  for (const auto& [place, entry] : places)
    out += (out.empty() ? "" : "; ") + std::to_string(entry.first) + " " + place + ", " +
           name_of(*entry.second) + " first";
  return out;
}

// Lays out the threads of blocks [first, first + blocks).
void arrange(Run& run, uint64_t first, uint64_t blocks, Stacks& stacks) {
  const uint64_t threads = count(run.grid.block);
  const uint64_t per_block = (threads + 31) / 32;
  run.first_warp = static_cast<uint32_t>(first * per_block);
  run.blocks.assign(blocks, {});
  run.warps.assign(blocks * per_block, {});
  run.runnable.clear();
  run.shared_shadow = std::make_unique<Shadow>();
  run.done = 0;
  run.threads = static_cast<unsigned>(blocks * threads);
  for (uint64_t b = 0; b < blocks; ++b) {
    Block& block = run.blocks[b];
    block.index = unravel(first + b, run.grid.grid);
    block.rank = block.index.x % run.grid.cluster;
    block.threads = static_cast<unsigned>(threads);
    block.shared = run.arena + b * run.arena_stride;
    for (uint64_t w = 0; w < per_block; ++w) {
      const uint64_t local = b * per_block + w;
      Warp& warp = run.warps[local];
      warp.block = &block;
      warp.number = static_cast<uint32_t>(run.first_warp + local);
      warp.known.assign(run.warps.size(), 0);
      warp.known[local] = 1;
      warp.lanes.resize(std::min<uint64_t>(32, threads - 32 * w));
      for (size_t lane = 0; lane < warp.lanes.size(); ++lane) {
        Thread& thread = warp.lanes[lane];
        thread.warp = &warp;
        thread.lane = static_cast<int>(lane);
        thread.index = unravel(32 * w + lane, run.grid.block);
        thread.stack = stacks.at(b * threads + 32 * w + lane);
        make_fiber(thread.fiber, thread.stack, Stacks::kBytes, enter);
        warp.ready |= 1u << lane;
      }
      block.warps.push_back(&warp);
      run.runnable.push_back(static_cast<uint32_t>(local));
    }
  }
  const uint64_t size = run.grid.cluster;
  run.clusters.assign(blocks / size, {});
  run.all = {};
  for (uint64_t b = 0; b < blocks; ++b)
    for (Group* group : {&run.clusters[b / size], &run.all}) {
      group->blocks.push_back(&run.blocks[b]);
      group->threads += static_cast<unsigned>(threads);
    }
}

// Runs a lane until it waits or is done.
void resume(Run& run, Thread& thread) {
  current_thread = &thread;
  switch_fiber(run.host, thread.fiber);
}

// Until all threads are done. Warps are drawn; of one, its ready lanes run one after the other,
// upwards or downwards.
void schedule(Run& run) {
  while (run.done < run.threads) {
    if (run.runnable.empty()) {
      run.fault =
          std::string(run.grid.kernel) + ": threads wait for each other for ever: " + standing(run);
      return;
    }
    const size_t drawn = generator() % run.runnable.size();
    Warp& warp = run.warps[run.runnable[drawn]];
    run.runnable[drawn] = run.runnable.back();
    run.runnable.pop_back();
    const uint32_t ready = warp.ready;
    warp.ready = 0;
    const bool upwards = generator() & 1;
    const int lanes = static_cast<int>(warp.lanes.size());
    for (int i = 0; i < lanes; ++i) {
      const int lane = upwards ? i : lanes - 1 - i;
      if (!(ready >> lane & 1)) continue;
      resume(run, warp.lanes[lane]);
      if (!run.fault.empty()) return;
    }
    if (run.polls > 200 * uint64_t{run.threads} + 100000) {
      run.fault = std::string(run.grid.kernel) + ": threads poll for ever: " + standing(run);
      return;
    }
  }
}

}  // namespace

Device& device() {
  static Device device;
  return device;
}

void set_seed(uint64_t seed) { generator.seed(seed); }
std::mt19937_64& draw() { return generator; }

int resident_blocks(int threads, size_t shared) {
  const Device& gpu = device();
  if (shared > gpu.shared_limit || threads > 1024) return 0;
  const size_t by_memory = (gpu.shared_limit + 1024) / (shared + 1024);
  return static_cast<int>(
      std::min({by_memory, size_t(gpu.threads_per_multiprocessor / threads), size_t{32}}));
}

void make_ready(Thread& thread) {
  if (thread.state == State::kDone) return;
  thread.state = State::kReady;
  Warp& warp = *thread.warp;
  if (!warp.ready) current_run->runnable.push_back(local(*current_run, warp));
  warp.ready |= 1u << thread.lane;
}

void wait_at(const char* at, void* where) {
  Thread& thread = *current_thread;
  thread.state = State::kWaiting;
  thread.at = at;
  thread.where = where;
  switch_fiber(thread.fiber, current_run->host);
}

void give_way(void* where) {
  Thread& thread = *current_thread;
  thread.at = "polls";
  thread.where = where;
  ++current_run->polls;
  make_ready(thread);
  switch_fiber(thread.fiber, current_run->host);
}

std::string name_of(const Thread& thread) {
  return "block " + text(thread.warp->block->index) + " thread " + text(thread.index);
}

void fail(const std::string& what, void* where) {
  Run& run = *current_run;
  run.fault = std::string(run.grid.kernel) + ": " + name_of(*current_thread) + " at " +
              location(where) + ": " + what;
  switch_fiber(current_thread->fiber, run.host);
  __builtin_unreachable();  // the launch is over, and its stacks are gone
}

void run(const Grid& grid, const void* call, size_t bytes, void (*body)(const void*)) {
  const uint64_t threads = count(grid.block), blocks = count(grid.grid);
  const std::string kernel = grid.kernel;
  if (current_run) throw Fault(kernel + ": launched inside a launch");
  if (!threads || threads > 1024)
    throw Fault(kernel + ": blocks of " + std::to_string(threads) + " threads");
  if (!blocks) throw Fault(kernel + ": launched without blocks");
  if (grid.shared > device().shared_limit)
    throw Fault(kernel + ": asks for " + std::to_string(grid.shared) + " bytes of shared memory");
  if (grid.grid.x % grid.cluster) throw Fault(kernel + ": a grid that its clusters do not divide");
  const bool together = grid.cooperative;
  const int resident = resident_blocks(static_cast<int>(threads), grid.shared);
  if (together && blocks > uint64_t(resident) * device().multiprocessors)
    throw Fault(kernel + ": " + std::to_string(blocks) + " blocks cannot all run at once");
  const uint64_t batch = together ? blocks : grid.cluster;

  Run run{};
  run.grid = grid;
  if (grid.shared) run.arrays.push_back({nullptr, 0, grid.shared});
  run.shared_used = grid.shared;
  run.call = call;
  run.call_bytes = bytes;
  run.body = body;
  run.arena_stride = (grid.shared + kStaticShared + 32 * kGap + 1023) / 1024 * 1024;
  run.arena_bytes = run.arena_stride * batch;
  Stacks stacks(batch * threads);
  void* arena = mmap(nullptr, run.arena_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED) throw std::bad_alloc();
  run.arena = static_cast<char*>(arena);
  std::vector<uint64_t> order(blocks / batch);
  for (uint64_t i = 0; i < order.size(); ++i) order[i] = i * batch;
  std::shuffle(order.begin(), order.end(), generator);
  current_run = &run;
  for (const uint64_t first : order) {
    arrange(run, first, batch, stacks);
    schedule(run);
    if (!run.fault.empty()) break;
  }
  current_run = nullptr;
  current_thread = nullptr;
  munmap(arena, run.arena_bytes);
  if (!run.fault.empty()) throw Fault(run.fault);
}

// Places ---------------------------------------------------------------------------------------

uint3 thread_index() { return current_thread->index; }
uint3 block_index() { return current_thread->warp->block->index; }
dim3 block_shape() { return current_run->grid.block; }
dim3 grid_shape() { return current_run->grid.grid; }
unsigned cluster_rank() { return current_thread->warp->block->rank; }
unsigned cluster_size() { return current_run->grid.cluster; }

void* shared_array(const void* key, size_t bytes, size_t alignment) {
  Run& run = *current_run;
  Block& block = *current_thread->warp->block;
  for (const SharedArray& array : run.arrays)
    if (array.key == key) return block.shared + array.start;
  alignment = std::max(alignment, size_t{16});
  const size_t start = (run.shared_used + kGap + alignment - 1) / alignment * alignment;
  run.static_shared += bytes;
  if (run.static_shared > kStaticShared || start + bytes > run.arena_stride)
    fail("declares more than " + std::to_string(kStaticShared) + " bytes of shared arrays",
         __builtin_return_address(0));
  run.arrays.push_back({key, start, bytes});
  run.shared_used = start + bytes;
  return block.shared + start;
}

void* dynamic_shared() { return current_thread->warp->block->shared; }

void* shared_of_rank(const void* mine, unsigned rank) {
  Block& block = *current_thread->warp->block;
  if (rank >= current_run->grid.cluster)
    fail("asks for block " + std::to_string(rank) + " of a cluster of " +
             std::to_string(current_run->grid.cluster),
         __builtin_return_address(0));
  const auto offset = static_cast<const char*>(mine) - block.shared;
  return (&block - block.rank + rank)->shared + offset;
}

}  // namespace pycap::emu
