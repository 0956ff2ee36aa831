// The tree that adds two sums at once, from the lanes of a tile up to the tensors of a call, inside one launch.
//
// Levels of parallelism: a thread adds neighbouring lanes in registers, a warp its threads by shuffles, a block its warps
// through shared memory. Above that a block leaves its sum in memory and takes a ticket; the one that takes the last
// ticket of its group adds the group. A sum is read by its index, never in the order of arrival, so that the order of
// blocks changes no bit.
//
// Memory policy: sums that other blocks left are read with relaxed loads, which no cache that is not coherent serves;
// the ticket is one acquire-release atomic a level, and the last one to take it sets its counter back to zero for the
// next launch.
#pragma once

constexpr int THREADS = GPUREG_ROW_BYTES / 16;  // one 16-byte load of each makes a row
constexpr int WARPS = THREADS / 32;
constexpr int GROUP = THREADS;  // subtrees that one block adds in one go: one for each of its threads

// The sums of |x| and of x * x over the same elements.
struct Sums {
  double abs;
  double squares;
};

// What a block keeps in shared memory while it adds.
struct Shared {
  Sums warp[WARPS];
  unsigned ticket;
};

__device__ __forceinline__ Sums operator+(Sums left, Sums right) {
  return {left.abs + right.abs, left.squares + right.squares};
}

// Add the sums of a warp's threads by the tree over the thread index. All its threads must call; all get the sum.
//
// A butterfly adds each pair in both orders, which gives the same bits, for addition commutes.
__device__ __forceinline__ Sums add_warp(Sums mine) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    mine = mine + Sums{__shfl_xor_sync(0xffffffffu, mine.abs, distance),
                       __shfl_xor_sync(0xffffffffu, mine.squares, distance)};
  }
  return mine;
}

// Add the sums of a block's threads by the tree over the thread index. All threads must call; the first gets the sum.
__device__ __forceinline__ Sums add_threads(Sums mine, Shared& shared) {
  mine = add_warp(mine);
  __syncthreads();  // what the last call left in shared memory has been read
  if (threadIdx.x % 32 == 0) shared.warp[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    Sums level[WARPS];
#pragma unroll
    for (int i = 0; i < WARPS; ++i) level[i] = shared.warp[i];
#pragma unroll
    for (int count = WARPS / 2; count > 0; count /= 2) {
#pragma unroll
      for (int i = 0; i < count; ++i) level[i] = level[2 * i] + level[2 * i + 1];
    }
    mine = level[0];
  }
  return mine;
}

__device__ __forceinline__ double load_relaxed(double* from) {
  // As an integer, for a load of a double has no relaxed form.
  return __longlong_as_double(__nv_atomic_load_n(
      reinterpret_cast<long long*>(from), __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE));
}

__device__ __forceinline__ Sums load_relaxed(Sums* from) {
  return {load_relaxed(&from->abs), load_relaxed(&from->squares)};
}

// Take tickets for the parts of a whole that this block is done with, and return whether they are the last of `count`.
// All threads must call. What the first thread stored before, and other threads before a barrier, is then there to be
// read by the block that is last.
__device__ __forceinline__ bool is_last(unsigned* counter, unsigned parts, unsigned count, Shared& shared) {
  if (threadIdx.x == 0) {
    shared.ticket = __nv_atomic_fetch_add(counter, parts, __NV_ATOMIC_ACQ_REL, __NV_THREAD_SCOPE_DEVICE);
    if (shared.ticket == count - parts) {
      __nv_atomic_store_n(counter, 0u, __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE);
    }
  }
  __syncthreads();
  return shared.ticket == count - parts;
}

// Add the sums that other blocks left at `sums`, by the tree over their index, padded with +0.0. All threads must call;
// the first gets the sum. `sums` is overwritten.
//
// Each round adds aligned groups of THREADS and leaves their sums at the front: a group's place has been read when it is
// written, for it lies at or before the group itself.
__device__ __forceinline__ Sums add_left(Sums* sums, unsigned count, Shared& shared) {
  Sums sum;
  do {
    unsigned padded = 1;
    while (padded < count) padded *= 2;
    const unsigned groups = (count + THREADS - 1) / THREADS;
    for (unsigned group = 0; group < groups; ++group) {
      const unsigned i = group * THREADS + threadIdx.x;
      // Threads past the padding add -0.0, which leaves every sum as it is, a penalty of -0.0 too.
      const double absent = i < padded ? 0.0 : -0.0;
      sum = add_threads(i < count ? load_relaxed(sums + i) : Sums{absent, absent}, shared);
      if (threadIdx.x == 0) sums[group] = sum;
    }
    __syncthreads();
    count = groups;
  } while (count > 1);
  return sum;
}
