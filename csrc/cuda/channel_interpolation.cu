// Channel-wise interpolation on CUDA devices; tas_fast/ops/channel_interpolation.py says what it means.
#include "../channel_interpolation.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

namespace tas_fast {
namespace {

constexpr int threads = 256;
constexpr int64_t max_table_bytes = 48 * 1024;  // what every device grants without asking

// 16 bytes of T, loaded and stored as one access.
template <typename T, int size>
struct alignas(sizeof(T) * size) Pack {
  T value[size];
};

// The band in shared memory: 64-bit divisions for every element would cost more than the memory traffic. Each block fills its own.
// `scale` holds 1 / count of the forward rows: by row in the forward pass, by source channel in the backward pass.
template <typename A, bool backward>
struct Table {
  Band band;
  int32_t* first;
  A* scale;

  static int64_t bytes(Band band) {
    return (backward ? band.from : band.to) * sizeof(A) + (band.to * 2) * sizeof(int32_t);
  }

  // `memory` is null for bands too long for shared memory; they are computed at each use.
  __device__ Table(Band band, void* memory) : band(band), first(nullptr), scale(nullptr) {
    if (memory == nullptr) {
      return;
    }
    const int64_t scales = backward ? band.from : band.to;
    scale = static_cast<A*>(memory);
    first = reinterpret_cast<int32_t*>(scale + scales);
    for (int64_t r = threadIdx.x; r < band.to; r += blockDim.x) {
      first[2 * r] = static_cast<int32_t>(band.begin(r));
      first[2 * r + 1] = static_cast<int32_t>(band.end(r));
    }
    for (int64_t i = threadIdx.x; i < scales; i += blockDim.x) {
      scale[i] = compute_scale(i);
    }
    __syncthreads();
  }

  __device__ A compute_scale(int64_t i) const {
    return A(1) / static_cast<A>(backward ? band.transposed().count(i) : band.count(i));
  }
  __device__ int64_t begin(int64_t r) const {
    return first ? first[2 * r] : band.begin(r);
  }
  __device__ int64_t end(int64_t r) const {
    return first ? first[2 * r + 1] : band.end(r);
  }
  __device__ A weight(int64_t r, int64_t s) const {
    const int64_t i = backward ? s : r;
    return scale ? scale[i] : compute_scale(i);
  }
};

// One thread: `size` neighbouring pixels of one output plane.
template <typename T, int size, bool backward>
__global__ void __launch_bounds__(threads) by_plane(const T* x, Band band, int64_t planes, int64_t pixels, bool tabled, T* out) {
  using A = accumulate_t<T>;
  using P = Pack<T, size>;
  extern __shared__ double memory[];
  const Table<A, backward> table(band, tabled ? memory : nullptr);
  const int64_t packs = pixels / size, rows = band.to;
  const int64_t total = planes * packs;
  const int64_t step = int64_t(gridDim.x) * threads;
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < total; i += step) {
    const int64_t plane = i / packs, pack = i - plane * packs, n = plane / rows, r = plane - n * rows;
    A sum[size] = {};
    for (int64_t s = table.begin(r); s < table.end(r); ++s) {
      const A w = table.weight(r, s);
      const P in = *reinterpret_cast<const P*>(x + (n * band.from + s) * pixels + pack * size);
#pragma unroll
      for (int v = 0; v < size; ++v) {
        sum[v] += w * static_cast<A>(in.value[v]);
      }
    }
    P result;
#pragma unroll
    for (int v = 0; v < size; ++v) {
      result.value[v] = static_cast<T>(sum[v]);
    }
    *reinterpret_cast<P*>(out + i * size) = result;
  }
}

// One thread: `size` neighbouring output channels of one pixel; the reads of neighbouring threads meet in the same cache lines.
template <typename T, int size, bool backward>
__global__ void __launch_bounds__(threads) by_pixel(const T* x, Band band, int64_t pixels, bool tabled, T* out) {
  using A = accumulate_t<T>;
  using P = Pack<T, size>;
  extern __shared__ double memory[];
  const Table<A, backward> table(band, tabled ? memory : nullptr);
  const int64_t packs = band.to / size;
  const int64_t total = pixels * packs;
  const int64_t step = int64_t(gridDim.x) * threads;
  for (int64_t i = int64_t(blockIdx.x) * threads + threadIdx.x; i < total; i += step) {
    const int64_t pixel = i / packs, pack = i - pixel * packs;
    const T* in = x + pixel * band.from;
    P result;
#pragma unroll
    for (int v = 0; v < size; ++v) {
      const int64_t r = pack * size + v;
      A sum = 0;
      for (int64_t s = table.begin(r); s < table.end(r); ++s) {
        sum += table.weight(r, s) * static_cast<A>(in[s]);
      }
      result.value[v] = static_cast<T>(sum);
    }
    *reinterpret_cast<P*>(out + i * size) = result;
  }
}

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <typename T, int size, bool backward>
void launch(const Tensor& x, Band band, const Tensor& out, bool channels_last, cudaStream_t stream) {
  const T* in = static_cast<const T*>(x.const_data_ptr());
  T* result = static_cast<T*>(out.mutable_data_ptr());
  const int64_t area = x.size(2) * x.size(3);
  const int64_t bytes = Table<accumulate_t<T>, backward>::bytes(band);
  const bool tabled = bytes <= max_table_bytes;
  int multiprocessors = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, x.get_device_index()));
  // Enough blocks to fill the device; each fills its table once and walks over its share.
  const int64_t blocks = std::min<int64_t>((out.numel() / size + threads - 1) / threads, int64_t(multiprocessors) * 8);
  if (channels_last) {
    by_pixel<T, size, backward><<<static_cast<unsigned>(blocks), threads, tabled ? bytes : 0, stream>>>(
        in, band, x.size(0) * area, tabled, result);
  } else {
    by_plane<T, size, backward><<<static_cast<unsigned>(blocks), threads, tabled ? bytes : 0, stream>>>(
        in, band, x.size(0) * band.to, area, tabled, result);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <bool backward>
Tensor apply(const Tensor& input, Band band) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor x = torch::stable::contiguous(input, layout_of(input));
  const Tensor out = empty_with_channels(x, band.to);
  if (out.numel() == 0) {
    return out;
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const bool channels_last = is_channels_last(x);
  TAS_FAST_DISPATCH_FLOATING(x.scalar_type(), "channel_interpolation", [&] {
    constexpr int size = 16 / sizeof(scalar_t);
    const int64_t contiguous_run = channels_last ? band.to : x.size(2) * x.size(3);
    const bool packed = contiguous_run % size == 0 && aligned(out.mutable_data_ptr()) &&
        (channels_last || aligned(x.const_data_ptr()));
    const auto run = packed ? launch<scalar_t, size, backward> : launch<scalar_t, 1, backward>;
    run(x, band, out, channels_last, static_cast<cudaStream_t>(stream));
  });
  return out;
}

Tensor channel_interpolation_cuda(const Tensor& x, int64_t out_channels) {
  check_interpolation_forward(x, out_channels);
  return apply<false>(x, Band{x.size(1), out_channels});
}

Tensor channel_interpolation_backward_cuda(const Tensor& grad_out, int64_t in_channels) {
  check_interpolation_backward(grad_out, in_channels);
  return apply<true>(grad_out, Band{grad_out.size(1), in_channels});
}

}  // namespace
}  // namespace tas_fast

STABLE_TORCH_LIBRARY_IMPL(tas_fast, CUDA, m) {
  m.impl("channel_interpolation", TORCH_BOX(&tas_fast::channel_interpolation_cuda));
  m.impl("channel_interpolation_backward", TORCH_BOX(&tas_fast::channel_interpolation_backward_cuda));
}
