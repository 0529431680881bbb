// What is remembered of each word of memory that kernels touch: who wrote and read it last.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace pycap::emu {

constexpr uint32_t kNobody = 0xffffffffu;

// An access of a thread to some bytes of a word, at its warp's clock.
struct Access {
  uint32_t thread = kNobody;
  uint32_t clock = 0;
  uint8_t bytes = 0;  // bit i: byte i
};

struct Word {
  Access write, read, other_read;
  uint8_t initialised = 0;  // bytes that were written, in shared memory
  uint8_t in_flight = 0;    // bytes that an asynchronous copy may write at any time
};

// Words by address, made when they are first asked for.
class Shadow {
 public:
  Word& at(uintptr_t address) {
    const uintptr_t number = address / kPage;
    Slot& slot = recent_[number % kRecent];
    if (slot.number != number || !slot.page) {
      auto& page = pages_[number];
      if (!page) page = std::make_unique<Page>();
      slot = {number, page.get()};
    }
    return slot.page->words[address % kPage / 4];
  }

 private:
  static constexpr uintptr_t kPage = 4096, kRecent = 256;
  struct Page {
    Word words[kPage / 4];
  };
  struct Slot {
    uintptr_t number = 0;
    Page* page = nullptr;
  };
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  Slot recent_[kRecent];
};

}  // namespace pycap::emu
