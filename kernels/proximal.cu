// The proximal step of L1 and L2 penalties, in place:
//
//   w = sign(w) * max(|w| - threshold, 0)      and then, with an L2 term, w / divisor
//
// to the last bit as docs/arithmetic.md has it. A thread takes 16 bytes of a row, as in penalty.cu; there is nothing to
// add, so blocks have nothing to do with each other.
#include "element.cuh"

constexpr int THREADS = GPUREG_ROW_BYTES / 16;
constexpr int ROWS = GPUREG_TILE_BYTES / GPUREG_ROW_BYTES;
constexpr int ROWS_AT_A_TIME = 4;

// One tensor, whose elements lie one after another.
struct Step {
  void* weights;
  unsigned long long size;
  double threshold;  // step * l1
  double divisor;    // 1 + step * 2 * l2
  bool divides;      // whether there is an L2 term
};

template <class Weight>
__device__ __forceinline__ void step_once(Weight& weight, const Step& step) {
  using C = typename Compute<Weight>::type;
  const C x = load(weight), shrunk = fabs(x) - static_cast<C>(step.threshold);
  const C sign = x > 0 ? C(1) : x < 0 ? C(-1) : x == 0 ? C(0) : x;  // NaN for NaN
  C result = sign * (shrunk <= 0 ? C(0) : shrunk);                  // NaN is not <= 0, and stays
  if (step.divides) result = result / static_cast<C>(step.divisor);
  store(weight, result);
  // A zero result is +0.0, also where rounding to the weights' dtype made it.
  if (load(weight) == 0) store(weight, C(0));
}

template <class Weight>
__global__ void __launch_bounds__(THREADS) proximal_step(const Step step) {
  constexpr int COUNT = 16 / sizeof(Weight), ROW = THREADS * COUNT, TILE = ROWS * ROW;
  const unsigned long long start = static_cast<unsigned long long>(blockIdx.x) * TILE, left = step.size - start;
  Weight* const weights = static_cast<Weight*>(step.weights) + start;
  const int first = static_cast<int>(threadIdx.x) * COUNT;
  if (reinterpret_cast<unsigned long long>(weights) % 16 == 0 && left >= TILE) {
#pragma unroll 1
    for (int row = 0; row < ROWS; row += ROWS_AT_A_TIME) {
      Pack<Weight, COUNT> w[ROWS_AT_A_TIME];
#pragma unroll
      for (int i = 0; i < ROWS_AT_A_TIME; ++i) w[i].read(weights + (row + i) * ROW + first);
#pragma unroll
      for (int i = 0; i < ROWS_AT_A_TIME; ++i) {
#pragma unroll
        for (int lane = 0; lane < COUNT; ++lane) step_once(w[i].element[lane], step);
        w[i].write(weights + (row + i) * ROW + first);
      }
    }
    return;
  }
  const int size = static_cast<int>(left < TILE ? left : TILE);
#pragma unroll 1
  for (int row = 0; row * ROW < size; ++row) {
    for (int lane = 0; lane < COUNT; ++lane) {
      const int i = row * ROW + first + lane;
      if (i < size) step_once(weights[i], step);
    }
  }
}
