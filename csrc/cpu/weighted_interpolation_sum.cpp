// Weighted sum of interpolated feature maps on the CPU; tas_fast/ops/weighted_interpolation_sum.py says what it means.
#include "images.h"

#include <tuple>

namespace tas_fast {
namespace {

void check(const char* operation, const std::vector<Tensor>& tensors, const Tensor& weights) {
  STD_TORCH_CHECK(!tensors.empty(), operation, ": tensors must be one or more [N, C_d, H, W], got none");
  const Tensor& first = tensors[0];
  for (const Tensor& x : tensors) {
    STD_TORCH_CHECK(x.dim() == 4 && x.size(1) >= 1, operation, ": tensors must be [N, C_d, H, W], got ", x.dim(), " dimensions");
    STD_TORCH_CHECK(x.scalar_type() == first.scalar_type() && x.size(0) == first.size(0) && x.size(2) == first.size(2) &&
            x.size(3) == first.size(3),
        operation, ": tensors must be alike in all but C_d");
  }
  const int64_t count = static_cast<int64_t>(tensors.size());
  STD_TORCH_CHECK(weights.dim() == 1 && weights.size(0) == count, operation, ": weights must be [D] with D = ", count, " tensors");
  const bool wide = first.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(weights.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float), operation,
      ": weights must be of the dtype that sums over the tensors have");
}

int64_t most_channels(const std::vector<Tensor>& tensors) {
  int64_t channels = 0;
  for (const Tensor& x : tensors) {
    channels = std::max(channels, x.size(1));
  }
  return channels;
}

template <typename A>
A weight_at(const Tensor& weights, size_t d) {
  return data_of<A>(weights)[static_cast<int64_t>(d) * weights.stride(0)];
}

// The interpolations of all tensors side by side, each entry with its weight; `source` names the tensor of each entry.
template <typename A>
BandMap<A> side_by_side(const std::vector<Tensor>& tensors, const Tensor& weights, std::vector<int32_t>& source) {
  BandMap<A> map;
  map.pattern.first = {0};
  for (const Tensor& x : tensors) {
    map.pattern.first.push_back(map.pattern.first.back() + static_cast<int32_t>(x.size(1)));
  }
  const int64_t channels = most_channels(tensors);
  for (int64_t r = 0; r < channels; ++r) {
    for (size_t d = 0; d < tensors.size(); ++d) {
      const Band band{tensors[d].size(1), channels};
      for (int64_t i = band.begin(r); i < band.end(r); ++i) {
        map.pattern.columns.push_back(map.pattern.first[d] + static_cast<int32_t>(i));
        map.weight.push_back(weight_at<A>(weights, d) / static_cast<A>(band.count(r)));
        source.push_back(static_cast<int32_t>(d));
      }
    }
    map.pattern.end_row();
  }
  return map;
}

// weight * A^T for one tensor of `from` channels.
template <typename A>
BandMap<A> transposed_interpolation(int64_t from, int64_t to, A weight) {
  const Band forward{from, to}, backward = forward.transposed();
  BandMap<A> map;
  map.pattern.first = {0, static_cast<int32_t>(to)};
  for (int64_t i = 0; i < from; ++i) {
    for (int64_t r = backward.begin(i); r < backward.end(i); ++r) {
      map.pattern.columns.push_back(static_cast<int32_t>(r));
      map.weight.push_back(weight / static_cast<A>(forward.count(r)));
    }
    map.pattern.end_row();
  }
  return map;
}

std::vector<Tensor> all_in_layout(const std::vector<Tensor>& tensors, MemoryFormat layout) {
  std::vector<Tensor> result;
  for (const Tensor& x : tensors) {
    result.push_back(in_layout(x, layout));
  }
  return result;
}

template <typename T>
std::vector<Input<T>> inputs_of(const std::vector<Tensor>& tensors) {
  std::vector<Input<T>> result;
  for (const Tensor& x : tensors) {
    result.push_back({data_of<T>(x), x.size(1), x.size(1)});
  }
  return result;
}

Tensor weighted_interpolation_sum_cpu(const std::vector<Tensor>& tensors, const Tensor& weights) {
  check("weighted_interpolation_sum", tensors, weights);
  const MemoryFormat inner = inner_layout(tensors[0]);
  const std::vector<Tensor> xs = all_in_layout(tensors, inner);
  const Tensor out = uninitialised_images(xs[0], most_channels(xs), inner);
  if (out.numel() > 0) {
    TAS_FAST_DISPATCH_FLOATING(out.scalar_type(), "weighted_interpolation_sum", [&] {
      std::vector<int32_t> source;
      const auto map = side_by_side<accumulate_t<scalar_t>>(xs, weights, source);
      const Output<scalar_t> output{static_cast<scalar_t*>(out.mutable_data_ptr()), out.size(1)};
      apply<scalar_t>(map, inputs_of<scalar_t>(xs), geometry_of(xs[0], inner), output);
    });
  }
  return in_layout(out, layout_of(tensors[0]));
}

std::tuple<std::vector<Tensor>, Tensor> weighted_interpolation_sum_backward_cpu(const Tensor& grad_out,
    const std::vector<Tensor>& tensors, const Tensor& weights, const std::vector<bool>& output_mask) {
  constexpr const char* name = "weighted_interpolation_sum_backward";
  check(name, tensors, weights);
  STD_TORCH_CHECK(output_mask.size() == 2, name, ": output_mask must have 2 entries, got ", output_mask.size());
  STD_TORCH_CHECK(grad_out.dim() == 4 && grad_out.size(1) == most_channels(tensors), name,
      ": grad_out must be the gradient of the result");
  const MemoryFormat inner = inner_layout(tensors[0]);
  const Tensor g = in_layout(grad_out, inner);
  const Geometry geometry = geometry_of(g, inner);
  std::vector<Tensor> grad_tensors;
  const std::vector<int64_t> shape{output_mask[1] ? weights.size(0) : 0};
  const Tensor grad_weights = uninitialised(weights, shape);
  TAS_FAST_DISPATCH_FLOATING(g.scalar_type(), "weighted_interpolation_sum_backward", [&] {
    using A = accumulate_t<scalar_t>;
    const Input<scalar_t> grad{data_of<scalar_t>(g), g.size(1), g.size(1)};
    for (size_t d = 0; output_mask[0] && d < tensors.size(); ++d) {
      const Tensor grad_x = uninitialised_images(tensors[d], tensors[d].size(1), inner);
      if (grad_x.numel() > 0) {
        const auto map = transposed_interpolation<A>(grad_x.size(1), g.size(1), weight_at<A>(weights, d));
        const Output<scalar_t> output{static_cast<scalar_t*>(grad_x.mutable_data_ptr()), grad_x.size(1)};
        apply<scalar_t>(map, {grad}, geometry, output);
      }
      grad_tensors.push_back(in_layout(grad_x, layout_of(tensors[d])));
    }
    if (!output_mask[1]) {
      return;
    }
    std::vector<double> sum(tensors.size());
    if (g.numel() > 0) {
      std::vector<int32_t> source;
      const std::vector<Tensor> xs = all_in_layout(tensors, inner);
      const auto map = side_by_side<A>(xs, weights, source);
      const Sums sums = reduce<scalar_t>(map, inputs_of<scalar_t>(xs), grad, geometry, {});
      for (int64_t r = 0; r < g.size(1); ++r) {
        for (int32_t e = map.pattern.begin[r]; e < map.pattern.begin[r + 1]; ++e) {
          const Band band{xs[source[e]].size(1), g.size(1)};
          sum[source[e]] += sums.entry[e] / static_cast<double>(band.count(r));
        }
      }
    }
    std::copy(sum.begin(), sum.end(), static_cast<A*>(grad_weights.mutable_data_ptr()));
  });
  return {grad_tensors, grad_weights};
}

}  // namespace
}  // namespace tas_fast

STABLE_TORCH_LIBRARY_IMPL(tas_fast, CPU, m) {
  m.impl("weighted_interpolation_sum", TORCH_BOX(&tas_fast::weighted_interpolation_sum_cpu));
  m.impl("weighted_interpolation_sum_backward", TORCH_BOX(&tas_fast::weighted_interpolation_sum_backward_cpu));
}
