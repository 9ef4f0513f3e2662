// The inner loops of banded maps, sums and statistics over tiles of pixels (channels_last) and of planes (contiguous), for the
// vector unit of the machine. Data is of type T, sums and parameters of type A = accumulate_t<T>.
#pragma once

#include "band.h"

namespace tas_fast {

// out = relu(map(sources) + residual + z_scale * (z - z_shift)), the last three if given. z_scale and z_shift have an entry for
// each row (and, by pixel, as many as Program::padded(rows)).
template <typename T, typename A = accumulate_t<T>>
struct MapTail {
  T* out;
  int64_t out_stride;
  const T* residual = nullptr;
  int64_t residual_stride = 0, residual_rows = 0;
  const T* z = nullptr;
  int64_t z_stride = 0;
  const A *z_scale = nullptr, *z_shift = nullptr;
  bool relu = false;
  int64_t ahead = 0;  // by pixel: the distance of the tile that follows, fetched meanwhile
};

// Sums of (value - centre) and of its square. The centre is the mean of a few values spread over all, so that the squares lose
// nothing to a large mean, and to values of different size no more than the number of all over the number of those.
template <typename A>
struct RoughMoments {
  A *centre, *sum, *squares;
};

// A stride is the distance of pixels (by pixel) or of planes (by plane). A gate, where given, has the layout of the input and
// lets pass what is not at or below zero. `limit` ends the memory that may be read or written a vector at a time.
template <typename T, typename A = accumulate_t<T>>
struct Kernels {
  int64_t lanes;

  // Copies `channels` of each pixel to rows of `out_stride` >= lanes.
  void (*stage_pixels)(const T* in, const T* gate, int64_t in_stride, const T* limit, A* out, int64_t out_stride, int64_t pixels,
      int64_t channels);
  // Copies planes, minus shift per plane, and pads each with zeros to out_stride.
  void (*stage_planes)(const T* in, const T* gate, int64_t in_stride, A* out, int64_t out_stride, int64_t planes, int64_t size,
      const A* shift);
  // out = gated in, row by row.
  void (*gate_rows)(const T* in, const T* gate, int64_t in_stride, const T* limit, T* out, int64_t out_stride, T* out_limit,
      int64_t rows, int64_t size);
  // The map by pixel; sources and out have at least `lanes` channels, and the residual as many as out.
  void (*map_pixels)(
      const Program<A>& program, const A* const* source, const int64_t* stride, int64_t pixels, bool centred, MapTail<T> tail);
  // The map by plane of at least `lanes` pixels.
  void (*map_planes)(const BandMap<A>& map, const A* const* plane, int64_t size, MapTail<T> tail);
  // Adds the residual's channels to the first of `channels` sums, appends zeros, rectifies and stores whole pixels.
  void (*finish_pixels)(const A* sum, int64_t sum_stride, int64_t channels, const T* residual, int64_t residual_channels,
      const T* residual_limit, T* out, int64_t out_channels, int64_t pixels, bool relu);
  // For each of `channels` >= lanes over pixels.
  void (*moments_pixels)(const T* in, int64_t stride, int64_t pixels, int64_t channels, RoughMoments<A> result);
  // For one channel over `count` planes of `size` >= lanes.
  void (*moments_planes)(const T* in, int64_t stride, int64_t count, int64_t size, RoughMoments<A> result);
  // Adds sum g_r and sum g_r source_column(e) to sums: for vector q of the program `lanes` of the former at
  // lanes * (begin[q] + q), those of its slots behind. Sources and g have at least `lanes` channels.
  void (*reduce_pixels)(const Program<A>& program, const A* const* source, const int64_t* stride, bool centred, const T* g,
      const T* gate, int64_t g_stride, int64_t pixels, A* sums);
  // The same by plane, with row r and its entries in place of q and its slots and partial sums in the lanes. Planes are padded
  // to a multiple of `lanes` with zeros; `staged` holds one of them.
  void (*reduce_planes)(const Pattern& pattern, const A* const* plane, const T* g, const T* gate, int64_t g_stride, int64_t size,
      A* staged, A* sums);
  // Moves sums to total: lane by lane, or the sum of all lanes.
  void (*flush_lanes)(A* sums, double* total, int64_t count);
  void (*flush_sums)(A* sums, double* total, int64_t count);
};

// The table for this machine, for T = float, double, BFloat16, Half.
template <typename T>
const Kernels<T>& kernels();

}  // namespace tas_fast
