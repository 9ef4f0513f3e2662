// Channel-wise interpolation on the CPU; tas_fast/ops/channel_interpolation.py says what it means.
#include "../channel_interpolation.h"

#include <algorithm>

namespace tas_fast {
namespace {

// The interpolation of `pixels` neighbouring pixels as a sparse matrix with the same number of entries in every row: slot k of
// row r reads source[k * rows + r]. Rows with fewer entries are padded with weight zero and a source that holds zero.
template <typename A>
struct Matrix {
  int64_t columns, rows, slots;
  std::vector<int32_t> source;
  std::vector<A> weight;

  template <typename Count>
  Matrix(Band band, int64_t pixels, Count count_of) : columns(pixels * band.from), rows(pixels * band.to), slots(0) {
    for (int64_t r = 0; r < band.to; ++r) {
      slots = std::max(slots, band.count(r));
    }
    source.assign(slots * rows, static_cast<int32_t>(columns));
    weight.assign(slots * rows, A(0));
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t r = 0; r < band.to; ++r) {
        for (int64_t k = 0; k < band.count(r); ++k) {
          const int64_t s = band.begin(r) + k, entry = k * rows + p * band.to + r;
          source[entry] = static_cast<int32_t>(p * band.from + s);
          weight[entry] = A(1) / static_cast<A>(count_of(r, s));
        }
      }
    }
  }
};

// One row of the matrix applied to whole planes: out[p] = sum_k weight_k * in[k][p].
template <typename T, typename A = accumulate_t<T>>
TAS_FAST_CLONES void combine_planes(
    const T* in, const A* weight, int64_t slot_stride, int64_t count, T* out, int64_t size) {
  if (count == 1) {
    for (int64_t p = 0; p < size; ++p) {
      out[p] = static_cast<T>(weight[0] * static_cast<A>(in[p]));
    }
    return;
  }
  if (count == 2) {
    const T* next = in + size;
    const A first = weight[0], second = weight[slot_stride];
    for (int64_t p = 0; p < size; ++p) {
      out[p] = static_cast<T>(first * static_cast<A>(in[p]) + second * static_cast<A>(next[p]));
    }
    return;
  }
  constexpr int64_t tile = 512;
  A sum[tile];
  for (int64_t start = 0; start < size; start += tile) {
    const int64_t length = std::min(tile, size - start);
    std::fill_n(sum, length, A(0));
    for (int64_t k = 0; k < count; ++k) {
      const A w = weight[k * slot_stride];
      const T* plane = in + k * size + start;
      for (int64_t p = 0; p < length; ++p) {
        sum[p] += w * static_cast<A>(plane[p]);
      }
    }
    for (int64_t p = 0; p < length; ++p) {
      out[start + p] = static_cast<T>(sum[p]);
    }
  }
}

// The whole matrix applied to the first `rows` of its rows, which read `columns` numbers; `scratch` holds columns + 1 + rows.
template <typename T, typename A = accumulate_t<T>>
TAS_FAST_CLONES void combine_channels(
    const T* in, int64_t columns, const Matrix<A>& matrix, T* __restrict__ out, int64_t rows, A* __restrict__ scratch) {
  const int64_t stride = matrix.rows;
  const int32_t* source = matrix.source.data();
  const A* weight = matrix.weight.data();
  A* sum = scratch + matrix.columns + 1;
  scratch[matrix.columns] = A(0);
  for (int64_t c = 0; c < columns; ++c) {
    scratch[c] = static_cast<A>(in[c]);
  }
  if (matrix.slots == 2) {
    for (int64_t r = 0; r < rows; ++r) {
      out[r] = static_cast<T>(weight[r] * scratch[source[r]] + weight[stride + r] * scratch[source[stride + r]]);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    sum[r] = weight[r] * scratch[source[r]];
  }
  for (int64_t k = 1; k < matrix.slots; ++k) {
    for (int64_t r = 0; r < rows; ++r) {
      sum[r] += weight[k * stride + r] * scratch[source[k * stride + r]];
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    out[r] = static_cast<T>(sum[r]);
  }
}

constexpr int64_t elements_per_task = 32768;

template <typename T, typename Count, typename A = accumulate_t<T>>
void apply_by_plane(const Tensor& x, const Band& band, Count count_of, const Tensor& out) {
  const Matrix<A> matrix(band, 1, count_of);
  const int64_t size = x.size(2) * x.size(3), rows = band.to;
  const T* in = static_cast<const T*>(x.const_data_ptr());
  T* result = static_cast<T*>(out.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, elements_per_task / size);
  torch::stable::parallel_for(0, x.size(0) * rows, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / rows, r = i % rows;
      const T* planes = in + (n * band.from + band.begin(r)) * size;
      combine_planes<T>(planes, matrix.weight.data() + r, rows, band.count(r), result + i * size, size);
    }
  });
}

template <typename T, typename Count, typename A = accumulate_t<T>>
void apply_by_pixel(const Tensor& x, const Band& band, Count count_of, const Tensor& out) {
  // Narrow layers take several pixels at a time: with one, 16 channels of bfloat16 took twice as long (AVX-512, one core).
  const int64_t pixels = x.size(0) * x.size(2) * x.size(3), step = std::max<int64_t>(1, 256 / (band.from + band.to));
  const Matrix<A> matrix(band, step, count_of);
  const T* in = static_cast<const T*>(x.const_data_ptr());
  T* result = static_cast<T*>(out.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, elements_per_task / band.to);
  torch::stable::parallel_for(0, pixels, grain, [&](int64_t first, int64_t last) {
    std::vector<A> scratch(matrix.columns + 1 + matrix.rows);
    for (int64_t p = first; p < last; p += step) {
      const int64_t count = std::min(step, last - p);
      combine_channels<T>(
          in + p * band.from, count * band.from, matrix, result + p * band.to, count * band.to, scratch.data());
    }
  });
}

// out[n, r] = sum_s x[n, s] / count_of(r, s) over the band, in the layout of x.
template <typename Count>
Tensor apply(const Tensor& input, Band band, Count count_of) {
  const Tensor x = torch::stable::contiguous(input, layout_of(input));
  const Tensor out = empty_with_channels(x, band.to);
  if (out.numel() == 0) {
    return out;
  }
  const bool by_pixel = is_channels_last(x) || x.size(2) * x.size(3) == 1;
  TAS_FAST_DISPATCH_FLOATING(x.scalar_type(), "channel_interpolation", [&] {
    by_pixel ? apply_by_pixel<scalar_t>(x, band, count_of, out) : apply_by_plane<scalar_t>(x, band, count_of, out);
  });
  return out;
}

Tensor channel_interpolation_cpu(const Tensor& x, int64_t out_channels) {
  check_interpolation_forward(x, out_channels);
  const Band band{x.size(1), out_channels};
  return apply(x, band, [&](int64_t r, int64_t) { return band.count(r); });
}

Tensor channel_interpolation_backward_cpu(const Tensor& grad_out, int64_t in_channels) {
  check_interpolation_backward(grad_out, in_channels);
  const Band forward{in_channels, grad_out.size(1)};
  return apply(grad_out, forward.transposed(), [&](int64_t, int64_t s) { return forward.count(s); });
}

}  // namespace
}  // namespace tas_fast

STABLE_TORCH_LIBRARY_IMPL(tas_fast, CPU, m) {
  m.impl("channel_interpolation", TORCH_BOX(&tas_fast::channel_interpolation_cpu));
  m.impl("channel_interpolation_backward", TORCH_BOX(&tas_fast::channel_interpolation_backward_cpu));
}
