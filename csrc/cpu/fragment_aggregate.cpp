// Fragment aggregation on the CPU; tas_fast/ops/fragment_aggregate.py says what it means.
#include "../fragment_aggregate.h"

#include "images.h"

#include <array>
#include <cmath>
#include <tuple>

namespace tas_fast {
namespace {

// Numbers of a small tensor of any strides.
template <typename A>
class Table {
 public:
  explicit Table(const Tensor& x)
      : data_(static_cast<A*>(x.mutable_data_ptr())), row_(x.dim() == 2 ? x.stride(0) : 0), column_(x.stride(x.dim() - 1)) {}
  A& at(int64_t row, int64_t column) const {
    return data_[row * row_ + column * column_];
  }
  A& operator[](int64_t column) const {
    return data_[column * column_];
  }

 private:
  A* data_;
  int64_t row_, column_;
};

int64_t integer_at(const Tensor& x, int64_t i) {
  return x.scalar_type() == ScalarType::Int ? Table<int32_t>(x)[i] : Table<int64_t>(x)[i];
}

// The sampled fragments: their rows in the tables, their widths, and the pattern of the sum of their interpolations.
struct Fragments {
  std::vector<int64_t> row, width;
  int64_t largest = 0, widest = 0;  // the largest width, and a fragment that has it
  Pattern pattern;

  Fragments(const char* operation, const Tensor& widths, const std::optional<Tensor>& index, int64_t read) {
    const int64_t count = index.has_value() ? index->size(0) : widths.size(0);
    for (int64_t k = 0; k < count; ++k) {
      row.push_back(index.has_value() ? integer_at(*index, k) : k);
      STD_TORCH_CHECK(row[k] >= 0 && row[k] < widths.size(0), operation, ": index must be in 0..", widths.size(0) - 1, ", got ",
          row[k]);
      width.push_back(integer_at(widths, row[k]));
      STD_TORCH_CHECK(width[k] >= 1 && width[k] <= read, operation,
          ": sampled widths must be in 1..min(C, out_channels) = 1..", read, ", got ", width[k]);
      if (width[k] > largest) {
        largest = width[k];
        widest = k;
      }
    }
    std::vector<int64_t> different = width;
    std::sort(different.begin(), different.end());
    different.erase(std::unique(different.begin(), different.end()), different.end());
    pattern.first = {0, static_cast<int32_t>(largest)};
    for (int64_t j = 0; j < largest; ++j) {
      // Windows of wider fragments begin and end later, so their union in this order is ascending.
      int64_t next = 0;
      for (const int64_t w : different) {
        const Band band{w, largest};
        for (next = std::max(next, band.begin(j)); next < band.end(j); ++next) {
          pattern.columns.push_back(static_cast<int32_t>(next));
        }
      }
      pattern.end_row();
    }
  }

  int64_t count() const {
    return static_cast<int64_t>(row.size());
  }

  // Calls visit(j, i, share, entry) for the entries of A_k.
  template <typename Visit>
  void each(int64_t k, const Visit& visit) const {
    const Band band{width[k], largest};
    for (int64_t j = 0; j < largest; ++j) {
      const int64_t begin = band.begin(j), end = band.end(j);
      int32_t e = pattern.find(j, begin);
      for (int64_t i = begin; i < end; ++i, ++e) {
        visit(j, i, 1.0 / static_cast<double>(end - begin), e);
      }
    }
  }
};

// Mean and 1 / standard deviation for each channel below the largest width, shared by all fragments or of each.
struct Statistics {
  std::vector<double> mean, rstd;
  int64_t stride;  // 0 if shared

  Statistics(int64_t fragments, int64_t channels, bool shared)
      : mean((shared ? 1 : fragments) * channels), rstd(mean.size()), stride(shared ? 0 : channels) {}
};

// run += momentum * (value - run) for the first entries of every sampled row.
template <typename A, typename Value>
void move_towards(const Tensor& running, const Fragments& fragments, double momentum, const Value& value) {
  const Table<A> table(running);
  for (int64_t k = 0; k < fragments.count(); ++k) {
    for (int64_t i = 0; i < fragments.width[k]; ++i) {
      A& entry = table.at(fragments.row[k], i);
      entry = static_cast<A>(entry + momentum * (value(i) - entry));
    }
  }
}

Statistics batch_statistics(const Moments& batch, double eps) {
  const int64_t channels = static_cast<int64_t>(batch.mean.size());
  Statistics result(1, channels, true);
  for (int64_t i = 0; i < channels; ++i) {
    result.mean[i] = batch.mean[i];
    result.rstd[i] = 1 / std::sqrt(batch.squares[i] / std::max(batch.count, 1.0) + eps);
  }
  return result;
}

template <typename A>
Statistics running_statistics(const Fragments& fragments, const Tensor& mean, const Tensor& var, double eps) {
  Statistics result(fragments.count(), fragments.largest, false);
  const Table<A> means(mean), vars(var);
  for (int64_t k = 0; k < fragments.count(); ++k) {
    for (int64_t i = 0; i < fragments.largest; ++i) {
      result.mean[k * result.stride + i] = means.at(fragments.row[k], i);
      result.rstd[k * result.stride + i] = 1 / std::sqrt(vars.at(fragments.row[k], i) + eps);
    }
  }
  return result;
}

template <typename A>
void save(const std::vector<double>& values, const Tensor& to, int64_t channels) {
  A* out = static_cast<A*>(to.mutable_data_ptr());
  std::fill_n(out, to.numel(), A(0));
  const int64_t width = to.size(to.dim() - 1);
  for (size_t k = 0; k * channels < values.size(); ++k) {
    for (int64_t i = 0; i < channels; ++i) {
      out[k * width + i] = static_cast<A>(values[k * channels + i]);
    }
  }
}

template <typename A>
Statistics saved_statistics(const Fragments& fragments, const Tensor& mean, const Tensor& rstd, bool training) {
  Statistics result(fragments.count(), fragments.largest, training);
  const Table<A> means(mean), rstds(rstd);
  for (size_t at = 0; at < result.mean.size(); ++at) {
    const int64_t k = static_cast<int64_t>(at) / fragments.largest, i = static_cast<int64_t>(at) % fragments.largest;
    result.mean[at] = means.at(k, i);
    result.rstd[at] = rstds.at(k, i);
  }
  return result;
}

// What is subtracted from y before anything is summed or multiplied, so that a large mean cannot cost precision; empty where no
// mean is large compared with its deviation.
template <typename A>
std::vector<A> shift_of(const Fragments& fragments, const Statistics& statistics) {
  const auto begin = statistics.mean.begin() + fragments.widest * statistics.stride;
  for (size_t i = 0; i < statistics.mean.size(); ++i) {
    if (!(std::abs(statistics.mean[i]) * statistics.rstd[i] <= 8)) {
      return {begin, begin + fragments.largest};
    }
  }
  return {};
}

template <typename A>
double shift_at(const std::vector<A>& shift, int64_t i) {
  return shift.empty() ? 0.0 : static_cast<double>(shift[i]);
}

template <typename A>
BandMap<A> forward_map(const Fragments& fragments, const Statistics& statistics, const Tensor& probs, const Tensor& weight,
    const Tensor& bias) {
  BandMap<A> map{fragments.pattern, {}, shift_of<A>(fragments, statistics), {}};
  std::vector<double> factor(fragments.pattern.entries()), offset(fragments.largest);
  const Table<A> p(probs), weights(weight), biases(bias);
  for (int64_t k = 0; k < fragments.count(); ++k) {
    const double prob = p[k], *mean = statistics.mean.data() + k * statistics.stride;
    const double* rstd = statistics.rstd.data() + k * statistics.stride;
    const int64_t row = fragments.row[k];
    fragments.each(k, [&](int64_t j, int64_t i, double share, int32_t e) {
      const double scale = prob * share * weights.at(row, i) * rstd[i];
      factor[e] += scale;
      offset[j] += prob * share * biases.at(row, i) + scale * (shift_at(map.shift, i) - mean[i]);
    });
  }
  map.weight.assign(factor.begin(), factor.end());
  map.bias.assign(offset.begin(), offset.end());
  return map;
}

std::tuple<Tensor, Tensor, Tensor> fragment_aggregate_cpu(const Tensor& y_, const Tensor& widths, const Tensor& probs,
    const Tensor& weight, const Tensor& bias, std::optional<Tensor> running_mean, std::optional<Tensor> running_var,
    std::optional<Tensor> residual_, std::optional<Tensor> index, int64_t out_channels, bool relu, bool training,
    double momentum, double eps) {
  constexpr const char* name = "fragment_aggregate";
  check_fragments(name, y_, widths, probs, weight, bias, index, out_channels);
  const int64_t read = std::min(y_.size(1), out_channels);
  const ScalarType type = accumulation_type(y_.scalar_type());
  STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(), name,
      ": running_mean and running_var must be both given or both None, got one of them");
  STD_TORCH_CHECK(training || running_mean.has_value(), name, ": running_mean must be given in evaluation, got None");
  if (running_mean.has_value()) {
    check_table(name, "running_mean", *running_mean, widths.size(0), read, type);
    check_table(name, "running_var", *running_var, widths.size(0), read, type);
  }
  if (residual_.has_value()) {
    const Tensor& r = *residual_;
    STD_TORCH_CHECK(r.dim() == 4 && r.size(0) == y_.size(0) && r.size(2) == y_.size(2) && r.size(3) == y_.size(3), name,
        ": residual must be [N, C_r, H, W] that fits y");
    STD_TORCH_CHECK(r.scalar_type() == y_.scalar_type(), name, ": residual must be of the dtype of y");
  }
  const Fragments fragments(name, widths, index, read);

  const MemoryFormat layout = layout_of(y_);
  const MemoryFormat inner = inner_layout(y_);
  const Tensor y = in_layout(y_, inner);
  const int64_t residual_channels = residual_.has_value() ? residual_->size(1) : 0;
  const Tensor residual = residual_.has_value() ? in_layout(*residual_, inner) : y;
  const Tensor out = uninitialised_images(y, std::max(out_channels, residual_channels), inner);
  const std::vector<int64_t> shape = training ? std::vector<int64_t>{read} : std::vector<int64_t>{probs.size(0), read};
  const Tensor mean = uninitialised(weight, shape), rstd = uninitialised(weight, shape);
  const Geometry geometry = geometry_of(y, inner);

  TAS_FAST_DISPATCH_FLOATING(y.scalar_type(), "fragment_aggregate", [&] {
    using A = accumulate_t<scalar_t>;
    const scalar_t* in = data_of<scalar_t>(y);
    Moments batch(fragments.largest);
    if (training && y.numel() > 0) {
      batch = moments(in, y.size(1), fragments.largest, geometry);
    }
    const Statistics statistics =
        training ? batch_statistics(batch, eps) : running_statistics<A>(fragments, *running_mean, *running_var, eps);
    save<A>(statistics.mean, mean, fragments.largest);
    save<A>(statistics.rstd, rstd, fragments.largest);
    if (training && running_mean.has_value() && batch.count > 0) {
      const double unbiased = 1 / std::max(batch.count - 1, 1.0);
      move_towards<A>(*running_mean, fragments, momentum, [&](int64_t i) { return batch.mean[i]; });
      move_towards<A>(*running_var, fragments, momentum, [&](int64_t i) { return batch.squares[i] * unbiased; });
    }
    if (out.numel() == 0) {
      return;
    }
    Output<scalar_t> output{static_cast<scalar_t*>(out.mutable_data_ptr()), out.size(1)};
    output.residual = residual_channels > 0 ? data_of<scalar_t>(residual) : nullptr;
    output.residual_channels = residual_channels;
    output.relu = relu;
    output.backwards = training;
    apply<scalar_t>(forward_map<A>(fragments, statistics, probs, weight, bias), {{in, y.size(1), fragments.largest}}, geometry,
        output);
  });
  return {in_layout(out, layout), mean, rstd};
}

// A_k^T G and A_k^T X of every fragment, side by side, and what follows from them alone.
struct ParameterGradients {
  std::vector<double> by_bias, by_weight;

  template <typename A>
  ParameterGradients(const Fragments& fragments, const Statistics& statistics, const std::vector<A>& shift, const Sums& sums)
      : by_bias(fragments.count() * fragments.largest), by_weight(by_bias.size()) {
    for (int64_t k = 0; k < fragments.count(); ++k) {
      const double* mean = statistics.mean.data() + k * statistics.stride;
      const double* rstd = statistics.rstd.data() + k * statistics.stride;
      double *of_bias = by_bias.data() + k * fragments.largest, *of_weight = by_weight.data() + k * fragments.largest;
      fragments.each(k, [&](int64_t j, int64_t i, double share, int32_t e) {
        of_bias[i] += share * sums.row[j];
        of_weight[i] += share * rstd[i] * (sums.entry[e] - (mean[i] - shift_at(shift, i)) * sums.row[j]);
      });
    }
  }
};

// values[row of k][i] += probs_k * by[k][i], in a zeroed tensor.
template <typename A>
void place(const std::vector<double>& by, const Fragments& fragments, const Tensor& probs, const Tensor& to) {
  std::vector<double> sum(to.numel());
  const Table<A> p(probs);
  for (int64_t k = 0; k < fragments.count(); ++k) {
    for (int64_t i = 0; i < fragments.width[k]; ++i) {
      sum[fragments.row[k] * to.size(1) + i] += p[k] * by[k * fragments.largest + i];
    }
  }
  std::copy(sum.begin(), sum.end(), static_cast<A*>(to.mutable_data_ptr()));
}

template <typename A>
void place_probs(const ParameterGradients& gradients, const Fragments& fragments, const Tensor& weight, const Tensor& bias,
    const Tensor& to) {
  const Table<A> weights(weight), biases(bias), result(to);
  for (int64_t k = 0; k < fragments.count(); ++k) {
    double sum = 0;
    for (int64_t i = 0; i < fragments.width[k]; ++i) {
      const int64_t at = k * fragments.largest + i;
      sum += weights.at(fragments.row[k], i) * gradients.by_weight[at] + biases.at(fragments.row[k], i) * gradients.by_bias[at];
    }
    result[k] = static_cast<A>(sum);
  }
}

// U^T over the rows of g, its columns.
template <typename A>
BandMap<A> backward_map(
    const Fragments& fragments, const Statistics& statistics, const Tensor& probs, const Tensor& weight) {
  std::vector<double> factor(fragments.pattern.entries());
  const Table<A> p(probs), weights(weight);
  for (int64_t k = 0; k < fragments.count(); ++k) {
    const double prob = p[k], *rstd = statistics.rstd.data() + k * statistics.stride;
    fragments.each(k, [&](int64_t, int64_t i, double share, int32_t e) {
      factor[e] += prob * share * weights.at(fragments.row[k], i) * rstd[i];
    });
  }
  BandMap<A> map;
  std::vector<int32_t> origin;
  map.pattern = transposed(fragments.pattern, origin);
  map.weight.resize(origin.size());
  for (size_t e = 0; e < origin.size(); ++e) {
    map.weight[e] = static_cast<A>(factor[origin[e]]);
  }
  return map;
}

// The terms by which the batch statistics depend on y: -(s0 + x s1) / m.
template <typename T, typename A = accumulate_t<T>>
void add_statistics_terms(const Fragments& fragments, const Statistics& statistics, const ParameterGradients& gradients,
    const Tensor& probs, const Tensor& weight, double samples, BandMap<A>& map, Output<T>& output) {
  std::vector<double> by_bias(fragments.largest), by_weight(fragments.largest);
  const Table<A> p(probs), weights(weight);
  for (int64_t k = 0; k < fragments.count(); ++k) {
    for (int64_t i = 0; i < fragments.width[k]; ++i) {
      const double scale = static_cast<double>(p[k]) * weights.at(fragments.row[k], i) * statistics.rstd[i];
      by_bias[i] += scale * gradients.by_bias[k * fragments.largest + i];
      by_weight[i] += scale * gradients.by_weight[k * fragments.largest + i];
    }
  }
  for (int64_t i = 0; i < fragments.largest; ++i) {
    map.bias.push_back(static_cast<A>(-by_bias[i] / samples));
    output.z_scale.push_back(static_cast<A>(-statistics.rstd[i] * by_weight[i] / samples));
    output.z_shift.push_back(static_cast<A>(statistics.mean[i]));
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fragment_aggregate_backward_cpu(const Tensor& grad_out_, const Tensor& y_,
    std::optional<Tensor> out_, const Tensor& widths, const Tensor& probs, const Tensor& weight, const Tensor& bias,
    const Tensor& mean, const Tensor& rstd, std::optional<Tensor> index, int64_t out_channels, int64_t residual_channels,
    bool training, const std::vector<bool>& output_mask) {
  constexpr const char* name = "fragment_aggregate_backward";
  check_fragments(name, y_, widths, probs, weight, bias, index, out_channels);
  const int64_t read = std::min(y_.size(1), out_channels);
  STD_TORCH_CHECK(grad_out_.dim() == 4 && grad_out_.size(1) == std::max(out_channels, residual_channels), name,
      ": grad_out must be the gradient of the result");
  STD_TORCH_CHECK(output_mask.size() == 5, name, ": output_mask must have 5 entries, got ", output_mask.size());
  const Fragments fragments(name, widths, index, read);
  const bool needs_y = output_mask[0], needs_probs = output_mask[1], needs_weight = output_mask[2];
  const bool needs_bias = output_mask[3], needs_residual = output_mask[4];

  const MemoryFormat layout = layout_of(y_);
  const MemoryFormat inner = inner_layout(y_);
  const Tensor y = in_layout(y_, inner), grad_out = in_layout(grad_out_, inner);
  const Tensor out = out_.has_value() ? in_layout(*out_, inner) : grad_out;
  const Geometry geometry = geometry_of(y, inner);

  const auto wanted = [&](bool needed, const Tensor& like) {
    const std::vector<int64_t> none{0};
    return uninitialised(like, needed ? std::vector<int64_t>(like.sizes().begin(), like.sizes().end()) : none);
  };
  const Tensor grad_y = needs_y ? uninitialised_images(y, y.size(1), inner) : wanted(false, weight);
  const Tensor grad_probs = wanted(needs_probs, probs), grad_weight = wanted(needs_weight, weight);
  const Tensor grad_bias = wanted(needs_bias, bias);
  const Tensor grad_residual = needs_residual ? uninitialised_images(y, residual_channels, inner) : wanted(false, weight);

  TAS_FAST_DISPATCH_FLOATING(y.scalar_type(), "fragment_aggregate_backward", [&] {
    using A = accumulate_t<scalar_t>;
    const bool empty = geometry.pixels() == 0;
    const Statistics statistics = saved_statistics<A>(fragments, mean, rstd, training);
    const BandMap<A> reduced{fragments.pattern, {}, shift_of<A>(fragments, statistics), {}};
    const Input<scalar_t> x{data_of<scalar_t>(y), y.size(1), fragments.largest};
    Input<scalar_t> g{data_of<scalar_t>(grad_out), grad_out.size(1), fragments.largest};
    g.gate = out_.has_value() ? data_of<scalar_t>(out) : nullptr;
    Gated<scalar_t> gated{};
    if (needs_residual) {
      gated = {static_cast<scalar_t*>(grad_residual.mutable_data_ptr()), residual_channels};
    }
    Sums sums{std::vector<double>(fragments.largest), std::vector<double>(fragments.pattern.entries())};
    if (!empty && (needs_probs || needs_weight || needs_bias || needs_residual || training)) {
      sums = reduce<scalar_t>(reduced, {x}, g, geometry, gated);
    }
    const ParameterGradients gradients(fragments, statistics, reduced.shift, sums);
    if (needs_probs) {
      place_probs<A>(gradients, fragments, weight, bias, grad_probs);
    }
    if (needs_weight) {
      place<A>(gradients.by_weight, fragments, probs, grad_weight);
    }
    if (needs_bias) {
      place<A>(gradients.by_bias, fragments, probs, grad_bias);
    }
    if (!needs_y || empty) {
      return;
    }
    if (needs_residual && residual_channels >= fragments.largest) {
      g = {gated.data, residual_channels, fragments.largest};  // gated already: one tensor less to read
    }
    Output<scalar_t> output{static_cast<scalar_t*>(grad_y.mutable_data_ptr()), y.size(1)};
    output.backwards = true;
    BandMap<A> map = backward_map<A>(fragments, statistics, probs, weight);
    if (training) {
      const double samples = static_cast<double>(geometry.pixels());
      add_statistics_terms(fragments, statistics, gradients, probs, weight, samples, map, output);
      output.z = x.data;
      output.z_channels = x.channels;
    }
    apply<scalar_t>(map, {g}, geometry, output);
  });
  return {needs_y ? in_layout(grad_y, layout) : grad_y, grad_probs, grad_weight, grad_bias,
      needs_residual ? in_layout(grad_residual, layout) : grad_residual};
}

}  // namespace
}  // namespace tas_fast

STABLE_TORCH_LIBRARY_IMPL(tas_fast, CPU, m) {
  m.impl("fragment_aggregate", TORCH_BOX(&tas_fast::fragment_aggregate_cpu));
  m.impl("fragment_aggregate_backward", TORCH_BOX(&tas_fast::fragment_aggregate_backward_cpu));
}
