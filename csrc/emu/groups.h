// cooperative_groups: the block, the cluster and the grid.
#pragma once
#include "device.h"

namespace cooperative_groups {

struct thread_block {
  __forceinline__ void sync(const char* file = __builtin_FILE(),
                            int line = __builtin_LINE()) const {
    pycap::emu::barrier_block(file, line);
  }
};

struct grid_group {
  __forceinline__ void sync() const {
    pycap::emu::barrier_arrive(pycap::emu::Scope::kGrid);
    pycap::emu::barrier_wait(pycap::emu::Scope::kGrid);
  }
};

struct cluster_group {
  struct arrival_token {};
  __forceinline__ arrival_token barrier_arrive() const {
    pycap::emu::barrier_arrive(pycap::emu::Scope::kCluster);
    return {};
  }
  __forceinline__ void barrier_wait(arrival_token = {}) const {
    pycap::emu::barrier_wait(pycap::emu::Scope::kCluster);
  }
  __forceinline__ void sync() const { barrier_wait(barrier_arrive()); }
  unsigned block_rank() const { return pycap::emu::cluster_rank(); }
  unsigned num_blocks() const { return pycap::emu::cluster_size(); }
  // The same array in the shared memory of another block of the cluster.
  template <class T>
  T* map_shared_rank(T* mine, unsigned rank) const {
    return static_cast<T*>(pycap::emu::shared_of_rank(mine, rank));
  }
};

inline thread_block this_thread_block() { return {}; }
inline grid_group this_grid() { return {}; }
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
