// The proximal step of L1 and L2 penalties, in place, on any number of tensors in one launch:
//
//   w = sign(w) * max(|w| - threshold, 0)      and then, with an L2 term, w / divisor
//
// to the last bit as docs/arithmetic.md has it. A block takes a tile, a thread 16 bytes of each of its rows, as in
// penalty.cu; there is nothing to add, so blocks have nothing to do with each other.
#include "element.cuh"
#include "factor.cuh"

constexpr int THREADS = GPUREG_ROW_BYTES / 16;
constexpr int ROWS = GPUREG_TILE_BYTES / GPUREG_ROW_BYTES;
constexpr int ROWS_AT_A_TIME = 4;

// One tensor, whose elements lie one after another.
struct Step {
  void* weights;
  unsigned long long size;
  double l1;
  double twice_l2;
  unsigned first_tile;  // among those of the launch
};

// One launch.
struct Steps {
  Step single;                // the tensor, where there is one and no table,
  const Step* tensors;        // else a table of them,
  const unsigned* tensor_of;  // and for each block the index of its tensor
  const Factor* lengths;      // how far to step for each tensor of the table,
  Factor length;              // or for all, if there is no table of that
  Factor strength;            // over all coefficients
  Factor skips;               // if not 0, nothing is done
};

// What a step does with each element of a tensor.
template <class C>
struct Move {
  C threshold;
  C divisor;
  bool divides;

  __device__ __forceinline__ Move(const Step& step, double length, double strength) {
    const double l2 = step.twice_l2 * strength;
    threshold = static_cast<C>(length * (step.l1 * strength));
    divisor = static_cast<C>(1 + length * l2);
    divides = l2 != 0;
  }

  template <class Weight>
  __device__ __forceinline__ void operator()(Weight& weight) const {
    const C x = load(weight), shrunk = fabs(x) - threshold;
    const C sign = x > 0 ? C(1) : x < 0 ? C(-1) : x == 0 ? C(0) : x;  // NaN for NaN
    C result = sign * (shrunk <= 0 ? C(0) : shrunk);                  // NaN is not <= 0, and stays
    if (divides) result = result / divisor;
    store(weight, result);
    // A zero result is +0.0, also where rounding to the weights' dtype made it.
    if (load(weight) == 0) store(weight, C(0));
  }
};

template <class Weight>
__global__ void __launch_bounds__(THREADS) proximal_step(const Steps call) {
  constexpr int COUNT = 16 / sizeof(Weight), ROW = THREADS * COUNT, TILE = ROWS * ROW;
  if (call.skips.get() != 0) return;
  const unsigned index = call.tensors ? call.tensor_of[blockIdx.x] : 0;
  const Step step = call.tensors ? call.tensors[index] : call.single;
  const Factor length = call.lengths ? call.lengths[index] : call.length;
  const Move<typename Compute<Weight>::type> move(step, length.get(), call.strength.get());
  const unsigned tile = blockIdx.x - step.first_tile;
  const unsigned long long start = static_cast<unsigned long long>(tile) * TILE, left = step.size - start;
  Weight* const weights = static_cast<Weight*>(step.weights) + start;
  // Said, for a pointer out of a table could lead anywhere, and loads from anywhere are slower.
  __builtin_assume(__isGlobal(weights));
  if (reinterpret_cast<unsigned long long>(weights) % 16 == 0 && left >= TILE) {
    const int first = static_cast<int>(threadIdx.x) * COUNT;
#pragma unroll 1
    for (int row = 0; row < ROWS; row += ROWS_AT_A_TIME) {
      Pack<Weight, COUNT> w[ROWS_AT_A_TIME];
#pragma unroll
      for (int i = 0; i < ROWS_AT_A_TIME; ++i) w[i].read(weights + (row + i) * ROW + first);
#pragma unroll
      for (int i = 0; i < ROWS_AT_A_TIME; ++i) {
#pragma unroll
        for (int lane = 0; lane < COUNT; ++lane) move(w[i].element[lane]);
        w[i].write(weights + (row + i) * ROW + first);
      }
    }
    return;
  }
  const int size = static_cast<int>(left < TILE ? left : TILE);
#pragma unroll 1
  for (int row = 0; row * ROW < size; ++row) {
    for (int lane = 0; lane < COUNT; ++lane) {
      const int i = row * ROW + static_cast<int>(threadIdx.x) * COUNT + lane;
      if (i < size) move(weights[i]);
    }
  }
}
