// The threads of a launch while it is emulated, and what orders them.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "emu.h"
#include "fiber.h"
#include "shadow.h"

namespace pycap::emu {

// What a thread knows of the others: accesses of warp w before clock[w] happened before whatever it
// does next. Warps have one clock each: their lanes' accesses are told apart by shadow.h alone.
using Clock = std::vector<uint32_t>;

inline void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (size_t w = 0; w < from.size(); ++w) into[w] = into[w] < from[w] ? from[w] : into[w];
}

// Bytes that cp.async is to move.
struct Copy {
  void* shared;
  const void* global;
  uint32_t bytes;
  bool inside, landed;
  void* where;
};

struct Warp;
struct Block;

enum class State : uint8_t { kReady, kWaiting, kDone };

struct Thread {
  Fiber fiber;
  char* stack = nullptr;
  Warp* warp = nullptr;
  uint3 index{};
  int lane = 0;
  State state = State::kReady;
  const char* at = "";          // what it waits at
  void* where = nullptr;        // the address that it called from
  uint32_t phase[2] = {};       // of the barriers of its cluster and grid that it has arrived at
  Clock acquired;               // what it alone has learnt since the last barrier of its warp
  const int* polled = nullptr;  // the counter that it loaded last, and what it saw there
  int seen = 0;
  std::vector<std::vector<Copy>> groups{1};  // of cp.async; the last is open
};

// Lanes that wait for each other in one instruction.
struct Rendezvous {
  const char* what;
  uint32_t mask, arrived;
  void* where;
  const void* input[32];
  void* output[32];
};

struct Warp {
  Block* block = nullptr;
  std::vector<Thread> lanes;
  uint32_t ready = 0;   // lanes that can run
  uint32_t number = 0;  // in the whole grid
  Clock known;          // by all of its lanes; known[own] is its own clock
  std::vector<Rendezvous> meetings;
};

// An array of shared memory: where it stands in every block's.
struct SharedArray {
  const void* key;
  size_t start, bytes;
};

struct Block {
  uint3 index{};
  unsigned rank = 0;  // in its cluster
  std::vector<Warp*> warps;
  char* shared = nullptr;  // its arena: dynamic shared memory first
  unsigned threads = 0, ended = 0;
  bool begun = false;                  // one of its threads has run
  unsigned arrived = 0;                // at the barrier
  const char* barrier_file = nullptr;  // where those that arrived wait
  int barrier_line = 0;
};

// Blocks that can wait for each other: a cluster, or the whole grid.
struct Group {
  std::vector<Block*> blocks;
  unsigned threads = 0, arrived = 0;
  uint32_t phase = 0;
  Clock published, completed;  // of the arrivals of this phase, of the last
  std::vector<Thread*> waiting;
};

// One launch.
struct Run {
  Grid grid;
  const void* call;  // the kernel's arguments, in call_bytes bytes
  size_t call_bytes;
  void (*body)(const void* call);

  std::vector<Warp> warps;    // of the blocks that run at once
  std::vector<Block> blocks;  // those
  std::vector<Group> clusters;
  Group all;
  uint32_t first_warp = 0;         // the number of warps[0] in the whole grid
  std::vector<uint32_t> runnable;  // warps with ready lanes, in any order
  unsigned done = 0, threads = 0;
  uint64_t polls = 0;  // since a thread last did anything that another could wait for

  char* arena = nullptr;
  size_t arena_stride = 0, arena_bytes = 0;
  std::vector<SharedArray> arrays;
  size_t shared_used = 0, static_shared = 0;
  Shadow global_shadow;
  std::unique_ptr<Shadow> shared_shadow;
  std::unordered_map<const void*, Clock> released;  // by the address of a flag or counter
  std::unordered_map<const void*, std::vector<Thread*>> pollers;

  Fiber host;
  std::string fault;
};

extern Run* current_run;
extern Thread* current_thread;

inline Warp& warp_of(const Thread& t) { return *t.warp; }
inline uint32_t id_of(const Thread& t) { return t.warp->number * 32 + t.lane; }
inline uint32_t local(const Run& run, const Warp& w) { return w.number - run.first_warp; }

// Lets other threads run; returns when this one is ready and chosen again. `at`: what it waits at.
void wait_at(const char* at, void* where);
// Lets others run, while this thread could go on.
void give_way(void* where);
void make_ready(Thread& thread);
// Something happened that a polling thread may have waited for.
inline void progress() { current_run->polls = 0; }

// The clock of `thread` as it is to be published: all that it knows and did. Its warp's clock moves
// on.
Clock publish(Thread& thread);
// All lanes' accesses so far are ordered before all lanes' next ones.
void synchronise(Warp& warp);

// Ends the launch with a report, which begins with the kernel, the block and the thread that runs.
// where: an address in the kernel's code.
[[noreturn]] void fail(const std::string& what, void* where);
// "file:line" of the kernel's code at an address that a call returns to.
std::string location(void* where);
std::string name_of(const Thread& thread);

std::mt19937_64& draw();

}  // namespace pycap::emu
