// What the kernels' files, the launch and the two simulators know of each other.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "device.h"

namespace host {

// A kernel as its file lists it. With two blocks at a time there are two copies of each, whose shared memory is apart.
struct Kernel {
  const char* name;
  unsigned threads;                   // of a block
  size_t size;                        // of the argument
  void (*run)(const void* argument);  // one thread of it
  void* shared;                       // the shared memory of a block
  size_t shared_size;
};

template <class Argument, void (*KERNEL)(Argument)>
void run(const void* argument) {
  KERNEL(*static_cast<const Argument*>(argument));
}

// Fill the shared memory of a block with NaN, before the block runs.
inline void fill_shared(const Kernel* kernel) {
  if (kernel->shared) memset(kernel->shared, 0xff, kernel->shared_size);
}

// Adds the kernels of a file to those that can be launched.
struct Registration {
  Registration(const Kernel* kernels, size_t count);
};

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;

// The order of threads and blocks: random, and the same for the same seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // A number below `count`: splitmix64, as in gpureg/samples.py.
  unsigned below(unsigned count) {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return static_cast<unsigned>(((z ^ (z >> 31)) >> 32) * count >> 32);
  }

  template <class T>
  void shuffle(T* items, unsigned count) {
    for (unsigned i = count; i > 1; --i) {
      T& other = items[below(i)];
      const T item = items[i - 1];
      items[i - 1] = other;
      other = item;
    }
  }

 private:
  uint64_t state_;
};

// Run blocks of a kernel, given its copies, in about the order given. What goes wrong is told to `report`.
void run_blocks(const std::vector<const Kernel*>& copies, const void* argument, const std::vector<unsigned>& blocks,
                Random random);

// Keep a message about the launch, as printf does, unless there is one.
void report(const Kernel* kernel, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace host
