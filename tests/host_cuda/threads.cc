// The simulator that lets ThreadSanitizer see races: a thread of the system for each of a block, two blocks at a time.
//
// A barrier orders the memory of its block; a shuffle orders none, on the device and so here. Nothing but the kernel's
// own atomics orders the memory of one block and another's.
#include <sanitizer/tsan_interface.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "simulator.h"

extern "C" void AnnotateIgnoreSyncBegin(const char* file, int line);
extern "C" void AnnotateIgnoreSyncEnd(const char* file, int line);

namespace host {
namespace {

// Where so many threads wait for each other. The sanitizer does not see that they do: the lock orders more than the
// device would, as it is taken by one thread after another. So what it guards is atomic, though it need not be.
class Meeting {
 public:
  void wait(unsigned members) {
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const unsigned round = round_.load(std::memory_order_relaxed);
      if (arrived_.fetch_add(1, std::memory_order_relaxed) + 1 == members) {
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_relaxed);
        all_.notify_all();
      } else {
        all_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != round; });
      }
    }
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  std::atomic<unsigned> arrived_{0}, round_{0};
};

// What the threads of a block share; a slot takes one block after another.
struct Slot {
  const Kernel* kernel;
  Meeting block;
  Meeting warps[MOST_THREADS / WARP];
  std::atomic<double> values[MOST_THREADS];
  uint64_t order[2];  // that each second barrier makes
};

Slot slots[2];
thread_local Slot* slot;
thread_local unsigned barriers;  // that this thread has passed

// What a thread did before is seen by all after; what one does after, is not seen by another that is late to leave.
void wait_for_block() {
  uint64_t* const order = slot->order + barriers++ % 2;
  __tsan_release(order);
  slot->block.wait(blockDim.x);
  __tsan_acquire(order);
}

void run_thread(unsigned number, unsigned thread, const void* argument, const std::vector<unsigned>& blocks) {
  slot = slots + number;
  threadIdx = {thread, 0, 0};
  for (size_t i = number; i < blocks.size(); i += 2) {
    blockIdx = {blocks[i], 0, 0};
    if (thread == 0) fill_shared(slot->kernel);
    wait_for_block();
    slot->kernel->run(argument);
    wait_for_block();
  }
}

}  // namespace

// Threads cannot be ended, so the program is.
void fail(const char* format, ...) {
  fprintf(stderr, "%s, block %u, thread %u: ", slot->kernel->name, blockIdx.x, threadIdx.x);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  _exit(1);
}

void barrier(Place) { wait_for_block(); }

double shuffle(Place, unsigned mask, double value, int distance) {
  if (mask != 0xffffffffu) fail("a shuffle with mask %#x, not of all lanes", mask);
  Meeting& warp = slot->warps[threadIdx.x / WARP];
  slot->values[threadIdx.x].store(value, std::memory_order_relaxed);
  warp.wait(WARP);
  const double got = slot->values[threadIdx.x ^ static_cast<unsigned>(distance)].load(std::memory_order_relaxed);
  warp.wait(WARP);
  return got;
}

void run_blocks(const std::vector<const Kernel*>& copies, const void* argument, const std::vector<unsigned>& blocks,
                Random) {
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < 2; ++number) {
    slots[number].kernel = copies[number];
    for (unsigned thread = 0; thread < blockDim.x; ++thread) {
      threads.emplace_back(run_thread, number, thread, argument, std::cref(blocks));
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace host
