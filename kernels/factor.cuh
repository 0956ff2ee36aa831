// A number that a kernel is given: in device memory, so that it may change without a new launch or a synchronisation, or
// in the kernel's argument.
#pragma once

struct Factor {
  const void* place;
  double number;
  bool is_float;  // whether what is there is a float, and no double

  __device__ __forceinline__ double get() const {
    if (!place) return number;
    return is_float ? *static_cast<const float*>(place) : *static_cast<const double*>(place);
  }
};
