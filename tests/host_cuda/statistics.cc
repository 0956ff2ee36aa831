// kernels/statistics.cu as it is, in a namespace of its own, and a list of kernels of it that can be launched.
#include "simulator.h"

namespace HOST_CUDA_COPY {

#include "statistics.cu"

Shared shared;

#define KERNEL(...) {#__VA_ARGS__, THREADS, sizeof(Pass), host::run<Pass, __VA_ARGS__>, &shared, sizeof(shared)},
const host::Kernel kernels[] = {HOST_CUDA_KERNELS};
const host::Registration registration(kernels, sizeof(kernels) / sizeof(kernels[0]));

HOST_CUDA_LAYOUT

}  // namespace HOST_CUDA_COPY
