// Statistics of any number of tensors in one launch: the sums of |w| and w * w as penalty.cu adds them, and how many
// elements are zero, below a threshold, NaN and infinite, and the bits of the largest |w| that is not NaN.
//
// A block takes a tile, a thread 16 bytes of each of its rows. All but the sums is made of the bits without the sign,
// which rise as the numbers do. NaN and infinities are looked for by the threads whose largest bits say that there are
// any: they read their elements again.
//
// The result is one record for each group of tiles. Its sums are added by the tree, by the block that takes the group's
// last ticket. The rest are integers, of which any order gives the same: each warp adds its own to the record.
#include "element.cuh"
#include "tree.cuh"

constexpr int ROWS = GPUREG_TILE_BYTES / GPUREG_ROW_BYTES;

// One tensor, whose elements lie one after another.
struct Tensor {
  const void* weights;
  unsigned long long size;
  unsigned first_tile;   // among those of this launch
  unsigned first_group;  // among those of the call
};

// What is told of a group of tiles; all zero before the launch.
struct Group {
  Sums sums;
  unsigned long long zeros;
  unsigned long long below;
  unsigned long long nan;
  unsigned long long inf;
  unsigned long long largest;  // as bits
};

// One launch, over tensors of one dtype. Scratch is the call's alone; counters are zero before the launch and after it.
struct Pass {
  Tensor single;                 // the tensor, where there is one and no table,
  const Tensor* tensors;         // else a table of them,
  const unsigned* tensor_of;     // and for each block the index of its tensor
  unsigned long long infinity;   // the bits of infinity,
  unsigned long long threshold;  // and of the least number that is not below the threshold
  Sums* tile_sums;               // scratch: the sums of each tile of the launch
  unsigned* counters;            // for each group of the call
  Group* groups;                 // results
};

// The bits of an element without its sign.
__device__ __forceinline__ unsigned magnitude(Half x) { return x.bits & 0x7fffu; }

__device__ __forceinline__ unsigned magnitude(BFloat16 x) { return x.bits & 0x7fffu; }

__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ __forceinline__ unsigned long long magnitude(double x) {
  return static_cast<unsigned long long>(__double_as_longlong(x)) & 0x7fffffffffffffffull;
}

// What a thread has of its lanes of a tile.
template <class Weight>
struct Lanes {
  static constexpr int COUNT = 16 / sizeof(Weight);
  using Bits = decltype(magnitude(Weight()));

  double abs[COUNT];
  double squares[COUNT];
  unsigned zeros = 0;
  unsigned below = 0;
  unsigned nan = 0;
  unsigned inf = 0;
  Bits largest = 0;

  __device__ __forceinline__ Lanes() {
#pragma unroll
    for (int lane = 0; lane < COUNT; ++lane) abs[lane] = squares[lane] = 0.0;
  }

  __device__ __forceinline__ void add(int lane, Weight weight, Bits threshold) {
    const double x = load(weight);
    abs[lane] += fabs(x);
    // The square of at most 32 bits is exact in float64, so that fusing it changes no bit.
    squares[lane] = sizeof(Weight) < 8 ? __fma_rn(x, x, squares[lane]) : squares[lane] + x * x;
    const Bits bits = magnitude(weight);
    zeros += bits == 0;
    below += bits < threshold;
    largest = bits > largest ? bits : largest;
  }

  // The sum of the lanes, neighbours first.
  __device__ __forceinline__ Sums sum() {
#pragma unroll
    for (int count = COUNT / 2; count > 0; count /= 2) {
#pragma unroll
      for (int lane = 0; lane < count; ++lane) {
        abs[lane] = abs[2 * lane] + abs[2 * lane + 1];
        squares[lane] = squares[2 * lane] + squares[2 * lane + 1];
      }
    }
    return {abs[0], squares[0]};
  }
};

// How many rows a thread reads before it uses the first, and blocks that share a multiprocessor: with both, 48 KB or more
// are in flight on each, as penalty.cu has it for values.
template <class Weight>
constexpr int ROWS_AT_A_TIME = sizeof(Weight) > 2 ? 8 : 4;

template <class Weight>
constexpr int BLOCKS = sizeof(Weight) > 2 ? 5 : 6;

// Call a function with the lane and the value of each of this thread's elements of a tile of any alignment.
template <class Weight, class Function>
__device__ __forceinline__ void for_each(const Weight* weights, int size, const Function& function) {
  constexpr int COUNT = 16 / sizeof(Weight), ROW = THREADS * COUNT;
#pragma unroll 1
  for (int row = 0; row * ROW < size; ++row) {
#pragma unroll
    for (int lane = 0; lane < COUNT; ++lane) {
      const int i = row * ROW + static_cast<int>(threadIdx.x) * COUNT + lane;
      if (i < size) function(lane, weights[i]);
    }
  }
}

template <class Weight>
__device__ __forceinline__ void pass_tile(const Pass& call, const Weight* weights, int size, Lanes<Weight>& lanes) {
  using Bits = typename Lanes<Weight>::Bits;
  constexpr int COUNT = Lanes<Weight>::COUNT, ROW = THREADS * COUNT, UNROLL = ROWS_AT_A_TIME<Weight>;
  const Bits threshold = static_cast<Bits>(call.threshold), infinity = static_cast<Bits>(call.infinity);
  if (reinterpret_cast<unsigned long long>(weights) % 16 == 0 && size == ROWS * ROW) {
#pragma unroll 1
    for (int row = 0; row < ROWS; row += UNROLL) {
      const int first = row * ROW + static_cast<int>(threadIdx.x) * COUNT;
      Pack<Weight, COUNT> w[UNROLL];
#pragma unroll
      for (int i = 0; i < UNROLL; ++i) w[i].read(weights + first + i * ROW);
#pragma unroll
      for (int i = 0; i < UNROLL; ++i) {
#pragma unroll
        for (int lane = 0; lane < COUNT; ++lane) lanes.add(lane, w[i].element[lane], threshold);
      }
    }
  } else {
    for_each(weights, size, [&](int lane, Weight weight) { lanes.add(lane, weight, threshold); });
  }
  if (lanes.largest >= infinity) {
    lanes.largest = 0;
    for_each(weights, size, [&](int, Weight weight) {
      const Bits bits = magnitude(weight);
      lanes.nan += bits > infinity;
      lanes.inf += bits == infinity;
      if (bits <= infinity && bits > lanes.largest) lanes.largest = bits;
    });
  }
}

// Add what a warp counted to its group's record. All its threads must call.
//
// The four counts of a thread are packed into one word: those of a warp, which has at most 4,096 elements of a tile, do
// not overflow the 16 bits of each.
template <class Weight>
__device__ __forceinline__ void add_counts(const Lanes<Weight>& lanes, Group& group) {
  unsigned long long counts = lanes.inf, largest = lanes.largest;
  counts = ((counts << 16 | lanes.nan) << 16 | lanes.below) << 16 | lanes.zeros;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    counts += __shfl_xor_sync(0xffffffffu, counts, distance);
    const unsigned long long other = __shfl_xor_sync(0xffffffffu, largest, distance);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % 32 == 0) {
    unsigned long long* const places[] = {&group.zeros, &group.below, &group.nan, &group.inf};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned long long count = counts >> 16 * i & 0xffffu;
      if (count) __nv_atomic_fetch_add(places[i], count, __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE);
    }
    __nv_atomic_fetch_max(&group.largest, largest, __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE);
  }
}

template <class Weight>
__global__ void __launch_bounds__(THREADS, BLOCKS<Weight>) statistics_pass(const Pass call) {
  constexpr unsigned TILE = GPUREG_TILE_BYTES / sizeof(Weight);
  __shared__ Shared shared;
  const Tensor tensor = call.tensors ? call.tensors[call.tensor_of[blockIdx.x]] : call.single;
  const unsigned tile = blockIdx.x - tensor.first_tile;
  const unsigned long long start = static_cast<unsigned long long>(tile) * TILE, left = tensor.size - start;
  const Weight* const weights = static_cast<const Weight*>(tensor.weights) + start;
  // Said, for a pointer out of a table could lead anywhere, and loads from anywhere are slower.
  __builtin_assume(__isGlobal(weights));
  Lanes<Weight> lanes;
  pass_tile(call, weights, static_cast<int>(left < TILE ? left : TILE), lanes);

  const unsigned index = tensor.first_group + tile / GROUP;
  Group& group = call.groups[index];
  add_counts(lanes, group);
  Sums sums = add_threads(lanes.sum(), shared);
  const unsigned tiles = static_cast<unsigned>((tensor.size + TILE - 1) / TILE), first = tile / GROUP * GROUP;
  const unsigned members = tiles - first < GROUP ? tiles - first : GROUP;
  if (members > 1) {
    if (threadIdx.x == 0) call.tile_sums[blockIdx.x] = sums;
    if (!is_last(call.counters + index, 1, members, shared)) return;
    sums = add_left(call.tile_sums + (tensor.first_tile + first), members, shared);
  }
  if (threadIdx.x == 0) group.sums = sums;
}
