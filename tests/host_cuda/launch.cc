// The launch of a kernel by its name, common to both simulators.
#include <stdarg.h>
#include <stdio.h>

#include <mutex>

#include "simulator.h"

HOST_CUDA_OWN Index threadIdx, blockIdx;
Index blockDim, gridDim;

namespace host {

HOST_CUDA_OWN uint64_t moved_vectors[2];

namespace {

std::vector<const Kernel*>& registered() {
  static std::vector<const Kernel*> kernels;
  return kernels;
}

char message[1024];

}  // namespace

Registration::Registration(const Kernel* kernels, size_t count) {
  for (size_t i = 0; i < count; ++i) registered().push_back(kernels + i);
}

void report(const Kernel* kernel, const char* format, ...) {
  if (message[0]) return;
  const int length =
      kernel ? snprintf(message, sizeof(message), "%s, block %u, thread %u: ", kernel->name, blockIdx.x, threadIdx.x)
             : 0;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message + length, sizeof(message) - length, format, arguments);
  va_end(arguments);
}

}  // namespace host

// Launch a kernel over `grid` blocks, or over those of them that are listed. Return what went wrong, "" if nothing did;
// the text stays until this thread launches again.
HOST_CUDA_EXPORT const char* host_cuda_launch(const char* name, unsigned grid, const unsigned* blocks, unsigned count,
                                              const void* argument, size_t size, uint64_t seed) {
  static std::mutex one_at_a_time;
  static thread_local char result[sizeof(host::message)];
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  host::message[0] = 0;
  std::vector<const host::Kernel*> copies;
  for (const host::Kernel* kernel : host::registered()) {
    if (!strcmp(kernel->name, name)) copies.push_back(kernel);
  }
  if (copies.empty()) {
    host::report(nullptr, "no kernel here is called %s", name);
  } else if (copies[0]->size != size) {
    host::report(nullptr, "%s: the argument has %zu bytes, expected %zu", name, size, copies[0]->size);
  } else if (grid == 0) {
    host::report(nullptr, "%s: a grid of no blocks", name);
  } else {
    std::vector<unsigned> order(blocks, blocks + count);
    if (!blocks) {
      for (unsigned block = 0; block < grid; ++block) order.push_back(block);
    }
    host::Random random(seed);
    random.shuffle(order.data(), static_cast<unsigned>(order.size()));
    gridDim = {grid, 1, 1};
    blockDim = {copies[0]->threads, 1, 1};
    std::vector<uint64_t> aligned((size + 7) / 8);  // as the kernel's parameters are
    memcpy(aligned.data(), argument, size);
    memset(host::moved_vectors, 0, sizeof(host::moved_vectors));
    host::run_blocks(copies, aligned.data(), order, random);
  }
  memcpy(result, host::message, sizeof(result));
  return result;
}

// Tell how many vectors of 16 and of 8 bytes the last launch moved between memory and a kernel's own variables.
HOST_CUDA_EXPORT void host_cuda_moved_vectors(uint64_t counts[2]) {
  memcpy(counts, host::moved_vectors, sizeof(host::moved_vectors));
}
