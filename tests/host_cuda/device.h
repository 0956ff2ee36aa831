// What CUDA gives to a kernel, for kernels that run on the host: to be included before their source.
//
// Whatever makes a thread wait, or must be refused, is the simulator's: fibres.cc or threads.cc.
#pragma once

#include <math.h>  // fabs of every type, outside of any namespace
#include <stdint.h>
#include <string.h>

// Qualifiers. A shared variable is declared where the kernel has it and defined after the kernel's source, so that the
// simulator can reach it, to fill it with NaN before each block.
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ extern

// What the library shows.
#define HOST_CUDA_EXPORT extern "C" __attribute__((visibility("default")))

// Each thread has its own index. Fibres share one variable, which is set whenever one goes on.
#ifdef HOST_CUDA_THREADS
#define HOST_CUDA_OWN __thread
#else
#define HOST_CUDA_OWN
#endif

struct Index {
  unsigned x, y, z;
};

extern HOST_CUDA_OWN Index threadIdx, blockIdx;
extern Index blockDim, gridDim;

namespace host {

// A line of the kernel: where a thread waits.
struct Place {
  const char* file;
  int line;
};

// End the launch with a message, to which the kernel, the block and the thread are added.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void barrier(Place place);

double shuffle(Place place, unsigned mask, double value, int distance);

template <class To, class From>
__forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits are neither lost nor made up");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// How many vectors of 16 and of 8 bytes this launch moved. Threads of the system count each their own, for no one.
extern HOST_CUDA_OWN uint64_t moved_vectors[2];

// The device refuses a vector that does not lie at a multiple of its size.
template <class Vector>
__forceinline__ void copy_vector(Vector* to, const Vector* from) {
  uintptr_t places[] = {reinterpret_cast<uintptr_t>(to), reinterpret_cast<uintptr_t>(from)};
  for (uintptr_t& place : places) {
    asm("" : "+r"(place));  // else the compiler takes for granted what is asked here
    if (place % sizeof(Vector)) {
      fail("a vector of %zu bytes at %#zx is misaligned", sizeof(Vector), static_cast<size_t>(place));
    }
  }
  memcpy(static_cast<void*>(to), static_cast<const void*>(from), sizeof(Vector));
  ++moved_vectors[sizeof(Vector) == 8];
}

}  // namespace host

struct alignas(16) uint4 {
  unsigned x, y, z, w;

  uint4() = default;
  uint4(const uint4& other) { host::copy_vector(this, &other); }
  uint4& operator=(const uint4& other) {
    host::copy_vector(this, &other);
    return *this;
  }
};

struct alignas(8) uint2 {
  unsigned x, y;

  uint2() = default;
  uint2(const uint2& other) { host::copy_vector(this, &other); }
  uint2& operator=(const uint2& other) {
    host::copy_vector(this, &other);
    return *this;
  }
};

// The defaults are evaluated where the kernel calls.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  host::barrier({file, line});
}

inline double __shfl_xor_sync(unsigned mask, double value, int distance, int width = 32,
                              const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (width != 32) host::fail("a shuffle of %d lanes, of 32 only is known here", width);
  return host::shuffle({file, line}, mask, value, distance);
}

inline unsigned long long __shfl_xor_sync(unsigned mask, unsigned long long value, int distance, int width = 32,
                                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const double bits = host::bits_as<double>(value);
  return host::bits_as<unsigned long long>(__shfl_xor_sync(mask, bits, distance, width, file, line));
}

// What a kernel tells the compiler must be so. All memory of the host is what the device calls global.
#define __isGlobal(pointer) true
#define __builtin_assume(condition) ((condition) ? static_cast<void>(0) : host::fail("not so: %s", #condition))

// Atomics, with the order that is asked for; one whose scope leaves out other blocks orders nothing between them.
// Macros, for the compiler must see the order as a constant.
#define __NV_ATOMIC_RELAXED __ATOMIC_RELAXED
#define __NV_ATOMIC_CONSUME __ATOMIC_CONSUME
#define __NV_ATOMIC_ACQUIRE __ATOMIC_ACQUIRE
#define __NV_ATOMIC_RELEASE __ATOMIC_RELEASE
#define __NV_ATOMIC_ACQ_REL __ATOMIC_ACQ_REL
#define __NV_ATOMIC_SEQ_CST __ATOMIC_SEQ_CST
#define __NV_THREAD_SCOPE_THREAD 0
#define __NV_THREAD_SCOPE_BLOCK 1
#define __NV_THREAD_SCOPE_CLUSTER 2
#define __NV_THREAD_SCOPE_DEVICE 3
#define __NV_THREAD_SCOPE_SYSTEM 4
#define HOST_CUDA_ORDER(order, scope) ((scope) >= __NV_THREAD_SCOPE_DEVICE ? (order) : __ATOMIC_RELAXED)
#define __nv_atomic_load_n(from, order, scope) __atomic_load_n(from, HOST_CUDA_ORDER(order, scope))
#define __nv_atomic_store_n(to, value, order, scope) __atomic_store_n(to, value, HOST_CUDA_ORDER(order, scope))
#define __nv_atomic_fetch_add(at, value, order, scope) __atomic_fetch_add(at, value, HOST_CUDA_ORDER(order, scope))
#define __nv_atomic_fetch_max(at, value, order, scope) host::fetch_max(at, value, HOST_CUDA_ORDER(order, scope))

namespace host {

template <class T>
__forceinline__ T fetch_max(T* at, T value, int order) {
  T found = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (found < value && !__atomic_compare_exchange_n(at, &found, value, true, order, __ATOMIC_RELAXED)) {
  }
  return found;
}

}  // namespace host

__forceinline__ double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }

__forceinline__ float __uint_as_float(unsigned bits) { return host::bits_as<float>(bits); }

__forceinline__ unsigned __float_as_uint(float value) { return host::bits_as<unsigned>(value); }

__forceinline__ double __longlong_as_double(long long bits) { return host::bits_as<double>(bits); }

__forceinline__ long long __double_as_longlong(double value) { return host::bits_as<long long>(value); }
