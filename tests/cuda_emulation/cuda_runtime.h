// A CUDA device made of CPU threads, as far as csrc/cuda/fragment_aggregate.cu needs one: blocks run one after the other, the
// threads of a block are threads, shared memory is one array that is filled with NaN first and watched beyond its end.
#pragma once

#include <torch/csrc/stable/macros.h>

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)
#undef STD_CUDA_CHECK
#undef STD_CUDA_KERNEL_LAUNCH_CHECK
#define STD_CUDA_CHECK(expression) static_cast<void>(expression)
#define STD_CUDA_KERNEL_LAUNCH_CHECK()

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
using std::sqrt;

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline std::unique_ptr<std::barrier<>> block_barrier;

namespace tas_fast {
inline double shared_memory[96 * 1024 / sizeof(double)];
}

inline void __syncthreads() {
  block_barrier->arrive_and_wait();
}

template <typename F>
int cudaFuncSetAttribute(F, int, int) {
  return 0;
}

template <typename Kernel, typename... Arguments>
void launch_on_threads(Kernel kernel, dim3 grid, int threads, int64_t bytes, cudaStream_t, Arguments... arguments) {
  gridDim = grid;
  blockDim = dim3(threads);
  auto* const memory = reinterpret_cast<unsigned char*>(tas_fast::shared_memory);
  constexpr int64_t size = sizeof(tas_fast::shared_memory);
  std::barrier<> between(threads);
  const auto run = [&](unsigned thread) {
    threadIdx = dim3(thread, 0, 0);
    for (unsigned block = 0; block < grid.x * grid.y; ++block) {
      if (thread == 0) {
        block_barrier = std::make_unique<std::barrier<>>(threads);
        for (int64_t i = 0; i < size; ++i) {
          memory[i] = i < bytes ? 0xff : 0x5a;  // all ones is NaN in every type
        }
      }
      between.arrive_and_wait();
      blockIdx = dim3(block % grid.x, block / grid.x, 0);
      kernel(arguments...);
      block_barrier->arrive_and_drop();
      between.arrive_and_wait();
      if (thread == 0) {
        for (int64_t i = bytes; i < size; ++i) {
          if (memory[i] != 0x5a) {
            std::fprintf(stderr, "a kernel wrote to byte %lld of %lld in shared memory\n", (long long)i, (long long)bytes);
            std::abort();
          }
        }
      }
    }
  };
  std::vector<std::thread> pool;
  for (int thread = 0; thread < threads; ++thread) {
    pool.emplace_back(run, thread);
  }
  for (auto& thread : pool) {
    thread.join();
  }
}
