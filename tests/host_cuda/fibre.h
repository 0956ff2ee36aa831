// A thread of execution that goes on only when another hands over to it: a stack and the registers that a call keeps.
//
// The switch is some twenty instructions; that of ucontext, which serves where there is no other, makes a system call.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(HOST_CUDA_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define HOST_CUDA_UCONTEXT
#endif

#ifdef HOST_CUDA_UCONTEXT
#include <ucontext.h>
#else

// Push the registers that a call keeps, leave the stack pointer at `from`, take `to`, and pop what lies there.
extern "C" void host_cuda_switch(void** from, void* to);

#ifdef __x86_64__
asm(R"(
  .text
  .hidden host_cuda_switch
  .globl host_cuda_switch
  .type host_cuda_switch, @function
host_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size host_cuda_switch, . - host_cuda_switch
)");
#else
asm(R"(
  .text
  .hidden host_cuda_switch
  .globl host_cuda_switch
  .type host_cuda_switch, %function
host_cuda_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size host_cuda_switch, . - host_cuda_switch
)");
#endif
#endif

namespace host {

class Fibre {
 public:
  // Be about to run `entry`, which must not return, on a stack.
  void prepare(void (*entry)(), char* stack, size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack, size);  // frames of a launch that was ended there
    stack_ = stack, size_ = size, fake_ = nullptr;
#endif
#ifdef HOST_CUDA_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    makecontext(&context_, entry, 0);
#else
    // What the switch pops: registers of any value, the address it returns to, and for `entry` that of no caller.
    uint64_t* top = reinterpret_cast<uint64_t*>(stack + size);
#ifdef __x86_64__
    constexpr int POPPED = 8, RETURN = 6;
#else
    constexpr int POPPED = 20, RETURN = 11;
#endif
    for (int i = 1; i <= POPPED; ++i) top[-i] = 0;
    top[RETURN - POPPED] = reinterpret_cast<uint64_t>(entry);
    pointer_ = top - POPPED;
#endif
  }

  // Leave this fibre, whose turn it is, for another, until another switches back.
  void switch_to(Fibre& other) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fake_, other.stack_, other.size_);
#endif
#ifdef HOST_CUDA_UCONTEXT
    swapcontext(&context_, &other.context_);
#else
    host_cuda_switch(&pointer_, other.pointer_);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr);
#endif
  }

  // First of all in `entry`: the fibre that switched to this one runs on a stack of its own.
  static void entered([[maybe_unused]] Fibre& from) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &from.stack_, &from.size_);
#endif
  }

 private:
#ifdef HOST_CUDA_UCONTEXT
  ucontext_t context_;
#else
  void* pointer_ = nullptr;
#endif
#ifdef __SANITIZE_ADDRESS__
  const void* stack_ = nullptr;
  size_t size_ = 0;
  void* fake_ = nullptr;
#endif
};

}  // namespace host
