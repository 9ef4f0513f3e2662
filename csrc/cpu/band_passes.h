// Passes over image batches in either layout: statistics, banded maps, and the sums that their gradients need. Work is cut into
// one chunk per thread, each chunk into tiles that stay in the first caches; partial sums are added in the order of the chunks,
// so results depend on the number of threads alone.
#pragma once

#include "band_kernels.h"

#include <memory>
#include <type_traits>

namespace tas_fast {

// `size` pixels in each image; by pixel: channels are adjacent in memory (channels_last), otherwise pixels are.
struct Geometry {
  int64_t images, size;
  bool by_pixel;

  int64_t pixels() const {
    return images * size;
  }
};

// A batch of which a map reads the first `used` of its `channels`; where `gate` has values at or below zero it counts as zero.
template <typename T>
struct Input {
  const T* data;
  int64_t channels, used;
  const T* gate = nullptr;
};

// out = relu(map + residual + z_scale * (z - z_shift)) with zeros for missing channels; all pointers but out may be null. The
// pass `backwards` begins with what the pass before it touched last.
template <typename T, typename A = accumulate_t<T>>
struct Output {
  T* data;
  int64_t channels;
  const T* residual = nullptr;
  int64_t residual_channels = 0;
  const T* z = nullptr;
  int64_t z_channels = 0;
  std::vector<A> z_scale{}, z_shift{};
  bool relu = false;
  bool backwards = false;
};

struct Moments {
  std::vector<double> mean, squares;  // squares: sum of (value - mean)^2
  double count = 0;

  explicit Moments(int64_t channels) : mean(channels), squares(channels) {}

  // Chan, Golub and LeVeque (1983): exact for any means, unlike sums of squares.
  void add(double other_count, int64_t c, double other_mean, double other_squares) {
    const double share = other_count / (count + other_count), distance = other_mean - mean[c];
    mean[c] += distance * share;
    squares[c] += other_squares + distance * distance * count * share;
  }
  template <typename A>
  void add(double other_count, int64_t c, A centre, A sum, A rough_squares) {
    const double offset = static_cast<double>(sum) / other_count;
    add(other_count, c, centre + offset, rough_squares - offset * sum);
  }
  void add(const Moments& other) {
    if (other.count > 0) {
      for (size_t c = 0; c < mean.size(); ++c) {
        add(other.count, static_cast<int64_t>(c), other.mean[c], other.squares[c]);
      }
      count += other.count;
    }
  }
};

// Sums over all pixels for a pattern: of g_r for each row, and of g_r x_column(e) for each entry.
struct Sums {
  std::vector<double> row, entry;
};

constexpr int64_t plane_alignment = 16;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Memory of this thread that lasts until its next call, aligned to a cache line.
template <typename A>
A* scratch(int64_t count) {
  thread_local std::unique_ptr<char[]> memory;
  thread_local int64_t capacity = 0;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(A)) + 64;
  if (bytes > capacity) {
    memory.reset(new char[bytes]);
    capacity = bytes;
  }
  return reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
}

inline int64_t chunks_of(int64_t units, int64_t elements) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min({threads, units, elements / 16384}));
}

// Calls body(chunk, first, last) for `chunks` even parts of 0 .. units - 1.
template <typename Body>
void in_chunks(int64_t chunks, int64_t units, const Body& body) {
  const auto run = [&](int64_t chunk) { body(chunk, units * chunk / chunks, units * (chunk + 1) / chunks); };
  if (chunks == 1) {
    run(0);
    return;
  }
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      run(chunk);
    }
  });
}

// Calls body(first, last) for parts of `step` units, from the end if `backwards`.
template <typename Body>
void in_tiles(int64_t first, int64_t last, int64_t step, bool backwards, const Body& body) {
  const int64_t tiles = (last - first + step - 1) / step;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = first + (backwards ? tiles - 1 - t : t) * step;
    body(begin, std::min(begin + step, last));
  }
}

// How planes are cut: into tiles of about `wanted` pixels, none below `plane_alignment` unless the plane is.
struct PlaneTiles {
  int64_t size, count;

  PlaneTiles(int64_t size_, int64_t wanted)
      : size(size_), count(std::max<int64_t>(1, size_ / std::max<int64_t>(wanted, 4 * plane_alignment))) {}
  int64_t begin(int64_t t) const {
    return t == count ? size : size * t / count / plane_alignment * plane_alignment;
  }
  int64_t longest() const {
    return std::min(size, round_up(size / count + plane_alignment, plane_alignment));
  }
};

inline int64_t pixels_per_tile(int64_t numbers_per_pixel, int64_t budget) {
  return std::clamp<int64_t>(budget / numbers_per_pixel / 8 * 8, 8, 512);
}

template <typename T>
Moments moments(const T* in, int64_t channels, int64_t used, const Geometry& geometry) {
  using A = accumulate_t<T>;
  const Kernels<T>& kernel = kernels<T>();
  const int64_t lanes = kernel.lanes, padded = std::max(used, lanes);
  const int64_t tile = geometry.by_pixel ? pixels_per_tile(channels, 24576) : 0;
  const PlaneTiles tiles(geometry.size, 8192);
  const int64_t group = geometry.by_pixel ? 0 : std::max<int64_t>(1, 2048 / geometry.size);
  const int64_t units = geometry.by_pixel ? geometry.pixels() : geometry.images * tiles.count;
  const int64_t chunks = chunks_of(units, geometry.pixels() * used);
  std::vector<Moments> partial(chunks, Moments(used));
  in_chunks(chunks, units, [&](int64_t chunk, int64_t first, int64_t last) {
    Moments& sum = partial[chunk];
    A* const memory = scratch<A>(3 * padded + (used < lanes ? tile * lanes : 0));
    A* const staged = memory + 3 * padded;
    const RoughMoments<A> rough{memory, memory + padded, memory + 2 * padded};
    const auto by_pixel = [&](int64_t begin, int64_t end) {
      const T* from = in + begin * channels;
      if (used >= lanes) {
        kernel.moments_pixels(from, channels, end - begin, used, rough);
      } else {
        const T* limit = in + geometry.pixels() * channels;
        kernel.stage_pixels(from, nullptr, channels, limit, staged, lanes, end - begin, used);
        kernels<A>().moments_pixels(staged, lanes, end - begin, lanes, rough);
      }
      const double count = static_cast<double>(end - begin);
      for (int64_t c = 0; c < used; ++c) {
        sum.add(count, c, rough.centre[c], rough.sum[c], rough.squares[c]);
      }
      sum.count += count;
    };
    const auto by_plane = [&](int64_t begin, int64_t end) {
      const int64_t image = begin / tiles.count, t = begin % tiles.count, size = tiles.begin(t + 1) - tiles.begin(t);
      const T* from = in + image * channels * geometry.size + tiles.begin(t);
      const double count = static_cast<double>((end - begin) * size);
      for (int64_t c = 0; c < used; ++c) {
        kernel.moments_planes(from + c * geometry.size, channels * geometry.size, end - begin, size, rough);
        sum.add(count, c, *rough.centre, *rough.sum, *rough.squares);
      }
      sum.count += count;
    };
    if (geometry.by_pixel) {
      in_tiles(first, last, tile, false, by_pixel);
    } else {
      in_tiles(first, last, tiles.count == 1 ? group : 1, false, by_plane);
    }
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    partial[0].add(partial[chunk]);
  }
  return partial[0];
}

template <typename T, typename A = accumulate_t<T>>
bool readable_in_place(const Input<T>& input, int64_t least) {
  return std::is_same_v<T, A> && input.gate == nullptr && input.used >= least;
}

template <typename T, typename A = accumulate_t<T>>
void apply_by_pixel(
    const BandMap<A>& map, const std::vector<Input<T>>& inputs, const Geometry& geometry, const Output<T>& output) {
  const Kernels<T>& kernel = kernels<T>();
  const Program<A> program(map, kernel.lanes);
  const int64_t rows = program.rows, padded_rows = program.padded(rows), pixels = geometry.pixels();
  const bool whole = rows >= kernel.lanes && output.channels == rows &&
      (output.residual == nullptr || output.residual_channels == rows);
  int64_t numbers = padded_rows, staged = 0;
  for (const Input<T>& input : inputs) {
    numbers += program.padded(input.used);
    staged += readable_in_place(input, kernel.lanes) ? 0 : program.padded(input.used);
  }
  if (!whole) {
    staged += padded_rows + (output.z == nullptr ? 0 : padded_rows);
  }
  std::vector<A> z_scale = output.z_scale, z_shift = output.z_shift;
  z_scale.resize(padded_rows);
  z_shift.resize(padded_rows);
  const int64_t tile = pixels_per_tile(numbers, 8192), chunks = chunks_of(pixels, pixels * rows);
  in_chunks(chunks, pixels, [&](int64_t, int64_t first, int64_t last) {
    std::vector<const A*> source(inputs.size());
    std::vector<int64_t> stride(inputs.size());
    A* const memory = scratch<A>(tile * staged + kernel.lanes);
    in_tiles(first, last, tile, output.backwards, [&](int64_t begin, int64_t end) {
      const int64_t count = end - begin;
      A* free = memory;
      const auto stage = [&](const T* data, const T* gate, int64_t channels, int64_t used) {
        const int64_t at = begin * channels, padded = program.padded(used);
        const T* limit = data + pixels * channels;
        kernel.stage_pixels(
            data + at, gate == nullptr ? nullptr : gate + at, channels, limit, free, padded, count, used);
        free += tile * padded;
        return free - tile * padded;
      };
      for (size_t d = 0; d < inputs.size(); ++d) {
        const Input<T>& input = inputs[d];
        if (readable_in_place(input, kernel.lanes)) {
          source[d] = reinterpret_cast<const A*>(input.data + begin * input.channels);
          stride[d] = input.channels;
        } else {
          source[d] = stage(input.data, input.gate, input.channels, input.used);
          stride[d] = program.padded(input.used);
        }
      }
      T* out = output.data + begin * output.channels;
      const T* residual = output.residual == nullptr ? nullptr : output.residual + begin * output.residual_channels;
      const bool centred = !map.shift.empty();
      if (whole) {
        MapTail<T> tail{out, output.channels, residual, output.residual_channels};
        tail.z = output.z == nullptr ? nullptr : output.z + begin * output.z_channels;
        tail.z_stride = output.z_channels;
        tail.z_scale = z_scale.data();
        tail.z_shift = z_shift.data();
        tail.relu = output.relu;
        tail.ahead = output.backwards ? -tile : tile;
        kernel.map_pixels(program, source.data(), stride.data(), count, centred, tail);
        return;
      }
      MapTail<A> tail{};
      if (output.z != nullptr) {
        tail.z = stage(output.z, nullptr, output.z_channels, rows);
        tail.z_stride = padded_rows;
        tail.z_scale = z_scale.data();
        tail.z_shift = z_shift.data();
      }
      tail.out = free;
      tail.out_stride = padded_rows;
      kernels<A>().map_pixels(program, source.data(), stride.data(), count, centred, tail);
      kernel.finish_pixels(free, padded_rows, rows, residual, output.residual_channels,
          output.residual + pixels * output.residual_channels, out, output.channels, count, output.relu);
    });
  });
}

// Pointers to the planes of one tile, staged in `memory` unless they are readable in place; shift is empty or per plane.
template <typename T, typename A = accumulate_t<T>>
void planes_of(const std::vector<Input<T>>& inputs, int64_t image, int64_t from, int64_t size, int64_t padded, int64_t plane,
    bool in_place, const std::vector<A>& shift, A* memory, std::vector<const A*>& planes) {
  int64_t row = 0;
  for (const Input<T>& input : inputs) {
    const int64_t at = image * input.channels * plane + from;
    if (in_place && readable_in_place(input, 0)) {
      for (int64_t c = 0; c < input.used; ++c) {
        planes[row++] = reinterpret_cast<const A*>(input.data + at + c * plane);
      }
      continue;
    }
    kernels<T>().stage_planes(input.data + at, input.gate == nullptr ? nullptr : input.gate + at, plane, memory, padded,
        input.used, size, shift.empty() ? nullptr : shift.data() + row);
    for (int64_t c = 0; c < input.used; ++c, memory += padded) {
      planes[row++] = memory;
    }
  }
}

template <typename T, typename A = accumulate_t<T>>
void apply_by_plane(
    const BandMap<A>& map, const std::vector<Input<T>>& inputs, const Geometry& geometry, const Output<T>& output) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t rows = map.pattern.rows(), plane = geometry.size, columns = map.pattern.first.back();
  const PlaneTiles tiles(plane, 49152 / columns);
  const int64_t units = geometry.images * tiles.count, padded = round_up(tiles.longest(), plane_alignment);
  const int64_t chunks = chunks_of(units, geometry.pixels() * rows);
  bool in_place = true;
  for (const Input<T>& input : inputs) {
    in_place = in_place && readable_in_place(input, 0);
  }
  in_chunks(chunks, units, [&](int64_t, int64_t first, int64_t last) {
    std::vector<const A*> planes(columns);
    A* const memory = scratch<A>(in_place ? 0 : columns * padded);
    in_tiles(first, last, 1, output.backwards, [&](int64_t unit, int64_t) {
      const int64_t image = unit / tiles.count, from = tiles.begin(unit % tiles.count);
      const int64_t size = tiles.begin(unit % tiles.count + 1) - from;
      planes_of(inputs, image, from, size, padded, plane, true, {}, memory, planes);
      const auto at = [&](auto* data, int64_t channels) {
        return data == nullptr ? nullptr : data + image * channels * plane + from;
      };
      MapTail<T> tail{at(output.data, output.channels), plane, at(output.residual, output.residual_channels), plane,
          output.residual_channels, at(output.z, output.z_channels), plane, output.z_scale.data(), output.z_shift.data(),
          output.relu};
      kernel.map_planes(map, planes.data(), size, tail);
      for (int64_t c = rows; c < output.channels; ++c) {
        const T* residual = c < output.residual_channels ? tail.residual + c * plane : nullptr;
        kernel.finish_pixels(nullptr, 0, 0, residual, residual == nullptr ? 0 : size, residual + size, tail.out + c * plane,
            size, 1, output.relu);
      }
    });
  });
}

// output = map(inputs), and what Output adds. Planes have at least `plane_alignment` pixels.
template <typename T, typename A = accumulate_t<T>>
void apply(const BandMap<A>& map, const std::vector<Input<T>>& inputs, const Geometry& geometry, const Output<T>& output) {
  geometry.by_pixel ? apply_by_pixel(map, inputs, geometry, output) : apply_by_plane(map, inputs, geometry, output);
}

// Where the gated first channels of g go during a reduction, in the layout of g; nowhere if null.
template <typename T>
struct Gated {
  T* data = nullptr;
  int64_t channels = 0;
};

template <typename T, typename A = accumulate_t<T>>
Sums reduce_by_pixel(const BandMap<A>& map, const std::vector<Input<T>>& inputs, const Input<T>& g, const Geometry& geometry,
    const Gated<T>& gated) {
  const Kernels<T>& kernel = kernels<T>();
  const Program<A> program(map, kernel.lanes);
  const int64_t rows = program.rows, padded_rows = program.padded(rows), pixels = geometry.pixels();
  int64_t numbers = padded_rows;
  for (const Input<T>& input : inputs) {
    numbers += program.padded(input.used);
  }
  const int64_t count = (program.vectors() + program.slots()) * kernel.lanes;
  const int64_t tile = pixels_per_tile(numbers, 8192), chunks = chunks_of(pixels, pixels * rows);
  std::vector<std::vector<double>> partial(chunks);
  in_chunks(chunks, pixels, [&](int64_t chunk, int64_t first, int64_t last) {
    partial[chunk].assign(count, 0.0);
    A* const sums = scratch<A>(round_up(count, 64) + tile * numbers);
    A* const memory = sums + round_up(count, 64);
    std::fill_n(sums, count, A(0));
    std::vector<const A*> source(inputs.size());
    std::vector<int64_t> stride(inputs.size());
    int64_t unflushed = 0;
    in_tiles(first, last, tile, false, [&](int64_t begin, int64_t end) {
      const int64_t size = end - begin;
      A* free = memory;
      const auto stage = [&](const Input<T>& input) {
        const int64_t at = begin * input.channels, padded = program.padded(input.used);
        const T* gate = input.gate == nullptr ? nullptr : input.gate + at;
        const T* limit = input.data + pixels * input.channels;
        kernel.stage_pixels(input.data + at, gate, input.channels, limit, free, padded, size, input.used);
        free += tile * padded;
        return free - tile * padded;
      };
      for (size_t d = 0; d < inputs.size(); ++d) {
        const bool in_place = readable_in_place(inputs[d], kernel.lanes);
        source[d] = in_place ? reinterpret_cast<const A*>(inputs[d].data + begin * inputs[d].channels) : stage(inputs[d]);
        stride[d] = in_place ? inputs[d].channels : program.padded(inputs[d].used);
      }
      const T* from = g.data + begin * g.channels;
      const T* gate = g.gate == nullptr ? nullptr : g.gate + begin * g.channels;
      if (gated.data != nullptr) {
        const bool flat = gated.channels == g.channels;
        kernel.gate_rows(from, gate, g.channels, g.data + pixels * g.channels, gated.data + begin * gated.channels,
            gated.channels, gated.data + end * gated.channels, flat ? 1 : size, flat ? size * g.channels : gated.channels);
      }
      const bool centred = !map.shift.empty();
      if (rows >= kernel.lanes) {
        kernel.reduce_pixels(program, source.data(), stride.data(), centred, from, gate, g.channels, size, sums);
      } else {
        const A* staged_g = stage(g);
        kernels<A>().reduce_pixels(
            program, source.data(), stride.data(), centred, staged_g, nullptr, padded_rows, size, sums);
      }
      unflushed += end - begin;
      if (unflushed >= 1024 || end == last) {
        kernel.flush_lanes(sums, partial[chunk].data(), count);
        unflushed = 0;
      }
    });
  });
  Sums total{std::vector<double>(rows), std::vector<double>(map.pattern.entries())};
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < count; ++i) {
      partial[0][i] += partial[chunk][i];
    }
  }
  const double* sum = partial[0].data();
  for (int64_t q = 0; q < program.vectors(); ++q) {
    for (int64_t l = 0; l < std::min(kernel.lanes, rows - program.row[q]); ++l) {
      total.row[program.row[q] + l] = sum[l];
    }
    sum += kernel.lanes;
    for (int64_t s = program.begin[q]; s < program.begin[q + 1]; ++s, sum += kernel.lanes) {
      for (int64_t l = 0; l < kernel.lanes; ++l) {
        if (const int32_t e = program.entry[s * kernel.lanes + l]; e >= 0) {
          total.entry[e] = sum[l];
        }
      }
    }
  }
  return total;
}

template <typename T, typename A = accumulate_t<T>>
Sums reduce_by_plane(const BandMap<A>& map, const std::vector<Input<T>>& inputs, const Input<T>& g, const Geometry& geometry,
    const Gated<T>& gated) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t rows = map.pattern.rows(), plane = geometry.size, columns = map.pattern.first.back();
  const PlaneTiles tiles(plane, 49152 / columns);
  const int64_t units = geometry.images * tiles.count, padded = round_up(tiles.longest(), plane_alignment);
  const int64_t count = rows + map.pattern.entries();
  const int64_t chunks = chunks_of(units, geometry.pixels() * rows);
  std::vector<std::vector<double>> partial(chunks);
  in_chunks(chunks, units, [&](int64_t chunk, int64_t first, int64_t last) {
    partial[chunk].assign(count, 0.0);
    A* const sums = scratch<A>((count + 1) * 64 + padded + columns * padded);
    A* const staged_g = sums + round_up(count * kernel.lanes, 64);
    A* const memory = staged_g + padded;
    std::fill_n(sums, count * kernel.lanes, A(0));
    std::vector<const A*> planes(columns);
    int64_t unflushed = 0;
    in_tiles(first, last, 1, false, [&](int64_t unit, int64_t) {
      const int64_t image = unit / tiles.count, from = tiles.begin(unit % tiles.count);
      const int64_t size = tiles.begin(unit % tiles.count + 1) - from, at = image * g.channels * plane + from;
      // Lengths are padded for this tile alone: the kernels step through whole vectors.
      planes_of(inputs, image, from, size, round_up(size, plane_alignment), plane, false, map.shift, memory, planes);
      const T* gate = g.gate == nullptr ? nullptr : g.gate + at;
      if (gated.data != nullptr) {
        T* to = gated.data + image * gated.channels * plane + from;
        kernel.gate_rows(g.data + at, gate, plane, nullptr, to, plane, nullptr, gated.channels, size);
      }
      kernel.reduce_planes(map.pattern, planes.data(), g.data + at, gate, plane, size, staged_g, sums);
      unflushed += size;
      if (unflushed >= 1024 * kernel.lanes || unit + 1 == last) {
        kernel.flush_sums(sums, partial[chunk].data(), count);
        unflushed = 0;
      }
    });
  });
  Sums total{std::vector<double>(rows), std::vector<double>(map.pattern.entries())};
  for (const std::vector<double>& sums : partial) {
    const double* sum = sums.data();
    for (int64_t r = 0; r < rows; ++r) {
      total.row[r] += *sum++;
      for (int64_t e = map.pattern.begin[r]; e < map.pattern.begin[r + 1]; ++e) {
        total.entry[e] += *sum++;
      }
    }
  }
  return total;
}

// Sums of the gated g and of its products with the inputs minus map.shift, for the pattern of `map`; map.weight is not used.
template <typename T, typename A = accumulate_t<T>>
Sums reduce(const BandMap<A>& map, const std::vector<Input<T>>& inputs, const Input<T>& g, const Geometry& geometry,
    const Gated<T>& gated) {
  return geometry.by_pixel ? reduce_by_pixel(map, inputs, g, geometry, gated)
                           : reduce_by_plane(map, inputs, g, geometry, gated);
}

}  // namespace tas_fast
