// L1 and L2 penalties of weight tensors and their gradients, in one pass over memory and one launch.
//
//   penalty  = l1 * sum|w| + l2 * sum w*w         float64, rounded once
//   gradient = c1 * sign(w) + c2 * w              c1 = l1 * strength * upstream, c2 = 2 * l2 * strength * upstream
//
// to the last bit as docs/arithmetic.md has it. A block of THREADS threads takes one tile, a thread the lanes of one
// 16-byte word of each row. So a row is one load of the block, and a thread has as many loads in flight as rows are
// unrolled. Where a tile is ragged or memory misaligned, the same thread takes the same lanes element by element. Tensors
// of a table that a warp reads in one load share a block, a warp each.
//
// Weights are read once, gradients read and written once, nothing else but 16 bytes of sums for each tile.
#include "element.cuh"
#include "factor.cuh"
#include "tree.cuh"

constexpr int ROWS = GPUREG_TILE_BYTES / GPUREG_ROW_BYTES;

// What a pass does with the gradient; `gpureg.backends.Mode` has the same names.
enum Mode { VALUE, GRADIENT, VALUE_AND_GRADIENT, ACCUMULATE };

// One tensor of a call.
struct Tensor {
  unsigned long long size;
  double l1;
  double l2;
  double twice_l2;
  unsigned leaf;         // its place among all tensors of the call, which other launches may share
  unsigned first_tile;   // its first tile, among those of this launch; an empty tensor has one tile too
  unsigned first_group;  // its first group of tiles, among those of the call
};

// Where a tensor lies: the elements of weights and gradient one after another, in the same order.
struct Place {
  const void* weights;
  void* gradient;
};

// One call: a launch for each pair of dtypes in it, one after another on one stream. Scratch is the call's alone; counters
// are zero before it and after it.
struct Call {
  Tensor single;              // the tensor, where there is one and no table,
  Place place;                // and its place;
  const Tensor* tensors;      // else a table of those of this launch, first those with blocks of their own,
  const Place* places;        // their places,
  const unsigned* tensor_of;  // and for each of those blocks the index of its tensor
  unsigned blocks;            // how many blocks are one tensor's,
  unsigned large;             // how many tensors have such blocks,
  unsigned launched;          // and how many there are in this launch
  unsigned count;             // how many tensors the call has,
  unsigned groups;            // and groups in all
  Factor strength;            // over all coefficients
  Factor upstream;            // over gradients alone
  double divisor;
  Sums* tile_sums;     // scratch: the sums of each tile,
  Sums* group_sums;    // of each group of tiles,
  Sums* penalties;     // and each tensor's penalty, as `abs`
  unsigned* counters;  // for each group, for each tensor, and one for the call
  Sums* sums;          // results: the sums of each tensor,
  double* each;        // its penalty, and at the end the total: the sum of all over the divisor,
  float* rounded;      // and all these rounded to float32
};

// A thread's lanes of a tile, and what is done with each element that belongs to them.
template <class Weight, class Gradient, Mode MODE, bool ABS, bool SQUARES>
struct Lanes {
  using C = typename Compute<Weight>::type;
  static constexpr int COUNT = 16 / sizeof(Weight);

  C c1;
  C c2;
  double abs[COUNT];
  double squares[COUNT];

  __device__ __forceinline__ void start(const Tensor& tensor, double strength, double upstream) {
    c1 = static_cast<C>(tensor.l1 * strength * upstream);
    c2 = static_cast<C>(tensor.twice_l2 * strength * upstream);
#pragma unroll
    for (int lane = 0; lane < COUNT; ++lane) abs[lane] = squares[lane] = 0.0;
  }

  // Whether the gradient must be touched at all: adding nothing leaves its bits, even -0.0.
  __device__ __forceinline__ bool writes() const {
    return MODE != VALUE && (MODE != ACCUMULATE || c1 != 0 || c2 != 0);
  }

  __device__ __forceinline__ void add(int lane, Weight weight) {
    if constexpr (MODE == GRADIENT) return;
    const double x = load(weight);
    if (ABS) abs[lane] += fabs(x);
    // The square of at most 32 bits is exact in float64, so that fusing it changes no bit.
    if (SQUARES) squares[lane] = sizeof(Weight) < 8 ? __fma_rn(x, x, squares[lane]) : squares[lane] + x * x;
  }

  __device__ __forceinline__ void write(Weight weight, Gradient& gradient) const {
    const C x = load(weight);
    const C sign = x > 0 ? C(1) : x < 0 ? C(-1) : x == 0 ? C(0) : x;  // NaN for NaN
    const C first = c1 * sign, second = c2 * x;
    // A term whose coefficient is zero is left out; with neither the gradient is +0.0.
    C g = c2 == 0 ? first : c1 == 0 ? second : first + second;
    if (c1 == 0 && c2 == 0) g = C(0);
    if (MODE == ACCUMULATE) g = static_cast<C>(load(gradient)) + g;
    store(gradient, g);
  }

  // The sum of the lanes, neighbours first.
  __device__ __forceinline__ Sums sum() {
#pragma unroll
    for (int count = COUNT / 2; count > 0; count /= 2) {
#pragma unroll
      for (int lane = 0; lane < count; ++lane) {
        if (ABS) abs[lane] = abs[2 * lane] + abs[2 * lane + 1];
        if (SQUARES) squares[lane] = squares[2 * lane] + squares[2 * lane + 1];
      }
    }
    return {abs[0], squares[0]};
  }
};

// Blocks that share a multiprocessor: told to the compiler, so that it spends the registers, 85 to 128 for a thread, on
// loads in flight instead of saving them for threads that are not needed.
template <class Weight, class Gradient, Mode MODE>
constexpr int BLOCKS = sizeof(Weight) > 2 ? 5 : MODE == ACCUMULATE && sizeof(Gradient) == 2 ? 6 : 4;

// How many rows a thread reads before it uses the first. With the blocks that fit a multiprocessor that is 48 KB or more
// in flight on each for values and accumulation, what an H200 needs to keep its memory busy.
template <class Weight, class Gradient, Mode MODE>
constexpr int ROWS_AT_A_TIME = MODE == VALUE ? 8 : MODE == ACCUMULATE && sizeof(Weight) == 2 ? 2 : 4;

// Pass over a whole tile whose weights and gradient are aligned to 16 bytes.
//
// UNROLL rows are read before the first of them is used.
template <int UNROLL, class Weight, class Gradient, Mode MODE, bool ABS, bool SQUARES>
__device__ __forceinline__ void pass_whole(
    Lanes<Weight, Gradient, MODE, ABS, SQUARES>& lanes, const Weight* weights, Gradient* gradient) {
  constexpr int COUNT = 16 / sizeof(Weight), ROW = THREADS * COUNT;
  const bool writes = lanes.writes();
#pragma unroll 1
  for (int row = 0; row < ROWS; row += UNROLL) {
    const int first = row * ROW + static_cast<int>(threadIdx.x) * COUNT;
    Pack<Weight, COUNT> w[UNROLL];
    Pack<Gradient, COUNT> g[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) w[i].read(weights + first + i * ROW);
    if (MODE == ACCUMULATE && writes) {
#pragma unroll
      for (int i = 0; i < UNROLL; ++i) g[i].read(gradient + first + i * ROW);
    }
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
#pragma unroll
      for (int lane = 0; lane < COUNT; ++lane) lanes.add(lane, w[i].element[lane]);
    }
    if (writes) {
#pragma unroll
      for (int i = 0; i < UNROLL; ++i) {
#pragma unroll
        for (int lane = 0; lane < COUNT; ++lane) lanes.write(w[i].element[lane], g[i].element[lane]);
        g[i].write(gradient + first + i * ROW);
      }
    }
  }
}

// The same for a tile of any alignment that has `size` elements, one by one.
template <class Weight, class Gradient, Mode MODE, bool ABS, bool SQUARES>
__device__ __forceinline__ void pass_ragged(
    Lanes<Weight, Gradient, MODE, ABS, SQUARES>& lanes, const Weight* weights, Gradient* gradient, int size) {
  constexpr int COUNT = 16 / sizeof(Weight), ROW = THREADS * COUNT;
  const bool writes = lanes.writes();
#pragma unroll 1
  for (int row = 0; row * ROW < size; ++row) {
#pragma unroll
    for (int lane = 0; lane < COUNT; ++lane) {
      const int i = row * ROW + static_cast<int>(threadIdx.x) * COUNT + lane;
      if (i < size) {
        const Weight w = weights[i];
        lanes.add(lane, w);
        if (writes) lanes.write(w, gradient[i]);
      }
    }
  }
}

__device__ __forceinline__ double penalty(const Tensor& tensor, double strength, Sums sums) {
  const double l1 = tensor.l1 * strength, l2 = tensor.l2 * strength;
  // A term whose coefficient is zero is left out, so that 0 * inf cannot arise; without any the penalty is +0.0.
  if (l2 == 0) return l1 == 0 ? 0.0 : l1 * sums.abs;
  return l1 == 0 ? l2 * sums.squares : l1 * sums.abs + l2 * sums.squares;
}

// Add this block's sums to those of its tensor's other tiles. Return whether this block is the last to do so: in it the
// first thread then has the tensor's sums. A group of one tile and a tensor of one group need no ticket.
__device__ __forceinline__ bool finish_tensor(
    const Call& call, const Tensor& tensor, unsigned tile, unsigned tiles, Sums& sums, Shared& shared) {
  const unsigned group = tile / GROUP, groups = (tiles + GROUP - 1) / GROUP;
  const unsigned first_tile = tensor.first_tile + group * GROUP;
  const unsigned members = tiles - group * GROUP < GROUP ? tiles - group * GROUP : GROUP;
  if (members > 1) {
    if (threadIdx.x == 0) call.tile_sums[tensor.first_tile + tile] = sums;
    if (!is_last(call.counters + tensor.first_group + group, 1, members, shared)) return false;
    sums = add_left(call.tile_sums + first_tile, members, shared);
  }
  if (groups > 1) {
    if (threadIdx.x == 0) call.group_sums[tensor.first_group + group] = sums;
    if (!is_last(call.counters + call.groups + tensor.leaf, 1, groups, shared)) return false;
    sums = add_left(call.group_sums + tensor.first_group, groups, shared);
  }
  return true;
}

// Write what a tensor comes to, and return its penalty; only a thread that has its sums may call.
__device__ __forceinline__ double write_penalty(const Call& call, const Tensor& tensor, double strength, Sums sums) {
  const double value = penalty(tensor, strength, sums);
  call.sums[tensor.leaf] = sums;
  call.each[tensor.leaf] = value;
  call.rounded[tensor.leaf] = static_cast<float>(value);
  call.penalties[tensor.leaf] = {value, 0.0};
  return value;
}

// Write the total, if the tensors that this block is done with, `value` the penalty of the first, are the last of the
// call. All threads must call; the value is the first one's.
__device__ __forceinline__ void finish_call(const Call& call, unsigned done, double value, Shared& shared) {
  if (call.count > 1) {
    if (!is_last(call.counters + call.groups + call.count, done, call.count, shared)) return;
    value = add_left(call.penalties, call.count, shared).abs;
  }
  if (threadIdx.x == 0) {
    const double total = value / call.divisor;
    call.each[call.count] = total;
    call.rounded[call.count] = static_cast<float>(total);
  }
}

// Pass over tensors that one warp reads at once, a warp each: the lanes that other warps would have are all empty, and to
// add their +0.0 changes no bit. Return how many tensors these are; the first thread has the first one's penalty.
template <class Weight, class Gradient, Mode MODE, bool ABS, bool SQUARES>
__device__ __forceinline__ unsigned pass_small(const Call& call, double strength, double upstream, double& value) {
  constexpr int COUNT = 16 / sizeof(Weight);
  const unsigned first = call.large + (blockIdx.x - call.blocks) * WARPS, index = first + threadIdx.x / 32;
  if (index < call.launched) {
    const Tensor tensor = call.tensors[index];
    const Place place = call.places[index];
    const Weight* const weights = static_cast<const Weight*>(place.weights);
    Gradient* const gradient = static_cast<Gradient*>(place.gradient);
    Lanes<Weight, Gradient, MODE, ABS, SQUARES> lanes;
    lanes.start(tensor, strength, upstream);
    const bool writes = lanes.writes();
#pragma unroll
    for (int lane = 0; lane < COUNT; ++lane) {
      const unsigned i = threadIdx.x % 32 * COUNT + lane;
      if (i < tensor.size) {
        const Weight w = weights[i];
        lanes.add(lane, w);
        if (writes) lanes.write(w, gradient[i]);
      }
    }
    if constexpr (MODE != GRADIENT) {
      const Sums sums = add_warp(lanes.sum());
      if (threadIdx.x % 32 == 0) value = write_penalty(call, tensor, strength, sums);
    }
  }
  __syncthreads();  // each warp's penalty is there when the first thread takes a ticket
  return call.launched - first < WARPS ? call.launched - first : WARPS;
}

// Pass over one tile of a tensor. Return whether the tensor is done, and the first thread then has its penalty.
template <class Weight, class Gradient, Mode MODE, bool ABS, bool SQUARES>
__device__ __forceinline__ bool pass_tile(
    const Call& call, double strength, double upstream, double& value, Shared& shared) {
  constexpr unsigned TILE = GPUREG_TILE_BYTES / sizeof(Weight);
  const unsigned index = call.tensors ? call.tensor_of[blockIdx.x] : 0;
  const Tensor tensor = call.tensors ? call.tensors[index] : call.single;
  const Place place = call.tensors ? call.places[index] : call.place;
  const unsigned tile = blockIdx.x - tensor.first_tile;
  const unsigned long long start = static_cast<unsigned long long>(tile) * TILE, left = tensor.size - start;
  const Weight* const weights = static_cast<const Weight*>(place.weights) + start;
  Gradient* const gradient = MODE == VALUE ? nullptr : static_cast<Gradient*>(place.gradient) + start;

  // Said, for a pointer out of a table could lead anywhere, and loads from anywhere are slower.
  __builtin_assume(__isGlobal(weights));
  if constexpr (MODE != VALUE) __builtin_assume(__isGlobal(gradient));

  Lanes<Weight, Gradient, MODE, ABS, SQUARES> lanes;
  lanes.start(tensor, strength, upstream);
  const bool aligned =
      (reinterpret_cast<unsigned long long>(weights) | reinterpret_cast<unsigned long long>(gradient)) % 16 == 0;
  if (aligned && left >= TILE) {
    pass_whole<ROWS_AT_A_TIME<Weight, Gradient, MODE>>(lanes, weights, gradient);
  } else {
    pass_ragged(lanes, weights, gradient, static_cast<int>(left < TILE ? left : TILE));
  }
  if constexpr (MODE != GRADIENT) {
    Sums sums = add_threads(lanes.sum(), shared);
    const unsigned long long tiles = (tensor.size + TILE - 1) / TILE;  // 0 for an empty tensor, which has a block too
    if (!finish_tensor(call, tensor, tile, static_cast<unsigned>(tiles), sums, shared)) return false;
    if (threadIdx.x == 0) value = write_penalty(call, tensor, strength, sums);
  }
  return true;
}

template <class Weight, class Gradient, Mode MODE, bool ABS, bool SQUARES>
__global__ void __launch_bounds__(THREADS, BLOCKS<Weight, Gradient, MODE>) penalty_pass(const Call call) {
  __shared__ Shared shared;
  const double strength = call.strength.get(), upstream = MODE == VALUE ? 1.0 : call.upstream.get();
  double value = 0.0;
  unsigned done;  // tensors
  if (call.tensors && blockIdx.x >= call.blocks) {
    done = pass_small<Weight, Gradient, MODE, ABS, SQUARES>(call, strength, upstream, value);
  } else {
    done = pass_tile<Weight, Gradient, MODE, ABS, SQUARES>(call, strength, upstream, value, shared);
  }
  if (MODE != GRADIENT && done) finish_call(call, done, value, shared);
}
