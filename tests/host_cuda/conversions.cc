// The conversions of kernels/element.cuh, each over an array, so that tests can try every number.
#include <stddef.h>

#include "device.h"

namespace conversions {

#include "element.cuh"

template <class Element>
void load_all(const Element* from, float* to, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = load(from[i]);
}

template <class Element>
void store_all(const float* from, Element* to, size_t count) {
  for (size_t i = 0; i < count; ++i) store(to[i], from[i]);
}

HOST_CUDA_EXPORT void host_cuda_load_float16(const Half* from, float* to, size_t count) { load_all(from, to, count); }

HOST_CUDA_EXPORT void host_cuda_load_bfloat16(const BFloat16* from, float* to, size_t count) {
  load_all(from, to, count);
}

HOST_CUDA_EXPORT void host_cuda_store_float16(const float* from, Half* to, size_t count) { store_all(from, to, count); }

HOST_CUDA_EXPORT void host_cuda_store_bfloat16(const float* from, BFloat16* to, size_t count) {
  store_all(from, to, count);
}

}  // namespace conversions
