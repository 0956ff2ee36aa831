// The simulator that proves bits: a fibre for each thread of a block, one block after another.
//
// A fibre runs until it waits or ends; then one that can go on does. Which one is random, so that no order can be
// relied on that a barrier or a shuffle does not make. When none can go on and not all have ended, the launch is ended
// with a report of who waits for whom.
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include "fibre.h"
#include "simulator.h"

namespace host {
namespace {

enum class State { READY, AT_BARRIER, AT_SHUFFLE, ENDED };

struct Thread {
  Fibre fibre;
  State state;
  Place place;   // where it waits
  int distance;  // of its shuffle
  double value;  // that it gives there, and then the one it gets
};

struct Warp {
  unsigned arrived;  // at a shuffle,
  unsigned first;    // and the thread that was there first
};

constexpr size_t STACK = 1 << 17;

struct Block {
  const Kernel* kernel;
  const void* argument;
  Random random{0};
  bool by_warps;  // whether a warp runs as far as it can before another one does
  unsigned at_barrier, first_at_barrier, ended;
  Warp warps[MOST_THREADS / WARP];
  Thread threads[MOST_THREADS];
  unsigned ready[MOST_THREADS];  // the last one goes on first
  unsigned ready_count;
  Fibre main;
  Fibre* left;  // the fibre that ran last
} block;

// The stacks, one beside the other. Pages between them that must not be touched would be too many for a process that
// loads many libraries, so the end of each is marked instead.
char* stack_of(unsigned thread) {
  static char* const stacks = static_cast<char*>(
      mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return stacks + thread * STACK;
}

constexpr uint64_t MARK = 0x6b6174732066656e;

uint64_t& mark_of(unsigned thread) { return *reinterpret_cast<uint64_t*>(stack_of(thread)); }

bool same(Place left, Place right) {
  return left.line == right.line && (left.file == right.file || !strcmp(left.file, right.file));
}

const char* file_name(Place place) {
  const char* const slash = strrchr(place.file, '/');
  return slash ? slash + 1 : place.file;
}

const char* describe(unsigned thread) {
  static char text[4][200];
  static unsigned next;
  char* const result = text[next++ % 4];
  const Thread& it = block.threads[thread];
  switch (it.state) {
    case State::READY:
      snprintf(result, sizeof(text[0]), "has not come that far");
      break;
    case State::ENDED:
      snprintf(result, sizeof(text[0]), "has ended");
      break;
    default:
      snprintf(result, sizeof(text[0]), "waits at the %s of %s:%d",
               it.state == State::AT_BARRIER ? "barrier" : "shuffle", file_name(it.place), it.place.line);
  }
  return result;
}

// Say who waits for whom: at a shuffle if any does, for there the one that is missing is no further than its warp.
void report_deadlock() {
  unsigned waits = 0;
  while (waits < blockDim.x && block.threads[waits].state != State::AT_SHUFFLE) ++waits;
  const bool shuffles = waits < blockDim.x;
  if (!shuffles) waits = block.first_at_barrier;
  unsigned missing = shuffles ? waits / WARP * WARP : 0;
  while (block.threads[missing].state == block.threads[waits].state) ++missing;
  threadIdx.x = waits;
  report(block.kernel, "%s for thread %u, which %s", describe(waits), missing, describe(missing));
}

// Leave a fibre for one that can go on, or for the launch if there is none.
void go_on(Fibre& from) {
  block.left = &from;
  if (block.ready_count) {
    const unsigned next = block.ready[--block.ready_count];
    threadIdx.x = next;
    if (&block.threads[next].fibre != &from) from.switch_to(block.threads[next].fibre);
    return;
  }
  if (block.ended < blockDim.x) report_deadlock();
  from.switch_to(block.main);
}

// Let `count` threads from `first` on go on, in any order.
void wake(unsigned first, unsigned count) {
  unsigned* const woken = block.ready + block.ready_count;
  for (unsigned i = 0; i < count; ++i) {
    woken[i] = first + i;
    block.threads[first + i].state = State::READY;
  }
  block.ready_count += count;
  block.random.shuffle(woken, count);
  if (!block.by_warps || count <= WARP) return;
  // Gather each warp's threads where the first of them is.
  unsigned order[MOST_THREADS], filled = 0;
  bool gathered[MOST_THREADS / WARP] = {};
  for (unsigned i = 0; i < count; ++i) {
    const unsigned warp = woken[i] / WARP;
    if (gathered[warp]) continue;
    gathered[warp] = true;
    for (unsigned j = i; j < count; ++j) {
      if (woken[j] / WARP == warp) order[filled++] = woken[j];
    }
  }
  memcpy(woken, order, count * sizeof(unsigned));
}

void entry() {
  Fibre::entered(*block.left);
  const unsigned index = threadIdx.x;
  block.kernel->run(block.argument);
  block.threads[index].state = State::ENDED;
  ++block.ended;
  go_on(block.threads[index].fibre);
}

void run_block(unsigned index) {
  blockIdx = {index, 0, 0};
  fill_shared(block.kernel);
  memset(block.warps, 0, sizeof(block.warps));
  block.by_warps = block.random.below(2);
  block.at_barrier = block.ended = block.ready_count = 0;
  for (unsigned thread = 0; thread < blockDim.x; ++thread) {
    // Stacks that began at the same place of their pages would drive each other out of the cache.
    block.threads[thread].fibre.prepare(entry, stack_of(thread), STACK - thread % 32 * 448);
  }
  wake(0, blockDim.x);
  go_on(block.main);
}

}  // namespace

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  report(block.kernel, "%s", text);
  block.threads[threadIdx.x].fibre.switch_to(block.main);
  __builtin_unreachable();
}

void barrier(Place place) {
  const unsigned index = threadIdx.x;
  Thread& me = block.threads[index];
  me.state = State::AT_BARRIER;
  me.place = place;
  if (block.at_barrier == 0) block.first_at_barrier = index;
  if (!same(place, block.threads[block.first_at_barrier].place)) {
    fail("%s, but thread %u %s", describe(index), block.first_at_barrier, describe(block.first_at_barrier));
  }
  if (++block.at_barrier == blockDim.x) {
    block.at_barrier = 0;
    wake(0, blockDim.x);
  }
  go_on(me.fibre);
}

double shuffle(Place place, unsigned mask, double value, int distance) {
  const unsigned index = threadIdx.x, first_lane = index / WARP * WARP;
  Thread& me = block.threads[index];
  Warp& warp = block.warps[index / WARP];
  me.state = State::AT_SHUFFLE;
  me.place = place;
  me.distance = distance;
  me.value = value;
  if (mask != 0xffffffffu) fail("%s with mask %#x, not of all lanes", describe(index), mask);
  if (distance < 0 || distance >= static_cast<int>(WARP)) fail("%s with distance %d", describe(index), distance);
  if (warp.arrived == 0) warp.first = index;
  const Thread& other = block.threads[warp.first];
  if (!same(place, other.place) || distance != other.distance) {
    fail("%s with distance %d, but thread %u %s with distance %d", describe(index), distance, warp.first,
         describe(warp.first), other.distance);
  }
  if (++warp.arrived == WARP) {
    double got[WARP];
    for (unsigned lane = 0; lane < WARP; ++lane) got[lane] = block.threads[first_lane + (lane ^ distance)].value;
    for (unsigned lane = 0; lane < WARP; ++lane) block.threads[first_lane + lane].value = got[lane];
    warp.arrived = 0;
    wake(first_lane, WARP);
  }
  go_on(me.fibre);
  return me.value;
}

void run_blocks(const std::vector<const Kernel*>& copies, const void* argument, const std::vector<unsigned>& blocks,
                Random random) {
  block.kernel = copies[0];
  block.argument = argument;
  block.random = random;
  for (unsigned thread = 0; thread < blockDim.x; ++thread) mark_of(thread) = MARK;
  for (const unsigned index : blocks) {
    run_block(index);
    if (block.ended < blockDim.x) break;
  }
  for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) {
    if (mark_of(threadIdx.x) != MARK) report(block.kernel, "a stack of %zu bytes is too small", STACK);
  }
}

}  // namespace host
