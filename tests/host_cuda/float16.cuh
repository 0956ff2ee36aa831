// The conversions of float16 in integer arithmetic, in place of the instructions of kernels/float16.cuh.
#pragma once

__device__ __forceinline__ float float_of_half(unsigned short bits) {
  const unsigned sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | magnitude << 13);
  if (magnitude >= 0x400u) return __uint_as_float(sign | ((magnitude << 13) + (112u << 23)));
  // Subnormal: so many times 2**-24, which is an ordinary float.
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -value : value;
}

__device__ __forceinline__ unsigned short half_of_float(float value) {
  const unsigned bits = __float_as_uint(value), sign = (bits & 0x80000000u) >> 16, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;                                       // the NaN that the device makes
  if (magnitude >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);  // 65520 and more
  unsigned wide, shift;                                                              // the result is wide * 2**-shift
  if (magnitude >= 0x38800000u) {
    wide = magnitude - (112u << 23), shift = 13;
  } else {
    wide = (magnitude & 0x7fffffu) | 0x800000u, shift = 126 - (magnitude >> 23);
    if (shift > 24) return static_cast<unsigned short>(sign);
  }
  const unsigned kept = wide >> shift, rest = wide & ((1u << shift) - 1), half = 1u << (shift - 1);
  const unsigned up = rest > half || (rest == half && kept % 2);
  return static_cast<unsigned short>(sign | (kept + up));  // a carry goes to the exponent, as it must
}
