// Device code of fragment aggregation; tas_fast/ops/fragment_aggregate.py says what it means, with the names used here.
//
// A block walks over tiles of pixels. It brings a tile into shared memory with accesses of 16 bytes, as numbers of the type that
// sums have, and with the reference point of each channel taken off. Then a thread serves one channel: which neighbours it reads
// and with which coefficients does not change, so they stay in registers. Results go through shared memory, too, and leave in
// 16 bytes. Widths are read on the device. There are no atomics; sums have an order that depends on shapes alone.
#pragma once

#include "../common.h"

#include <cstdint>
#include <type_traits>

namespace tas_fast {

constexpr int block_threads = 256;  // two blocks on a multiprocessor, where asked for, keep the compiler from spilling to fit more
constexpr int merge_channels = 8;  // channels of a block that adds up chunks, with 32 threads for each
constexpr int merge_lanes = block_threads / merge_channels;

// Sizes of one call. Channels of tables and tiles fit 32 bits, pixels of the batch need not.
struct Shape {
  int64_t images, area, pixels, tiles;
  int channels, read, out_channels, residual_channels, result_channels, columns;
  int rows, fragments, tile, slice;
  bool last, packed, relu, training;

  // Numbers that a tile of `width` channels takes in shared memory, see Shared.
  C10_HOST_DEVICE int64_t tile_size(int width) const {
    return int64_t(width) * (last ? tile : tile + 1);
  }
};

// Device memory that says which fragments are mixed.
template <typename A>
struct Sampling {
  const void* widths;
  const int64_t* index;  // null: row k for fragment k
  const A* probs;
  const A* weight;
  const A* bias;
  int columns, fragments;
  bool wide;  // widths are int64

  __device__ int row(int k) const {
    return index ? static_cast<int>(index[k]) : k;
  }
  __device__ int width(int k) const {
    return wide ? static_cast<int>(static_cast<const int64_t*>(widths)[row(k)]) : static_cast<const int32_t*>(widths)[row(k)];
  }
  __device__ A gamma(int k, int i) const {
    return weight[int64_t(row(k)) * columns + i];
  }
  __device__ A beta(int k, int i) const {
    return bias[int64_t(row(k)) * columns + i];
  }
  __device__ int widest() const {
    int result = 1;
    for (int k = 0; k < fragments; ++k) {
      result = width(k) > result ? width(k) : result;
    }
    return result;
  }
  __device__ int narrowest() const {
    int result = width(0);
    for (int k = 1; k < fragments; ++k) {
      result = width(k) < result ? width(k) : result;
    }
    return result;
  }
};

// Statistics of a batch [R], or of each fragment [K, R] in evaluation. Data is taken relative to the first row.
template <typename A>
struct Statistics {
  const A* mean;
  const A* rstd;
  int read;
  bool training;

  __device__ A origin(int i) const {
    return mean[i];
  }
  __device__ A scale(int k, int i) const {
    return rstd[training ? i : int64_t(k) * read + i];
  }
  __device__ A distance(int k, int i) const {
    return training ? A(0) : mean[int64_t(k) * read + i] - mean[i];
  }
};

// Row j of the alignment narrow -> wide, narrow <= wide: one or two neighbouring channels of equal share.
struct Row {
  int first, count;
  __device__ Row(int j, int narrow, int wide)
      : first(static_cast<int>(int64_t(j) * narrow / wide)),
        count(static_cast<int>((int64_t(j + 1) * narrow + wide - 1) / wide) - first) {}
};

// Column i of the same matrix: rows begin .. end - 1. All but the first and the last of them have this channel alone.
struct Column {
  int begin, end;
  __device__ Column(int i, int narrow, int wide)
      : begin(static_cast<int>(int64_t(i) * wide / narrow)),
        end(i < narrow ? static_cast<int>((int64_t(i + 1) * wide + narrow - 1) / narrow) : begin) {}
};

template <typename T, int size>
struct alignas(sizeof(T) * size) Vector {
  T value[size];
};

template <typename T>
constexpr int pack_of = 16 / sizeof(T);

// Some neighbouring pixels of one image batch: of the whole batch in channels_last, of one image otherwise.
struct Tile {
  int64_t image, start;
  int count;

  __device__ Tile(const Shape& s, int64_t number) {
    if (s.last) {
      image = 0;
      start = number * s.tile;
      count = static_cast<int>(min_of(s.tile, s.pixels - start));
    } else {
      const int64_t per_image = (s.area + s.tile - 1) / s.tile;
      image = number / per_image;
      start = (number - image * per_image) * s.tile;
      count = static_cast<int>(min_of(s.tile, s.area - start));
    }
  }
  static __device__ int64_t min_of(int64_t a, int64_t b) {
    return a < b ? a : b;
  }
  // Calls body(size, pixel, channel, offset) for packs of `size` neighbours, of channels in channels_last, else of pixels, in the
  // batch with `channels` channels; the block's threads share the work.
  template <int size, typename F>
  __device__ void each(const Shape& s, int channels, int begin, int end, F body) const {
    const std::integral_constant<int, size> constant;
    if (s.last) {
      const int packs = (end - begin) / size;
      for (int n = threadIdx.x; n < packs * count; n += blockDim.x) {
        const int pixel = n / packs, channel = begin + (n - pixel * packs) * size;
        body(constant, pixel, channel, (start + pixel) * channels + channel);
      }
    } else {
      const int packs = count / size;
      for (int n = threadIdx.x; n < packs * (end - begin); n += blockDim.x) {
        const int line = n / packs, pixel = (n - line * packs) * size, channel = begin + line;
        body(constant, pixel, channel, (image * channels + channel) * s.area + start + pixel);
      }
    }
  }
  template <typename T, typename F>
  __device__ void each(const Shape& s, int channels, int begin, int end, F body) const {
    if (s.packed) {
      each<pack_of<T>>(s, channels, begin, end, body);
    } else {
      each<1>(s, channels, begin, end, body);
    }
  }
};

// A tile in shared memory: `width` channels from `begin` on. Channels are adjacent in channels_last. Otherwise pixels are, and an
// odd number of them keeps threads that read the same pixel of neighbouring channels in different banks.
template <typename A>
struct Shared {
  A* data;
  int begin, by_pixel, by_channel;

  __device__ Shared(A* data, const Shape& s, int begin, int width)
      : data(data), begin(begin), by_pixel(s.last ? width : 1), by_channel(s.last ? 1 : s.tile + 1) {}
  __device__ A& at(int pixel, int channel) const {
    return data[pixel * by_pixel + (channel - begin) * by_channel];
  }
  // Element v of a pack that starts here.
  __device__ A& at(const Shape& s, int pixel, int channel, int v) const {
    return s.last ? at(pixel, channel + v) : at(pixel + v, channel);
  }
};

template <int size, typename T>
__device__ Vector<T, size> load(const T* data, int64_t offset) {
  return *reinterpret_cast<const Vector<T, size>*>(data + offset);
}

template <typename T, typename A>
__device__ void load_centred(
    const Shape& s, const Tile& tile, const T* y, const A* origin, int begin, int end, const Shared<A>& x) {
  tile.each<T>(s, s.channels, begin, end, [&](auto size, int pixel, int channel, int64_t offset) {
    const auto values = load<size>(y, offset);
    Vector<A, size> shift{};
    if (origin && s.last) {
      shift = load<size>(origin, channel);
    } else if (origin) {
#pragma unroll
      for (int v = 0; v < size; ++v) {
        shift.value[v] = origin[channel];
      }
    }
#pragma unroll
    for (int v = 0; v < size; ++v) {
      x.at(s, pixel, channel, v) = static_cast<A>(values.value[v]) - shift.value[v];
    }
  });
}

// A pack of grad_out, zero where the result was rectified.
template <int size, typename A, typename T>
__device__ Vector<T, size> gradient(const Shape& s, const T* grad_out, const T* out, int64_t offset) {
  auto values = load<size>(grad_out, offset);
  if (s.relu) {
    const auto results = load<size>(out, offset);
#pragma unroll
    for (int v = 0; v < size; ++v) {
      if (static_cast<A>(results.value[v]) <= A(0)) {
        values.value[v] = static_cast<T>(0.0f);
      }
    }
  }
  return values;
}

// Threads of a block as lanes times channels of a slice; threads that are left over have an empty range of pixels.
struct Lanes {
  int count, lane, channel;
  bool active;
  __device__ explicit Lanes(int slice)
      : count(blockDim.x / slice), lane(threadIdx.x / slice), channel(threadIdx.x % slice), active(lane < count) {}
};

// Channels [begin, end) in whole packs, as far as `limit`.
struct Span {
  int begin, end;
  __device__ Span(const Shape& s, int first, int stop, int limit, int pack) {
    const int unit = s.packed && s.last ? pack : 1;
    begin = first / unit * unit;
    end = (stop + unit - 1) / unit * unit;
    end = end < limit ? end : limit;
    begin = begin < end ? begin : end;
  }
};

// partial [chunks, 3, R]: number of pixels, mean, sum of squared deviations. Grid: chunks, slices of R.
template <typename T, typename A = accumulate_t<T>>
__global__ void __launch_bounds__(block_threads) statistics(Shape s, const T* y, A* partial) {
  extern __shared__ double shared_memory[];
  A* memory = reinterpret_cast<A*>(shared_memory);
  const int begin = blockIdx.y * s.slice, end = begin + s.slice < s.read ? begin + s.slice : s.read;
  const Shared<A> x(memory, s, begin, end - begin);
  const Lanes my(s.slice);
  const int i = begin + my.channel;
  A count = 0, mean = 0, spread = 0;
  for (int64_t number = blockIdx.x; number < s.tiles; number += gridDim.x) {
    const Tile tile(s, number);
    load_centred<T, A>(s, tile, y, nullptr, begin, end, x);
    __syncthreads();
    if (my.active && i < end) {
      for (int pixel = my.lane; pixel < tile.count; pixel += my.count) {
        const A value = x.at(pixel, i), delta = value - mean;
        count += 1;
        mean += delta / count;
        spread += delta * (value - mean);
      }
    }
    __syncthreads();
  }
  A* lanes = memory + (my.lane * s.slice + my.channel) * 3;
  if (my.active && i < end) {
    lanes[0] = count, lanes[1] = mean, lanes[2] = spread;
  }
  __syncthreads();
  if (my.lane == 0 && i < end) {
    for (int lane = 1; lane < my.count; ++lane) {  // Chan et al. 1983
      const A* other = memory + (lane * s.slice + my.channel) * 3;
      const A total = count + other[0], delta = other[1] - mean;
      if (other[0] > 0) {
        mean += delta * (other[0] / total);
        spread += other[2] + delta * delta * (count * other[0] / total);
        count = total;
      }
    }
    A* target = partial + int64_t(blockIdx.x) * 3 * s.read + i;
    target[0] = count, target[s.read] = mean, target[2 * s.read] = spread;
  }
}

// Sum over the 32 threads of each of the block's 8 channels, in a fixed order; every thread gets the sum.
template <typename A>
__device__ A merged(A value, A* memory) {
  const int channel = threadIdx.x % merge_channels, lane = threadIdx.x / merge_channels;
  __syncthreads();
  memory[threadIdx.x] = value;
  for (int half = merge_lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) {
      memory[threadIdx.x] += memory[threadIdx.x + half * merge_channels];
    }
  }
  __syncthreads();
  return memory[channel];
}

// Chunks to mean, rstd and running statistics in training; the sampled rows' in evaluation. Grid: blocks of 8 channels.
template <typename A>
__global__ void __launch_bounds__(block_threads) finish_statistics(Shape s, Sampling<A> sampling, const A* partial, int chunks,
    A* running_mean, A* running_var, double momentum, double eps, A* mean_out, A* rstd_out) {
  extern __shared__ double shared_memory[];
  A* memory = reinterpret_cast<A*>(shared_memory);
  const int i = blockIdx.x * merge_channels + threadIdx.x % merge_channels, lane = threadIdx.x / merge_channels;
  const bool inside = i < s.read;
  if (!s.training) {
    for (int k = lane; inside && k < s.fragments; k += merge_lanes) {
      const int64_t source = int64_t(sampling.row(k)) * s.columns + i, target = int64_t(k) * s.read + i;
      mean_out[target] = running_mean[source];
      rstd_out[target] = A(1) / sqrt(running_var[source] + A(eps));
    }
    return;
  }
  const A origin = inside && chunks > 0 ? partial[s.read + i] : A(0);
  const A pixels = s.pixels > 0 ? A(s.pixels) : A(1);
  A sum = 0;
#pragma unroll 4
  for (int chunk = lane; inside && chunk < chunks; chunk += merge_lanes) {
    const A* source = partial + int64_t(chunk) * 3 * s.read + i;
    sum += source[0] * (source[s.read] - origin);
  }
  const A mean = origin + merged(sum, memory) / pixels;
  sum = 0;
#pragma unroll 4
  for (int chunk = lane; inside && chunk < chunks; chunk += merge_lanes) {
    const A* source = partial + int64_t(chunk) * 3 * s.read + i;
    const A deviation = source[s.read] - mean;
    sum += source[2 * s.read] + source[0] * deviation * deviation;
  }
  const A spread = merged(sum, memory);
  if (!inside || lane != 0) {
    return;
  }
  mean_out[i] = mean;
  rstd_out[i] = A(1) / sqrt(spread / pixels + A(eps));
  if (running_mean == nullptr || s.pixels == 0) {
    return;
  }
  const A var = spread / (s.pixels > 1 ? A(s.pixels - 1) : A(1));
  for (int k = 0; k < s.fragments; ++k) {
    if (i < sampling.width(k)) {
      A* target = running_mean + int64_t(sampling.row(k)) * s.columns + i;
      *target += A(momentum) * (mean - *target);
      target = running_var + int64_t(sampling.row(k)) * s.columns + i;
      *target += A(momentum) * (var - *target);
    }
  }
}

// One read of y, one write of the result. Grid: blocks that walk over tiles, slices of result channels. K is at least the number
// of fragments; those that are missing have coefficients zero.
template <typename T, int K, typename A = accumulate_t<T>>
__global__ void __launch_bounds__(block_threads, 2) apply(
    Shape s, Sampling<A> sampling, Statistics<A> statistics, const T* y, const T* residual, T* out) {
  extern __shared__ double shared_memory[];
  A* memory = reinterpret_cast<A*>(shared_memory);
  const int first = blockIdx.y * s.slice;
  const int stop = first + s.slice < s.result_channels ? first + s.slice : s.result_channels;
  const int widest = sampling.widest(), narrowest = sampling.narrowest();
  const int lowest = static_cast<int>(int64_t(first) * narrowest / widest);
  const Span span(s, lowest, first < widest ? (stop < widest ? stop : widest) : lowest, s.read, pack_of<T>);
  const Shared<A> x(memory, s, span.begin, span.end - span.begin);
  const Shared<A> result(memory + s.tile_size(span.end - span.begin), s, first, stop - first);
  const Lanes my(s.slice);
  const int j = first + my.channel;
  const bool mixes = j < widest && j < s.out_channels;

  int near[K], far[K];
  A near_factor[K], far_factor[K], offset = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    near[k] = far[k] = span.begin;
    near_factor[k] = far_factor[k] = 0;
    if (mixes && k < s.fragments) {
      const Row row(j, sampling.width(k), widest);
      const A share = sampling.probs[k] / A(row.count);
      near[k] = row.first;
      near_factor[k] = share * sampling.gamma(k, row.first) * statistics.scale(k, row.first);
      offset += share * sampling.beta(k, row.first) - near_factor[k] * statistics.distance(k, row.first);
      far[k] = row.first + row.count - 1;
      if (row.count > 1) {
        far_factor[k] = share * sampling.gamma(k, far[k]) * statistics.scale(k, far[k]);
        offset += share * sampling.beta(k, far[k]) - far_factor[k] * statistics.distance(k, far[k]);
      }
    }
  }

  for (int64_t number = blockIdx.x; number < s.tiles; number += gridDim.x) {
    const Tile tile(s, number);
    load_centred<T, A>(s, tile, y, statistics.mean, span.begin, span.end, x);
    __syncthreads();
    if (my.active && j < stop) {
      for (int pixel = my.lane; pixel < tile.count; pixel += my.count) {
        A sum = offset;
        if (mixes) {
#pragma unroll
          for (int k = 0; k < K; ++k) {
            if (k < s.fragments) {
              sum += near_factor[k] * x.at(pixel, near[k]);
              if (K > 1 && far[k] != near[k]) {
                sum += far_factor[k] * x.at(pixel, far[k]);
              }
            }
          }
        }
        result.at(pixel, j) = sum;
      }
    }
    __syncthreads();
    tile.each<T>(s, s.result_channels, first, stop, [&](auto size, int pixel, int channel, int64_t offset) {
      Vector<T, size> values;
      const bool added = residual && channel < s.residual_channels;
      Vector<T, size> extra;
      if (added) {
        const int64_t position = s.last ? (tile.start + pixel) * s.residual_channels + channel
                                        : (tile.image * s.residual_channels + channel) * s.area + tile.start + pixel;
        extra = load<size>(residual, position);
      }
#pragma unroll
      for (int v = 0; v < size; ++v) {
        A value = result.at(s, pixel, channel, v);
        if (added) {
          value += static_cast<A>(extra.value[v]);
        }
        values.value[v] = static_cast<T>(s.relu && value < A(0) ? A(0) : value);
      }
      *reinterpret_cast<Vector<T, size>*>(out + offset) = values;
    });
    // The next tile's results are written after its own barrier, and its data where nobody reads any more.
  }
}

// partial [chunks, 2 K + 1, J]: for every fragment sum g_j x_first and sum g_j x_last of row j, then sum g_j; K is s.fragments.
// Grid: chunks, slices of J = R, beyond which no fragment reaches.
template <typename T, int K, typename A = accumulate_t<T>>
__global__ void __launch_bounds__(block_threads, 2) products(Shape s, Sampling<A> sampling, Statistics<A> statistics,
    const T* grad_out, const T* out, const T* y, A* partial) {
  extern __shared__ double shared_memory[];
  A* memory = reinterpret_cast<A*>(shared_memory);
  const int first = blockIdx.y * s.slice;
  const int stop = first + s.slice < s.read ? first + s.slice : s.read;
  const int widest = sampling.widest(), narrowest = sampling.narrowest();
  const int lowest = static_cast<int>(int64_t(first) * narrowest / widest);
  const Span span(s, lowest, first < widest ? (stop < widest ? stop : widest) : lowest, s.read, pack_of<T>);
  const Shared<A> x(memory, s, span.begin, span.end - span.begin);
  const Shared<A> g(memory + s.tile_size(span.end - span.begin), s, first, stop - first);
  const Lanes my(s.slice);
  const int j = first + my.channel;
  const bool mixes = my.active && j < stop && j < widest;

  int near[K], far[K];
  A near_sum[K], far_sum[K], total = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    near[k] = far[k] = span.begin;
    near_sum[k] = far_sum[k] = 0;
    if (mixes && k < s.fragments) {
      const Row row(j, sampling.width(k), widest);
      near[k] = row.first;
      far[k] = row.first + row.count - 1;
    }
  }
  for (int64_t number = blockIdx.x; number < s.tiles; number += gridDim.x) {
    const Tile tile(s, number);
    load_centred<T, A>(s, tile, y, statistics.mean, span.begin, span.end, x);
    tile.each<T>(s, s.result_channels, first, stop, [&](auto size, int pixel, int channel, int64_t offset) {
      const auto values = gradient<size, A>(s, grad_out, out, offset);
#pragma unroll
      for (int v = 0; v < size; ++v) {
        g.at(s, pixel, channel, v) = static_cast<A>(values.value[v]);
      }
    });
    __syncthreads();
    if (mixes) {
      for (int pixel = my.lane; pixel < tile.count; pixel += my.count) {
        const A value = g.at(pixel, j);
        total += value;
#pragma unroll
        for (int k = 0; k < K; ++k) {
          if (k < s.fragments) {
            near_sum[k] += value * x.at(pixel, near[k]);
            if (K > 1 && far[k] != near[k]) {
              far_sum[k] += value * x.at(pixel, far[k]);
            }
          }
        }
      }
    }
    __syncthreads();
  }
  // Lanes are added one kind of sum after the other, so that a little memory is enough.
  A* target = partial + int64_t(blockIdx.x) * (2 * s.fragments + 1) * s.read + j;
  const auto deliver = [&](int kind, A value) {
    if (my.active) {
      memory[my.lane * s.slice + my.channel] = value;
    }
    __syncthreads();
    if (my.lane == 0 && j < stop) {
      for (int lane = 1; lane < my.count; ++lane) {
        value += memory[lane * s.slice + my.channel];
      }
      target[int64_t(kind) * s.read] = value;
    }
    __syncthreads();
  };
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (k < s.fragments) {
      deliver(2 * k, near_sum[k]);
      deliver(2 * k + 1, far_sum[k]);
    }
  }
  deliver(2 * s.fragments, total);
}

// sums [size] of `parts` rows. Grid: blocks of 8 columns.
template <typename A>
__global__ void __launch_bounds__(block_threads) add_parts(const A* partial, int parts, int size, A* sums) {
  extern __shared__ double shared_memory[];
  const int column = blockIdx.x * merge_channels + threadIdx.x % merge_channels, lane = threadIdx.x / merge_channels;
  A sum = 0;
#pragma unroll 4
  for (int part = lane; column < size && part < parts; part += merge_lanes) {
    sum += partial[int64_t(part) * size + column];
  }
  sum = merged(sum, reinterpret_cast<A*>(shared_memory));
  if (column < size && lane == 0) {
    sums[column] = sum;
  }
}

// Column sums over A_k of G, and of X_k, at channel i.
template <typename A>
struct ColumnSums {
  A by_bias = 0, by_weight = 0;
  __device__ ColumnSums(
      const Shape& s, const Sampling<A>& sampling, const Statistics<A>& statistics, const A* sums, int k, int i, int widest) {
    const int width = sampling.width(k);
    if (i >= width || i >= s.read) {
      return;
    }
    const Column column(i, width, widest);
    for (int j = column.begin; j < column.end; ++j) {
      const Row row(j, width, widest);
      const A share = A(1) / A(row.count);
      by_bias += share * sums[int64_t(2 * s.fragments) * s.read + j];
      by_weight += share * sums[int64_t(2 * k + (i > row.first)) * s.read + j];
    }
    by_weight = statistics.scale(k, i) * (by_weight - statistics.distance(k, i) * by_bias);
  }
};

// Sums to small gradients and to the coefficients of grad_y = U^T g - level - slope x. Grid: blocks of channels, n + 2 roles:
// r < n: row r of grad_weight and grad_bias; n: level and slope; n + 1: grad_probs. Null pointers are not asked for.
template <typename A>
__global__ void __launch_bounds__(block_threads, 2) gradients(Shape s, Sampling<A> sampling, Statistics<A> statistics, const A* sums,
    A* grad_probs, A* grad_weight, A* grad_bias, A* level, A* slope) {
  extern __shared__ double shared_memory[];
  A* memory = reinterpret_cast<A*>(shared_memory);
  const int i = blockIdx.x * blockDim.x + threadIdx.x, role = blockIdx.y, widest = sampling.widest();
  if (role < s.rows) {
    if (grad_weight == nullptr || i >= s.columns) {
      return;
    }
    A to_weight = 0, to_bias = 0;
    for (int k = 0; k < s.fragments; ++k) {
      if (sampling.row(k) == role) {
        const ColumnSums<A> column(s, sampling, statistics, sums, k, i, widest);
        to_weight += sampling.probs[k] * column.by_weight;
        to_bias += sampling.probs[k] * column.by_bias;
      }
    }
    grad_weight[int64_t(role) * s.columns + i] = to_weight;
    grad_bias[int64_t(role) * s.columns + i] = to_bias;
  } else if (role == s.rows) {
    if (level == nullptr || i >= s.read) {
      return;
    }
    A constant = 0, linear = 0;
    for (int k = 0; s.training && k < s.fragments; ++k) {
      const ColumnSums<A> column(s, sampling, statistics, sums, k, i, widest);
      if (i < sampling.width(k)) {
        const A factor = sampling.probs[k] * sampling.gamma(k, i) * statistics.scale(k, i);
        constant += factor * column.by_bias;
        linear += factor * column.by_weight * statistics.scale(k, i);
      }
    }
    const A pixels = s.pixels > 0 ? A(s.pixels) : A(1);
    level[i] = constant / pixels;
    slope[i] = linear / pixels;
  } else if (blockIdx.x == 0 && grad_probs != nullptr) {
    for (int k = 0; k < s.fragments; ++k) {
      A total = 0;
      for (int channel = threadIdx.x; channel < s.read && channel < sampling.width(k); channel += blockDim.x) {
        const ColumnSums<A> column(s, sampling, statistics, sums, k, channel, widest);
        total += sampling.gamma(k, channel) * column.by_weight + sampling.beta(k, channel) * column.by_bias;
      }
      memory[threadIdx.x] = total;
      for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
          memory[threadIdx.x] += memory[threadIdx.x + half];
        }
      }
      if (threadIdx.x == 0) {
        grad_probs[k] = memory[0];
      }
      __syncthreads();
    }
  }
}

// grad_y (zero from the widest fragment on) and, unless null, the residual's gradient: grad_out where the result was not rectified.
// Grid: blocks that walk over tiles, slices of max(channels, residual_channels).
template <typename T, int K, typename A = accumulate_t<T>>
__global__ void __launch_bounds__(block_threads) unapply(Shape s, Sampling<A> sampling, Statistics<A> statistics, const A* level,
    const A* slope, const T* grad_out, const T* out, const T* y, T* grad_y, T* grad_residual) {
  extern __shared__ double shared_memory[];
  A* memory = reinterpret_cast<A*>(shared_memory);
  const int first = blockIdx.y * s.slice;
  const int stop = first + s.slice < s.channels ? first + s.slice : s.channels;
  const int residual_stop = first + s.slice < s.residual_channels ? first + s.slice : s.residual_channels;
  const int widest = sampling.widest(), narrowest = sampling.narrowest();
  // Row j reaches channels j narrowest / widest .. j: these channels hear from rows as far as `reach`.
  const int64_t reach = (int64_t(stop) * widest + narrowest - 1) / narrowest;
  const Span span(s, first, first < widest ? static_cast<int>(reach < widest ? reach : widest) : first,
      s.result_channels, pack_of<T>);
  const Shared<A> g(memory, s, span.begin, span.end - span.begin);
  const Shared<A> result(memory + s.tile_size(span.end - span.begin), s, first, stop - first);
  const int kept = grad_residual && residual_stop > span.end ? residual_stop : span.end;
  const Lanes my(s.slice);
  const int i = first + my.channel;
  const bool hears = i < stop && i < widest && i < s.read;

  int begin[K], end[K];
  A factor[K], begin_share[K], end_share[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    begin[k] = end[k] = 0;
    factor[k] = begin_share[k] = end_share[k] = 0;
    if (hears && k < s.fragments && i < sampling.width(k)) {
      const int width = sampling.width(k);
      const Column column(i, width, widest);
      begin[k] = column.begin;
      end[k] = column.end;
      factor[k] = sampling.probs[k] * sampling.gamma(k, i) * statistics.scale(k, i);
      begin_share[k] = A(1) / A(Row(column.begin, width, widest).count);
      end_share[k] = A(1) / A(Row(column.end - 1, width, widest).count);
    }
  }
  const bool corrects = s.training && hears;
  const A constant = corrects ? level[i] : A(0), linear = corrects ? slope[i] : A(0);
  const A origin = corrects ? statistics.origin(i) : A(0);

  for (int64_t number = blockIdx.x; number < s.tiles; number += gridDim.x) {
    const Tile tile(s, number);
    tile.each<T>(s, s.result_channels, span.begin, kept, [&](auto size, int pixel, int channel, int64_t offset) {
      auto values = gradient<size, A>(s, grad_out, out, offset);
      if (channel < span.end) {
#pragma unroll
        for (int v = 0; v < size; ++v) {
          g.at(s, pixel, channel, v) = static_cast<A>(values.value[v]);
        }
      }
      if (grad_residual && channel < residual_stop) {
        const int64_t position = s.last ? (tile.start + pixel) * s.residual_channels + channel
                                        : (tile.image * s.residual_channels + channel) * s.area + tile.start + pixel;
        *reinterpret_cast<Vector<T, size>*>(grad_residual + position) = values;
      }
    });
    if (s.training) {
      tile.each<T>(s, s.channels, first, stop, [&](auto size, int pixel, int channel, int64_t offset) {
        const auto values = load<size>(y, offset);
#pragma unroll
        for (int v = 0; v < size; ++v) {
          result.at(s, pixel, channel, v) = static_cast<A>(values.value[v]);
        }
      });
    }
    __syncthreads();
    if (my.active && i < stop) {
      for (int pixel = my.lane; pixel < tile.count; pixel += my.count) {
        A sum = 0;
        if (hears) {
#pragma unroll
          for (int k = 0; k < K; ++k) {
            if (begin[k] < end[k]) {
              A part = begin_share[k] * g.at(pixel, begin[k]);
              for (int j = begin[k] + 1; j < end[k]; ++j) {
                part += (j == end[k] - 1 ? end_share[k] : A(1)) * g.at(pixel, j);
              }
              sum += factor[k] * part;
            }
          }
          if (s.training) {
            sum -= constant + linear * (result.at(pixel, i) - origin);
          }
        }
        result.at(pixel, i) = sum;
      }
    }
    __syncthreads();
    tile.each<T>(s, s.channels, first, stop, [&](auto size, int pixel, int channel, int64_t offset) {
      Vector<T, size> values;
#pragma unroll
      for (int v = 0; v < size; ++v) {
        values.value[v] = static_cast<T>(result.at(s, pixel, channel, v));
      }
      *reinterpret_cast<Vector<T, size>*>(grad_y + offset) = values;
    });
    __syncthreads();
  }
}

}  // namespace tas_fast
