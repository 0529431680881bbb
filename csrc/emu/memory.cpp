#include "memory.h"

#include <link.h>

#include <algorithm>

#include "state.h"

namespace pycap::emu {

namespace {

struct Range {
  uintptr_t begin, end;
};

std::vector<Range> tracked;
size_t last_hit = 0;

// What this library holds itself: constants and tables of the kernels, which they may read.
const std::vector<Range>& image() {
  static const std::vector<Range> ranges = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          auto* ranges = static_cast<std::vector<Range>*>(out);
          std::vector<Range> mine;
          bool ours = false;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
            const uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            mine.push_back({begin, begin + info->dlpi_phdr[i].p_memsz});
            const auto here = reinterpret_cast<uintptr_t>(&image);
            ours |= here >= mine.back().begin && here < mine.back().end;
          }
          if (ours) *ranges = mine;
          return ours ? 1 : 0;
        },
        &found);
    return found;
  }();
  return ranges;
}

bool inside(const Range& range, uintptr_t address, size_t bytes) {
  return address >= range.begin && address + bytes <= range.end;
}

bool in_tracked(uintptr_t address, size_t bytes) {
  if (last_hit < tracked.size() && inside(tracked[last_hit], address, bytes)) return true;
  for (size_t i = 0; i < tracked.size(); ++i) {
    if (!inside(tracked[i], address, bytes)) continue;
    last_hit = i;
    return true;
  }
  return false;
}

// Whether an array of a block's shared memory holds it all.
bool in_shared(const Block& block, uintptr_t address, size_t bytes) {
  const size_t offset = address - reinterpret_cast<uintptr_t>(block.shared);
  for (const SharedArray& array : current_run->arrays)
    if (offset >= array.start && offset + bytes <= array.start + array.bytes) return true;
  return false;
}

// How far an address lies from the nearest array, for a report.
std::string nearest(uintptr_t address, size_t bytes) {
  std::string text = "which no array of the launch holds";
  uintptr_t least = 1 << 20;
  for (size_t i = 0; i < tracked.size(); ++i) {
    const Range& range = tracked[i];
    const std::string array = "array " + std::to_string(i) + " of the call (" +
                              std::to_string(range.end - range.begin) + " bytes)";
    if (address < range.begin && range.begin - address < least) {
      least = range.begin - address;
      text = std::to_string(least) + " bytes before " + array;
    } else if (address + bytes > range.end && address + bytes - range.end < least &&
               address >= range.begin) {
      least = address + bytes - range.end;
      text = std::to_string(least) + " bytes past the end of " + array;
    }
  }
  return text;
}

const char* verb(Kind kind) {
  return kind == Kind::kRead ? "reads" : kind == Kind::kAtomic ? "atomically updates" : "writes";
}

std::string amount(size_t bytes) { return std::to_string(bytes) + " bytes"; }

// Whether an earlier access happened before what the running thread does now.
bool ordered(const Run& run, const Access& access, uint32_t thread) {
  if (access.thread == kNobody || access.thread == thread) return true;
  const uint32_t warp = access.thread / 32;
  if (warp < run.first_warp || warp - run.first_warp >= run.warps.size()) return false;
  const uint32_t w = warp - run.first_warp;
  if (access.clock < current_thread->warp->known[w]) return true;
  const Clock& acquired = current_thread->acquired;
  return w < acquired.size() && access.clock < acquired[w];
}

[[noreturn]] void race(const Access& before, const char* then, const char* now, size_t bytes,
                       bool shared, void* where) {
  const Run& run = *current_run;
  const uint32_t warp = before.thread / 32;
  std::string who = "another block";
  if (warp >= run.first_warp && warp - run.first_warp < run.warps.size())
    who = name_of(run.warps[warp - run.first_warp].lanes[before.thread % 32]);
  fail(std::string("a race: ") + now + " " + amount(bytes) + " of " +
           (shared ? "shared" : "global") + " memory that " + who + " " + then +
           ", and nothing orders the two",
       where);
}

void remember_read(Run& run, Word& word, uint32_t thread, uint32_t clock, uint8_t bytes) {
  // Of two readers that nothing orders, both are kept, so that a later writer must know of both.
  if (!ordered(run, word.read, thread)) word.other_read = word.read;
  word.read = {thread, clock, bytes};
}

void check_word(Run& run, Word& word, uint8_t bytes, size_t size, Kind kind, bool shared,
                void* where) {
  const uint32_t thread = id_of(*current_thread);
  const uint32_t clock = current_thread->warp->known[local(run, *current_thread->warp)];
  const bool writes = kind != Kind::kRead;
  if (kind == Kind::kLand) {
    word.in_flight &= ~bytes;
    word.initialised |= bytes;
    word.write = {thread, clock, bytes};
    return;
  }
  if (word.in_flight & bytes)
    fail(std::string(verb(kind)) + " " + amount(size) +
             " of shared memory that an asynchronous copy may still be writing",
         where);
  if (kind == Kind::kAtomic) {
    word.initialised |= bytes;
    return;
  }
  if ((word.write.bytes & bytes) && !ordered(run, word.write, thread))
    race(word.write, "wrote", verb(kind), size, shared, where);
  if (writes) {
    for (const Access* read : {&word.read, &word.other_read})
      if ((read->bytes & bytes) && !ordered(run, *read, thread))
        race(*read, "read", verb(kind), size, shared, where);
    word.write = {thread, clock, bytes};
    word.read = word.other_read = {};
    if (kind == Kind::kLaunch)
      word.in_flight |= bytes;
    else
      word.initialised |= bytes;
    return;
  }
  if (shared && (word.initialised & bytes) != bytes)
    fail("reads " + amount(size) + " of shared memory that nothing has written", where);
  remember_read(run, word, thread, clock, bytes);
}

// The block whose shared memory an address is in, or null.
const Block* shared_at(const Run& run, uintptr_t address) {
  const auto base = reinterpret_cast<uintptr_t>(run.arena);
  if (address < base || address >= base + run.arena_bytes) return nullptr;
  return &run.blocks[(address - base) / run.arena_stride];
}

}  // namespace

void track(const void* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  tracked.push_back({begin, begin + bytes});
}

void untrack(const void* data) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const auto last = std::find_if(tracked.rbegin(), tracked.rend(),
                                 [&](const Range& range) { return range.begin == begin; });
  if (last != tracked.rend()) tracked.erase(std::next(last).base());
}

void zero(void* data, size_t bytes) {
  if (!in_tracked(reinterpret_cast<uintptr_t>(data), bytes))
    throw Fault("zeroing " + amount(bytes) + " " +
                nearest(reinterpret_cast<uintptr_t>(data), bytes));
  std::fill_n(static_cast<char*>(data), bytes, 0);
}

void check_access(const void* data, size_t bytes, size_t aligned, Kind kind, void* where) {
  Run& run = *current_run;
  const auto address = reinterpret_cast<uintptr_t>(data);
  const auto stack = reinterpret_cast<uintptr_t>(current_thread->stack);
  if (address >= stack && address < stack + Stacks::kBytes) return;
  const Block* owner = shared_at(run, address);
  if (owner) {
    const Block& mine = *current_thread->warp->block;
    const auto cluster = [&](const Block& b) {
      return (&b - run.blocks.data()) / run.grid.cluster;
    };
    if (cluster(*owner) != cluster(mine))
      fail(std::string(verb(kind)) + " the shared memory of a block of another cluster", where);
    if (!owner->begun)
      fail(std::string(verb(kind)) + " the shared memory of a block that has not begun", where);
    if (owner != &mine && owner->ended == owner->threads)
      fail(std::string(verb(kind)) + " the shared memory of a block that has ended", where);
    if (!in_shared(*owner, address, bytes))
      fail("out of bounds: " + std::string(verb(kind)) + " " + amount(bytes) +
               " of shared memory outside of every array in it, at byte " +
               std::to_string(address - reinterpret_cast<uintptr_t>(owner->shared)),
           where);
  } else if (!in_tracked(address, bytes)) {
    const auto call = reinterpret_cast<uintptr_t>(run.call);
    bool readable = inside({call, call + run.call_bytes}, address, bytes);
    for (const Range& range : image()) readable |= inside(range, address, bytes);
    if (readable && kind == Kind::kRead) return;
    fail("out of bounds: " + std::string(verb(kind)) + " " + amount(bytes) + " " +
             nearest(address, bytes),
         where);
  }
  if (address % aligned)
    fail("misaligned: " + std::string(verb(kind)) + " " + amount(bytes) +
             " at an address that is no multiple of " + std::to_string(aligned),
         where);
  for (uintptr_t word = address & ~uintptr_t{3}; word < address + bytes; word += 4) {
    uint8_t mask = 0xf;
    if (word < address) mask &= 0xf << (address - word);
    if (word + 4 > address + bytes) mask &= 0xf >> (word + 4 - address - bytes);
    check_word(run, (owner ? *run.shared_shadow : run.global_shadow).at(word), mask, bytes, kind,
               owner != nullptr, where);
  }
}

}  // namespace pycap::emu
