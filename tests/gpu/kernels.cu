// Kernels that only the GPU tests have: one that holds up a stream, and one fault for each tool of the sanitizer.

__device__ unsigned long long nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Wait until the host has set the flag, or for so many nanoseconds.
extern "C" __global__ void wait(const volatile unsigned* open, unsigned long long most) {
  const unsigned long long start = nanoseconds();
  while (*open == 0 && nanoseconds() - start < most) {
  }
}

// Faults, each of which one tool must see: `size` elements are there, and as many threads and one more.

// memcheck: the last thread writes past the end.
extern "C" __global__ void memcheck(int* numbers, int) { numbers[threadIdx.x] = 1; }

// racecheck: a thread reads what its neighbour writes, with no barrier between.
extern "C" __global__ void racecheck(int* numbers, int size) {
  __shared__ volatile int shared[1024];
  shared[threadIdx.x] = threadIdx.x;
  const int neighbour = shared[(threadIdx.x + 32) % blockDim.x];
  if (threadIdx.x < size) numbers[threadIdx.x] = neighbour;
}

// synccheck: a warp of which some threads are not there meets at a barrier of all.
extern "C" __global__ void synccheck(int* numbers, int size) {
  if (threadIdx.x < size - 5) {
    numbers[threadIdx.x] = threadIdx.x;
    __syncthreads();
    numbers[threadIdx.x] += numbers[size - 6 - threadIdx.x];
  }
}

// initcheck: what nobody has written is read.
extern "C" __global__ void initcheck(int* numbers, int size) {
  if (threadIdx.x < size) numbers[threadIdx.x] += 1;
}
