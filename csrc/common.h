// What the operators share: types, the two memory layouts of image batches, clones for the CPU's vector units.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

// One binary for every x86-64: the loader picks the clone for the machine. Clones do not reach into a function that is called,
// so the attribute belongs on the function that holds the loop, and that loop must call only what is inlined.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define TAS_FAST_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define TAS_FAST_CLONES
#endif

#define TAS_FAST_DISPATCH_FLOATING(TYPE, NAME, ...)                           \
  THO_DISPATCH_SWITCH(TYPE, NAME,                                             \
      THO_DISPATCH_CASE(torch::headeronly::ScalarType::Float, __VA_ARGS__)    \
      THO_DISPATCH_CASE(torch::headeronly::ScalarType::Double, __VA_ARGS__)   \
      THO_DISPATCH_CASE(torch::headeronly::ScalarType::BFloat16, __VA_ARGS__) \
      THO_DISPATCH_CASE(torch::headeronly::ScalarType::Half, __VA_ARGS__))

namespace tas_fast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type sums are kept in: float32, and float64 for float64.
template <typename T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <typename T>
using accumulate_t = typename accumulate<T>::type;

// True for an image batch [N, C, H, W] whose channels are adjacent in memory; a batch that is both (C = 1 or one pixel) counts
// as contiguous.
inline bool is_channels_last(const Tensor& x) {
  if (x.is_contiguous()) {
    return false;
  }
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) {
      return false;
    }
    expected *= x.size(dim);
  }
  return true;
}

inline MemoryFormat layout_of(const Tensor& x) {
  return is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Uninitialised [N, channels, H, W] beside x, in the layout of x.
inline Tensor empty_with_channels(const Tensor& x, int64_t channels) {
  const std::vector<int64_t> sizes{x.size(0), channels, x.size(2), x.size(3)};
  return torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt, layout_of(x));
}

}  // namespace tas_fast
