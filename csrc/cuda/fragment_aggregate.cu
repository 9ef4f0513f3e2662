// Fragment aggregation on CUDA devices: checks, sizes and launches; fragment_kernels.cuh has the device code.
#include "../fragment_aggregate.h"
#include "fragment_kernels.cuh"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

namespace tas_fast {
namespace {

constexpr int64_t tile_bytes = 40 * 1024;   // both tiles of a block: leaves room for several blocks on a multiprocessor
constexpr int64_t free_bytes = 48 * 1024;   // shared memory that every device grants without asking
constexpr int64_t block_bytes = 96 * 1024;  // and what the oldest of them grants when asked
// Blocks of a reduction, hence its order of addition, do not depend on the device; those of the other kernels might.
constexpr int64_t reduction_blocks = 512, pass_blocks = 1024;
constexpr int most_fragments = 8;

Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device());
}

void check_beside(const char* operation, const char* name, const std::optional<Tensor>& tensor, const Tensor& y) {
  STD_TORCH_CHECK(!tensor.has_value() || tensor->device() == y.device(), operation, ": ", name, " must be on the device of y");
}

template <typename T>
T* pointer(const std::optional<Tensor>& x) {
  return x.has_value() && x->numel() > 0 ? static_cast<T*>(x->mutable_data_ptr()) : nullptr;
}

bool is_aligned(const std::optional<Tensor>& x) {
  return !x.has_value() || reinterpret_cast<uintptr_t>(x->const_data_ptr()) % 32 == 0;
}

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// One call: its tensors in the layout of y, and how work is cut.
struct Call {
  Shape s{};
  int64_t bytes = 0;  // of shared memory, for tiles
  int slices = 1;
  cudaStream_t stream = nullptr;

  // `y` dense; `others` are further batches that kernels read or write.
  Call(const Tensor& y, const Tensor& widths, const Tensor& weight, int64_t fragments, int64_t out_channels,
      int64_t residual_channels, int64_t result_channels, bool relu, bool training) {
    s.images = y.size(0);
    s.area = y.size(2) * y.size(3);
    s.pixels = s.images * s.area;
    s.channels = static_cast<int>(y.size(1));
    s.out_channels = static_cast<int>(out_channels);
    s.read = std::min(s.channels, s.out_channels);
    s.residual_channels = static_cast<int>(residual_channels);
    s.result_channels = static_cast<int>(result_channels);
    s.columns = static_cast<int>(weight.size(1));
    s.rows = static_cast<int>(widths.size(0));
    s.fragments = static_cast<int>(fragments);
    s.last = is_channels_last(y);
    s.relu = relu;
    s.training = training;
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(y.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  // For kernels over `channels` channels that hold a tile of `width` channels besides one of their slice.
  template <typename T>
  void cut(int channels, int width, std::initializer_list<std::optional<Tensor>> batches) {
    constexpr int pack = pack_of<T>, size = sizeof(accumulate_t<T>);
    const auto whole = [](int64_t n) { return n % pack == 0; };
    s.packed = std::all_of(batches.begin(), batches.end(), is_aligned);
    s.packed = s.packed && (s.last ? whole(s.channels) && whole(s.read) && whole(s.result_channels) && whole(s.residual_channels)
                                   : whole(s.area));
    slices = static_cast<int>(ceil_div(channels, block_threads));
    s.slice = static_cast<int>(ceil_div(ceil_div(channels, slices), pack) * pack);
    s.slice = std::min(s.slice, std::max(channels, 1));
    slices = static_cast<int>(ceil_div(channels, s.slice));
    const int64_t widest = width + s.slice;
    s.tile = 1;
    while (s.tile < 512 && 2 * s.tile * widest * size <= tile_bytes) {
      s.tile *= 2;
    }
    s.packed = s.packed && (s.last || s.tile >= pack);
    s.tiles = s.last ? ceil_div(s.pixels, s.tile) : s.images * ceil_div(s.area, s.tile);
    bytes = std::max<int64_t>((s.tile_size(width) + s.tile_size(s.slice)) * size, 3 * block_threads * size);
    STD_TORCH_CHECK(bytes <= block_bytes, "fragment_aggregate: y must have fewer channels, got ", s.channels);
  }

  dim3 grid(int64_t blocks) const {
    const int64_t mine = std::min<int64_t>(std::max<int64_t>(blocks / slices, 1), s.tiles);
    return dim3(static_cast<unsigned>(mine), static_cast<unsigned>(slices));
  }
};

template <typename... P, typename... Q>
void launch(void (*kernel)(P...), dim3 grid, int64_t bytes, cudaStream_t stream, Q... arguments) {
  if (grid.x == 0 || grid.y == 0) {
    return;
  }
  if (bytes > free_bytes) {
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  kernel<<<grid, block_threads, bytes, stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls body with the number of fragments that kernels are compiled for.
template <typename T, typename F>
void with_fragments(int fragments, F body) {
  if constexpr (!std::is_same_v<T, double>) {
    if (fragments == 1) {
      return body(std::integral_constant<int, 1>());
    }
    if (fragments == 2) {
      return body(std::integral_constant<int, 2>());
    }
    if (fragments <= 4) {
      return body(std::integral_constant<int, 4>());
    }
  }
  return body(std::integral_constant<int, most_fragments>());
}

template <typename A>
Sampling<A> sampling_of(const Shape& s, const Tensor& widths, const std::optional<Tensor>& index, const Tensor& probs,
    const Tensor& weight, const Tensor& bias) {
  return {widths.const_data_ptr(), pointer<int64_t>(index), pointer<A>(probs), pointer<A>(weight), pointer<A>(bias), s.columns,
      s.fragments, widths.scalar_type() == ScalarType::Long};
}

std::optional<Tensor> dense(const std::optional<Tensor>& x) {
  return x.has_value() ? std::optional<Tensor>(torch::stable::contiguous(*x)) : std::nullopt;
}

std::optional<Tensor> dense(const std::optional<Tensor>& x, MemoryFormat layout) {
  return x.has_value() ? std::optional<Tensor>(torch::stable::contiguous(*x, layout)) : std::nullopt;
}

void check_all(const char* operation, const Tensor& y, const Tensor& widths, const Tensor& probs, const Tensor& weight,
    const Tensor& bias, const std::optional<Tensor>& index, int64_t out_channels) {
  check_fragments(operation, y, widths, probs, weight, bias, index, out_channels);
  const std::pair<const char*, std::optional<Tensor>> beside[] = {
      {"widths", widths}, {"probs", probs}, {"weight", weight}, {"bias", bias}, {"index", index}};
  for (const auto& [name, tensor] : beside) {
    check_beside(operation, name, tensor, y);
  }
  STD_TORCH_CHECK(bias.size(1) == weight.size(1), operation, ": bias must be shaped like weight, with ", weight.size(1),
      " columns, got ", bias.size(1));
  STD_TORCH_CHECK(probs.size(0) <= most_fragments, operation, ": probs must have at most ", most_fragments,
      " entries on a CUDA device, got ", probs.size(0));
}

std::tuple<Tensor, Tensor, Tensor> fragment_aggregate_cuda(const Tensor& y_, const Tensor& widths_, const Tensor& probs_,
    const Tensor& weight_, const Tensor& bias_, std::optional<Tensor> running_mean, std::optional<Tensor> running_var,
    std::optional<Tensor> residual_, std::optional<Tensor> index_, int64_t out_channels, bool relu, bool training, double momentum,
    double eps) {
  const char* name = "fragment_aggregate";
  check_all(name, y_, widths_, probs_, weight_, bias_, index_, out_channels);
  const std::pair<const char*, std::optional<Tensor>> beside[] = {
      {"running_mean", running_mean}, {"running_var", running_var}, {"residual", residual_}};
  for (const auto& [argument, tensor] : beside) {
    check_beside(name, argument, tensor, y_);
  }
  const ScalarType type = accumulation_type(y_.scalar_type());
  STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value() && (training || running_mean.has_value()), name,
      ": running_mean and running_var must be given together, and in evaluation");
  for (const auto& running : {running_mean, running_var}) {
    if (running.has_value()) {
      check_table(name, "running_mean and running_var", *running, widths_.size(0), weight_.size(1), type);
      STD_TORCH_CHECK(running->size(1) == weight_.size(1) && running->is_contiguous(), name,
          ": running_mean and running_var must be contiguous and shaped like weight");
    }
  }
  if (residual_.has_value()) {
    STD_TORCH_CHECK(residual_->dim() == 4 && residual_->scalar_type() == y_.scalar_type() && residual_->size(0) == y_.size(0) &&
            residual_->size(2) == y_.size(2) && residual_->size(3) == y_.size(3),
        name, ": residual must be [N, C_r, H, W] that fits y, and of its dtype");
  }
  const torch::stable::accelerator::DeviceGuard guard(y_.get_device_index());
  const MemoryFormat layout = layout_of(y_);
  const Tensor y = torch::stable::contiguous(y_, layout), widths = *dense(widths_), probs = *dense(probs_);
  const Tensor weight = *dense(weight_), bias = *dense(bias_);
  const std::optional<Tensor> residual = dense(residual_, layout), index = dense(index_);
  const int64_t residual_channels = residual.has_value() ? residual->size(1) : 0;
  const int64_t result_channels = std::max(out_channels, residual_channels);
  Call call(y, widths, weight, probs.size(0), out_channels, residual_channels, result_channels, relu, training);
  const Shape& s = call.s;
  const Tensor out = torch::stable::empty(
      {y.size(0), result_channels, y.size(2), y.size(3)}, y.scalar_type(), std::nullopt, y.device(), std::nullopt, layout);
  const std::vector<int64_t> sizes = training ? std::vector<int64_t>{s.read} : std::vector<int64_t>{s.fragments, s.read};
  const Tensor mean = empty(y, sizes, type), rstd = empty(y, sizes, type);

  TAS_FAST_DISPATCH_FLOATING(y.scalar_type(), "fragment_aggregate", [&] {
    using T = scalar_t;
    using A = accumulate_t<T>;
    const auto sampling = sampling_of<A>(s, widths, index, probs, weight, bias);
    const T* input = pointer<T>(y);
    int64_t chunks = 0;
    std::optional<Tensor> partial;
    if (training && s.pixels > 0) {
      call.cut<T>(s.read, 0, {y});
      const dim3 grid = call.grid(reduction_blocks);
      chunks = grid.x;
      partial = empty(y, {chunks, 3, s.read}, type);
      launch(statistics<T>, grid, call.bytes, call.stream, s, input, pointer<A>(partial));
    }
    launch(finish_statistics<A>, dim3(ceil_div(s.read, merge_channels)), block_threads * sizeof(A), call.stream, s, sampling,
        static_cast<const A*>(pointer<A>(partial)), static_cast<int>(chunks), pointer<A>(running_mean), pointer<A>(running_var),
        momentum, eps, pointer<A>(mean), pointer<A>(rstd));
    if (s.pixels > 0) {
      call.cut<T>(s.result_channels, s.read, {y, residual, out, mean});
      const Statistics<A> statistics{pointer<A>(mean), pointer<A>(rstd), s.read, training};
      with_fragments<T>(s.fragments, [&](auto k) {
        launch(apply<T, decltype(k)::value>, call.grid(pass_blocks), call.bytes, call.stream, s, sampling, statistics, input,
            static_cast<const T*>(pointer<T>(residual)), pointer<T>(out));
      });
    }
  });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fragment_aggregate_backward_cuda(const Tensor& grad_out_, const Tensor& y_,
    std::optional<Tensor> out_, const Tensor& widths_, const Tensor& probs_, const Tensor& weight_, const Tensor& bias_,
    const Tensor& mean_, const Tensor& rstd_, std::optional<Tensor> index_, int64_t out_channels, int64_t residual_channels,
    bool training, const std::vector<bool>& output_mask) {
  const char* name = "fragment_aggregate_backward";
  check_all(name, y_, widths_, probs_, weight_, bias_, index_, out_channels);
  const std::pair<const char*, std::optional<Tensor>> beside[] = {
      {"grad_out", grad_out_}, {"out", out_}, {"mean", mean_}, {"rstd", rstd_}};
  for (const auto& [argument, tensor] : beside) {
    check_beside(name, argument, tensor, y_);
  }
  STD_TORCH_CHECK(output_mask.size() == 5, name, ": output_mask must have 5 entries, got ", output_mask.size());
  STD_TORCH_CHECK(grad_out_.dim() == 4 && grad_out_.scalar_type() == y_.scalar_type() && grad_out_.size(1) >= out_channels &&
          grad_out_.size(1) >= residual_channels,
      name, ": grad_out must be shaped like the result and of the dtype of y");
  const torch::stable::accelerator::DeviceGuard guard(y_.get_device_index());
  const MemoryFormat layout = layout_of(y_);
  const Tensor y = torch::stable::contiguous(y_, layout), grad_out = torch::stable::contiguous(grad_out_, layout);
  const Tensor widths = *dense(widths_), probs = *dense(probs_), weight = *dense(weight_), bias = *dense(bias_);
  const Tensor mean = *dense(mean_), rstd = *dense(rstd_);
  const std::optional<Tensor> out = dense(out_, layout), index = dense(index_);
  const bool tables = output_mask[2] || output_mask[3];
  const int64_t kept = output_mask[4] ? residual_channels : 0;
  Call call(y, widths, weight, probs.size(0), out_channels, kept, grad_out.size(1), out.has_value(), training);
  const Shape& s = call.s;

  const ScalarType type = accumulation_type(y.scalar_type());
  const Tensor none = empty(y, {0}, type);
  const Tensor grad_probs = output_mask[1] ? empty(y, {s.fragments}, type) : none;
  const Tensor grad_weight = tables ? empty(y, {s.rows, s.columns}, type) : none;
  const Tensor grad_bias = tables ? empty(y, {s.rows, s.columns}, type) : none;
  // One kernel writes both: without a need for grad_y it goes to memory that nobody sees.
  const Tensor grad_y = output_mask[0] || output_mask[4] ? empty_with_channels(y, s.channels) : none;
  const Tensor grad_residual = output_mask[4] ? empty_with_channels(y, residual_channels) : none;

  TAS_FAST_DISPATCH_FLOATING(y.scalar_type(), "fragment_aggregate_backward", [&] {
    using T = scalar_t;
    using A = accumulate_t<T>;
    const auto sampling = sampling_of<A>(s, widths, index, probs, weight, bias);
    const Statistics<A> statistics{pointer<A>(mean), pointer<A>(rstd), s.read, training};
    const T *gradient = pointer<T>(grad_out), *result = pointer<T>(out), *input = pointer<T>(y);
    const int kinds = 2 * s.fragments + 1;
    const Tensor sums = empty(y, {kinds, s.read}, type), level = empty(y, {s.read}, type), slope = empty(y, {s.read}, type);
    std::optional<Tensor> partial;
    int64_t chunks = 0;
    if (s.pixels > 0) {
      call.cut<T>(s.read, s.read, {y, grad_out, out, mean});
      const dim3 grid = call.grid(reduction_blocks);
      chunks = grid.x;
      partial = empty(y, {chunks, kinds, s.read}, type);
      with_fragments<T>(s.fragments, [&](auto k) {
        launch(products<T, decltype(k)::value>, grid, call.bytes, call.stream, s, sampling, statistics, gradient, result, input,
            pointer<A>(partial));
      });
    }
    launch(add_parts<A>, dim3(ceil_div(kinds * s.read, merge_channels)), block_threads * sizeof(A), call.stream,
        static_cast<const A*>(pointer<A>(partial)), static_cast<int>(chunks), kinds * s.read, pointer<A>(sums));
    launch(gradients<A>, dim3(ceil_div(s.columns, block_threads), s.rows + 2), block_threads * sizeof(A), call.stream, s, sampling,
        statistics, static_cast<const A*>(pointer<A>(sums)), pointer<A>(grad_probs), pointer<A>(grad_weight),
        pointer<A>(grad_bias), pointer<A>(level), pointer<A>(slope));
    if (grad_y.numel() > 0) {
      call.cut<T>(std::max(s.channels, s.residual_channels), s.result_channels, {y, grad_out, out, grad_y, grad_residual});
      with_fragments<T>(s.fragments, [&](auto k) {
        launch(unapply<T, decltype(k)::value>, call.grid(pass_blocks), call.bytes, call.stream, s, sampling, statistics,
            static_cast<const A*>(pointer<A>(level)), static_cast<const A*>(pointer<A>(slope)), gradient, result, input,
            pointer<T>(grad_y), pointer<T>(grad_residual));
      });
    }
  });
  return {output_mask[0] ? grad_y : none, grad_probs, output_mask[2] ? grad_weight : none, output_mask[3] ? grad_bias : none,
      grad_residual};
}

}  // namespace
}  // namespace tas_fast

STABLE_TORCH_LIBRARY_IMPL(tas_fast, CUDA, m) {
  m.impl("fragment_aggregate", TORCH_BOX(&tas_fast::fragment_aggregate_cuda));
  m.impl("fragment_aggregate_backward", TORCH_BOX(&tas_fast::fragment_aggregate_backward_cuda));
}
