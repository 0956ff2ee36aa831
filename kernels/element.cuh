// The element types of weights and gradients: how each is stored, and how it becomes a number and back.
//
// `load` is exact; `store` rounds once, to nearest even. The dtypes of 16 bits are kept as bits
// in types of their own, so that none is taken for an integer or for the other.
#pragma once

#include "float16.cuh"

struct Half {
  unsigned short bits;
};

struct BFloat16 {
  unsigned short bits;
};

// The type that gradients of weights T are formed in.
template <class T>
struct Compute {
  using type = float;
};

template <>
struct Compute<double> {
  using type = double;
};

__device__ __forceinline__ float load(Half x) { return float_of_half(x.bits); }

// A bfloat16 is the upper half of a float.
__device__ __forceinline__ float load(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ __forceinline__ float load(float x) { return x; }

__device__ __forceinline__ double load(double x) { return x; }

__device__ __forceinline__ void store(Half& to, float x) { to.bits = half_of_float(x); }

__device__ __forceinline__ void store(BFloat16& to, float x) {
  // Written out, for the instruction is missing before sm_80. Adding just under half a unit, and one more where the kept
  // part is odd, carries exactly where nearest even rounds up, also from the largest number to infinity.
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<unsigned short>(x != x ? 0x7fc0u : rounded);
}

__device__ __forceinline__ void store(float& to, float x) { to = x; }

__device__ __forceinline__ void store(float& to, double x) { to = static_cast<float>(x); }

__device__ __forceinline__ void store(double& to, double x) { to = x; }

// The largest word that divides a pack of so many bytes: 16 bytes, or 8 for two float32 gradients of float64 weights.
template <bool WHOLE>
struct WordOf {
  using type = uint4;
};

template <>
struct WordOf<false> {
  using type = uint2;
};

// N elements that lie side by side and are read or written in words.
template <class T, int N>
union Pack {
  using Word = typename WordOf<sizeof(T) * N % 16 == 0>::type;
  static constexpr int WORDS = sizeof(T) * N / sizeof(Word);

  T element[N];
  Word word[WORDS];

  __device__ __forceinline__ void read(const T* from) {
#pragma unroll
    for (int i = 0; i < WORDS; ++i) word[i] = reinterpret_cast<const Word*>(from)[i];
  }

  __device__ __forceinline__ void write(T* to) const {
#pragma unroll
    for (int i = 0; i < WORDS; ++i) reinterpret_cast<Word*>(to)[i] = word[i];
  }
};
