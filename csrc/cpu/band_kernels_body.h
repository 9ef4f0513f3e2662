// The loops of band_kernels.h in GCC's vector types. Included once per vector unit, with TAS_FAST_UNIT its namespace and
// TAS_FAST_BYTES the size of its registers, inside a region compiled for it; so nothing here may call code of other regions
// that is not inlined.

namespace tas_fast::TAS_FAST_UNIT {

#define TAS_FAST_INLINED __attribute__((always_inline))
#define TAS_FAST_INLINE inline TAS_FAST_INLINED

template <typename A>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(TAS_FAST_BYTES)));
  typedef float loose __attribute__((vector_size(TAS_FAST_BYTES), aligned(4), may_alias));
  typedef int32_t index __attribute__((vector_size(TAS_FAST_BYTES)));
  typedef int32_t loose_index __attribute__((vector_size(TAS_FAST_BYTES), aligned(4), may_alias));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(TAS_FAST_BYTES)));
  typedef double loose __attribute__((vector_size(TAS_FAST_BYTES), aligned(8), may_alias));
  typedef int64_t index __attribute__((vector_size(TAS_FAST_BYTES)));
  typedef int64_t loose_index __attribute__((vector_size(TAS_FAST_BYTES), aligned(8), may_alias));
};
typedef uint32_t Bits __attribute__((vector_size(TAS_FAST_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(TAS_FAST_BYTES / 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(TAS_FAST_BYTES / 2), aligned(2), may_alias));

template <typename A>
constexpr int64_t lanes_of = TAS_FAST_BYTES / sizeof(A);
template <typename A>
using vector_t = typename Vector<A>::type;
template <typename A>
using index_t = typename Vector<A>::index;
using FloatVector = vector_t<float>;

TAS_FAST_INLINE FloatVector load(const float* p) {
  return *reinterpret_cast<const Vector<float>::loose*>(p);
}
TAS_FAST_INLINE vector_t<double> load(const double* p) {
  return *reinterpret_cast<const Vector<double>::loose*>(p);
}
TAS_FAST_INLINE Bits load_halves(const void* p) {
  return __builtin_convertvector(static_cast<Halves>(*static_cast<const LooseHalves*>(p)), Bits);
}
TAS_FAST_INLINE FloatVector load(const BFloat16* p) {
  return reinterpret_cast<FloatVector>(load_halves(p) << 16);
}
TAS_FAST_INLINE FloatVector load(const Half* p) {
  const Bits half = load_halves(p), magnitude = (half & 0x7fff) << 13;
  // 2^112 moves the exponent from half's bias to float's, of subnormal numbers too.
  const Bits scaled = reinterpret_cast<Bits>(reinterpret_cast<FloatVector>(magnitude) * 0x1p112f);
  const Bits finite_or_not = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : scaled;
  return reinterpret_cast<FloatVector>(finite_or_not | (half & 0x8000) << 16);
}

TAS_FAST_INLINE void store(float* p, FloatVector v) {
  *reinterpret_cast<Vector<float>::loose*>(p) = v;
}
TAS_FAST_INLINE void store(double* p, vector_t<double> v) {
  *reinterpret_cast<Vector<double>::loose*>(p) = v;
}
TAS_FAST_INLINE void store_halves(void* p, Bits bits) {
  *static_cast<LooseHalves*>(p) = __builtin_convertvector(bits, Halves);
}
TAS_FAST_INLINE void store(BFloat16* p, FloatVector v) {
  const Bits bits = reinterpret_cast<Bits>(v), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  store_halves(p, v != v ? Bits{} + 0x7fc0 : rounded);
}
TAS_FAST_INLINE void store(Half* p, FloatVector v) {
  const Bits bits = reinterpret_cast<Bits>(v), sign = bits & 0x80000000, magnitude = bits ^ sign;
  const Bits normal = (magnitude - 0x38000000 + 0x0fff + (magnitude >> 13 & 1)) >> 13;
  // Adding one half lets the hardware round a subnormal result.
  const Bits subnormal = reinterpret_cast<Bits>(reinterpret_cast<FloatVector>(magnitude) + 0.5f) - 0x3f000000;
  const Bits special = magnitude > 0x7f800000 ? Bits{} + 0x7e00 : Bits{} + 0x7c00;
  const Bits finite = magnitude < 0x38800000 ? subnormal : normal;
  store_halves(p, (magnitude >= 0x47800000 ? special : finite) | sign >> 16);
}

template <typename A>
TAS_FAST_INLINE index_t<A> load_index(const typename lane_index<A>::type* p) {
  return *reinterpret_cast<const typename Vector<A>::loose_index*>(p);
}

template <typename V, typename I>
TAS_FAST_INLINE V permuted(V v, I index) {
#ifdef __clang__
  V result;
  for (int64_t l = 0; l < static_cast<int64_t>(sizeof(V) / sizeof(v[0])); ++l) {
    result[l] = v[index[l]];
  }
  return result;
#else
  return __builtin_shuffle(v, index);
#endif
}
template <typename V, typename I>
TAS_FAST_INLINE V permuted(V v, V w, I index) {
#ifdef __clang__
  constexpr int64_t lanes = sizeof(V) / sizeof(v[0]);
  V result;
  for (int64_t l = 0; l < lanes; ++l) {
    result[l] = index[l] < lanes ? v[index[l]] : w[index[l] - lanes];
  }
  return result;
#else
  return __builtin_shuffle(v, w, index);
#endif
}

template <typename V>
TAS_FAST_INLINE V positive(V v) {
  return v < 0 ? V{} : v;
}
template <typename V>
TAS_FAST_INLINE V gated(V v, V gate) {
  return gate <= 0 ? V{} : v;
}

template <typename T, typename A = accumulate_t<T>>
TAS_FAST_INLINE A gated_number(const T* in, const T* gate, int64_t i) {
  return gate != nullptr && static_cast<A>(gate[i]) <= 0 ? A(0) : static_cast<A>(in[i]);
}
template <typename T, typename V = vector_t<accumulate_t<T>>>
TAS_FAST_INLINE V gated_load(const T* in, const T* gate, int64_t i) {
  const V v = load(in + i);
  return gate == nullptr ? v : gated(v, load(gate + i));
}

template <typename T, typename A = accumulate_t<T>>
void stage_pixels(const T* in, const T* gate, int64_t in_stride, const T* limit, A* out, int64_t out_stride, int64_t pixels,
    int64_t channels) {
  constexpr int64_t lanes = lanes_of<A>;
  for (int64_t p = 0; p < pixels; ++p, in += in_stride, out += out_stride) {
    const T* gate_row = gate == nullptr ? nullptr : gate + p * in_stride;
    if (channels < lanes && limit - in < lanes) {
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = gated_number(in, gate_row, c);
      }
      continue;
    }
    for (int64_t c = 0; c < channels; c += lanes) {
      const int64_t at = c + lanes <= channels || channels < lanes ? c : channels - lanes;
      store(out + at, gated_load(in, gate_row, at));
    }
  }
}

template <typename T, typename A = accumulate_t<T>>
TAS_FAST_INLINE void stage_plane(const T* in, const T* gate, A* out, int64_t padded, int64_t size, A shift) {
  constexpr int64_t lanes = lanes_of<A>;
  int64_t p = 0;
  for (; p + lanes <= size; p += lanes) {
    store(out + p, gated_load(in, gate, p) - shift);
  }
  if (p < padded) {
    store(out + p, vector_t<A>{});
    for (; p < size; ++p) {
      out[p] = gated_number(in, gate, p) - shift;
    }
  }
}

template <typename T, typename A = accumulate_t<T>>
void stage_planes(const T* in, const T* gate, int64_t in_stride, A* out, int64_t out_stride, int64_t planes, int64_t size,
    const A* shift) {
  for (int64_t c = 0; c < planes; ++c) {
    const int64_t at = c * in_stride;
    stage_plane(in + at, gate == nullptr ? nullptr : gate + at, out + c * out_stride, out_stride, size,
        shift == nullptr ? A(0) : shift[c]);
  }
}

template <typename T, typename A = accumulate_t<T>>
void gate_rows(const T* in, const T* gate, int64_t in_stride, const T* limit, T* out, int64_t out_stride, T* out_limit,
    int64_t rows, int64_t size) {
  constexpr int64_t lanes = lanes_of<A>;
  for (int64_t r = 0; r < rows; ++r, in += in_stride, out += out_stride) {
    const T* gate_row = gate == nullptr ? nullptr : gate + r * in_stride;
    // What a short row writes behind its end is written again by the next one.
    if (size < lanes && (limit - in < lanes || out_limit - out < lanes)) {
      for (int64_t i = 0; i < size; ++i) {
        out[i] = static_cast<T>(gated_number(in, gate_row, i));
      }
      continue;
    }
    for (int64_t i = 0; i < size; i += lanes) {
      const int64_t at = i + lanes <= size || size < lanes ? i : size - lanes;
      store(out + at, gated_load(in, gate_row, at));
    }
  }
}

// Pixels of many channels are read in columns, which the hardware does not foresee: ask for the same column of the next tile.
template <int pixels, typename T>
TAS_FAST_INLINE void prefetch_columns(const T* p, int64_t stride) {
  for (int u = 0; u < pixels; ++u) {
    __builtin_prefetch(p + u * stride, 0, 2);
  }
}

// Pixels or vectors in flight, as many as the registers hold.
constexpr int block = TAS_FAST_BYTES == 64 ? 8 : 2;

// Calls use(s, of) for the slots s of a group, where of(u) are the channels that the slot reads of pixel p + u.
template <int kind, int pixels, typename A, typename Use>
TAS_FAST_INLINE void each_slot_of_kind(const Program<A>& program, const typename Program<A>::Group& group,
    const A* const* source, const int64_t* stride, int64_t p, const Use& use) {
  const int64_t step = stride[group.source];
  const A* from = source[group.source] + p * step;
  vector_t<A> first[pixels], second[kind == Program<A>::pair ? pixels : 1];
  for (int u = 0; u < pixels; ++u) {
    first[u] = load(from + u * step + group.first);
    if constexpr (kind == Program<A>::pair) {
      second[u] = load(from + u * step + group.second);
    }
  }
  for (int64_t s = group.begin; s < group.end; ++s) {
    if constexpr (kind == Program<A>::straight) {
      use(s, [&](int u) TAS_FAST_INLINED { return first[u]; });
    } else {
      const index_t<A> index = load_index<A>(program.index.data() + s * lanes_of<A>);
      if constexpr (kind == Program<A>::single) {
        use(s, [&](int u) TAS_FAST_INLINED { return permuted(first[u], index); });
      } else {
        use(s, [&](int u) TAS_FAST_INLINED { return permuted(first[u], second[u], index); });
      }
    }
  }
}

template <int pixels, typename A, typename Use>
TAS_FAST_INLINE void each_slot(const Program<A>& program, const A* const* source, const int64_t* stride, int64_t q, int64_t p,
    const Use& use) {
  const auto* group = program.groups.data() + program.group_begin.data()[q];
  const auto* last = program.groups.data() + program.group_begin.data()[q + 1];
  for (; group != last; ++group) {
    if (group->kind == Program<A>::straight) {
      each_slot_of_kind<Program<A>::straight, pixels>(program, *group, source, stride, p, use);
    } else if (group->kind == Program<A>::single) {
      each_slot_of_kind<Program<A>::single, pixels>(program, *group, source, stride, p, use);
    } else {
      each_slot_of_kind<Program<A>::pair, pixels>(program, *group, source, stride, p, use);
    }
  }
}

template <bool centred, int pixels, typename T, typename A>
TAS_FAST_INLINE void map_some_pixels(const Program<A>& program, const A* const* source, const int64_t* stride, int64_t q,
    int64_t p, const MapTail<T>& tail) {
  constexpr int64_t lanes = lanes_of<A>;
  using V = vector_t<A>;
  V sum[pixels];
  const V bias = load(program.bias.data() + q * lanes);
  for (int u = 0; u < pixels; ++u) {
    sum[u] = bias;
  }
  each_slot<pixels>(program, source, stride, q, p, [&](int64_t s, const auto& of) TAS_FAST_INLINED {
    const V weight = load(program.weight.data() + s * lanes);
    if constexpr (centred) {
      const V shift = load(program.shift.data() + s * lanes);
      for (int u = 0; u < pixels; ++u) {
        sum[u] += weight * (of(u) - shift);
      }
    } else {
      for (int u = 0; u < pixels; ++u) {
        sum[u] += weight * of(u);
      }
    }
  });
  const int64_t row = program.row.data()[q];
  if (program.vectors() > 2) {
    prefetch_columns<pixels>(source[0] + (p + tail.ahead) * stride[0] + row, stride[0]);
    if (tail.z != nullptr) {
      prefetch_columns<pixels>(tail.z + (p + tail.ahead) * tail.z_stride + row, tail.z_stride);
    }
    if (tail.residual != nullptr) {
      prefetch_columns<pixels>(tail.residual + (p + tail.ahead) * tail.residual_stride + row, tail.residual_stride);
    }
  }
  if (tail.z != nullptr) {
    const V scale = load(tail.z_scale + row), shift = load(tail.z_shift + row);
    for (int u = 0; u < pixels; ++u) {
      sum[u] += scale * (load(tail.z + (p + u) * tail.z_stride + row) - shift);
    }
  }
  if (tail.residual != nullptr) {
    for (int u = 0; u < pixels; ++u) {
      sum[u] += load(tail.residual + (p + u) * tail.residual_stride + row);
    }
  }
  if (tail.relu) {
    for (int u = 0; u < pixels; ++u) {
      sum[u] = positive(sum[u]);
    }
  }
  for (int u = 0; u < pixels; ++u) {
    store(tail.out + (p + u) * tail.out_stride + row, sum[u]);
  }
}

template <bool centred, typename T, typename A>
TAS_FAST_INLINE void map_all_pixels(
    const Program<A>& program, const A* const* source, const int64_t* stride, int64_t pixels, const MapTail<T>& tail) {
  for (int64_t q = 0; q < program.vectors(); ++q) {
    int64_t p = 0;
    for (; p + block <= pixels; p += block) {
      map_some_pixels<centred, block>(program, source, stride, q, p, tail);
    }
    for (; p < pixels; ++p) {
      map_some_pixels<centred, 1>(program, source, stride, q, p, tail);
    }
  }
}

template <typename T, typename A = accumulate_t<T>>
void map_pixels(
    const Program<A>& program, const A* const* source, const int64_t* stride, int64_t pixels, bool centred, MapTail<T> tail) {
  if (centred) {
    map_all_pixels<true>(program, source, stride, pixels, tail);
  } else {
    map_all_pixels<false>(program, source, stride, pixels, tail);
  }
}

template <bool centred, int vectors, typename T, typename A>
TAS_FAST_INLINE void map_some_of_plane(
    const BandMap<A>& map, const A* const* plane, int64_t r, int64_t p, const MapTail<T>& tail) {
  constexpr int64_t lanes = lanes_of<A>;
  using V = vector_t<A>;
  V sum[vectors];
  const A bias = map.bias.empty() ? A(0) : map.bias.data()[r];
  for (int u = 0; u < vectors; ++u) {
    sum[u] = V{} + bias;
  }
  const int32_t* columns = map.pattern.columns.data();
  const A *weights = map.weight.data(), *shifts = map.shift.data();
  const auto add = [&](int64_t e, V* to) TAS_FAST_INLINED {
    const A* from = plane[columns[e]] + p;
    const A weight = weights[e], shift = centred ? shifts[columns[e]] : A(0);
    for (int u = 0; u < vectors; ++u) {
      const V v = load(from + u * lanes);
      to[u] += weight * (centred ? v - shift : v);
    }
  };
  int64_t e = map.pattern.begin.data()[r];
  const int64_t stop = map.pattern.begin.data()[r + 1];
  if constexpr (vectors < block) {
    // Two chains of sums hide the latency that few vectors leave open.
    V other[vectors] = {};
    for (; e + 2 <= stop; e += 2) {
      add(e, sum);
      add(e + 1, other);
    }
    for (int u = 0; u < vectors; ++u) {
      sum[u] += other[u];
    }
  }
  for (; e < stop; ++e) {
    add(e, sum);
  }
  if (tail.z != nullptr) {
    const A scale = tail.z_scale[r], shift = tail.z_shift[r];
    for (int u = 0; u < vectors; ++u) {
      sum[u] += scale * (load(tail.z + r * tail.z_stride + p + u * lanes) - shift);
    }
  }
  if (r < tail.residual_rows) {
    for (int u = 0; u < vectors; ++u) {
      sum[u] += load(tail.residual + r * tail.residual_stride + p + u * lanes);
    }
  }
  for (int u = 0; u < vectors; ++u) {
    store(tail.out + r * tail.out_stride + p + u * lanes, tail.relu ? positive(sum[u]) : sum[u]);
  }
}

template <bool centred, typename T, typename A>
TAS_FAST_INLINE void map_all_planes(const BandMap<A>& map, const A* const* plane, int64_t size, const MapTail<T>& tail) {
  constexpr int64_t lanes = lanes_of<A>;
  const int64_t rows = static_cast<int64_t>(map.pattern.begin.size()) - 1;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t p = 0;
    for (; p + block * lanes <= size; p += block * lanes) {
      map_some_of_plane<centred, block>(map, plane, r, p, tail);
    }
    for (; p + block / 2 * lanes <= size; p += block / 2 * lanes) {
      map_some_of_plane<centred, block / 2>(map, plane, r, p, tail);
    }
    for (; p < size; p += lanes) {
      map_some_of_plane<centred, 1>(map, plane, r, p + lanes <= size ? p : size - lanes, tail);
    }
  }
}

template <typename T, typename A = accumulate_t<T>>
void map_planes(const BandMap<A>& map, const A* const* plane, int64_t size, MapTail<T> tail) {
  if (map.shift.empty()) {
    map_all_planes<false>(map, plane, size, tail);
  } else {
    map_all_planes<true>(map, plane, size, tail);
  }
}

template <typename T, typename A = accumulate_t<T>>
void finish_pixels(const A* sum, int64_t sum_stride, int64_t channels, const T* residual, int64_t residual_channels,
    const T* residual_limit, T* out, int64_t out_channels, int64_t pixels, bool relu) {
  constexpr int64_t lanes = lanes_of<A>;
  using V = vector_t<A>;
  const T* out_limit = out + pixels * out_channels;
  const int64_t inner = channels < residual_channels ? channels : residual_channels;
  const int64_t outer = channels < residual_channels ? residual_channels : channels;
  const int64_t ends[3] = {inner, outer, out_channels};
  for (int64_t p = 0; p < pixels; ++p, sum += sum_stride, residual += residual_channels, out += out_channels) {
    int64_t begin = 0;
    for (int part = 0; part < 3; ++part) {
      const bool has_sum = part < 2 && begin < channels, has_residual = part < 2 && begin < residual_channels;
      for (int64_t c = begin; c < ends[part]; c += lanes) {
        // What a vector writes behind its part is written again by the next part or pixel.
        if (out_limit - (out + c) >= lanes && (!has_residual || residual_limit - (residual + c) >= lanes)) {
          V v = has_sum ? load(sum + c) : V{};
          if (has_residual) {
            v += load(residual + c);
          }
          store(out + c, relu ? positive(v) : v);
          continue;
        }
        for (int64_t i = c; i < ends[part] && i < c + lanes; ++i) {
          const A v = (has_sum ? sum[i] : A(0)) + (has_residual ? static_cast<A>(residual[i]) : A(0));
          out[i] = static_cast<T>(relu && v < 0 ? A(0) : v);
        }
      }
      begin = ends[part];
    }
  }
}

template <typename T, typename A = accumulate_t<T>>
void moments_pixels(const T* in, int64_t stride, int64_t pixels, int64_t channels, RoughMoments<A> result) {
  constexpr int64_t lanes = lanes_of<A>;
  constexpr int chains = 4;
  using V = vector_t<A>;
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t at = c + lanes <= channels ? c : channels - lanes;
    V centre{};
    for (int64_t u = 0; u < 8; ++u) {
      centre += load(in + u * pixels / 8 * stride + at) * static_cast<A>(0.125);
    }
    V sum[chains] = {}, square[chains] = {};
    int64_t p = 0;
    for (; p + chains <= pixels; p += chains) {
      if (channels > 2 * lanes) {
        prefetch_columns<chains>(in + (pixels + p) * stride + at, stride);
      }
      for (int u = 0; u < chains; ++u) {
        const V v = load(in + (p + u) * stride + at) - centre;
        sum[u] += v;
        square[u] += v * v;
      }
    }
    for (; p < pixels; ++p) {
      const V v = load(in + p * stride + at) - centre;
      sum[0] += v;
      square[0] += v * v;
    }
    store(result.centre + at, centre);
    store(result.sum + at, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    store(result.squares + at, (square[0] + square[1]) + (square[2] + square[3]));
  }
}

template <typename V, typename A>
TAS_FAST_INLINE A total_of(V v) {
  A sum = 0;
  for (int64_t l = 0; l < lanes_of<A>; ++l) {
    sum += v[l];
  }
  return sum;
}

template <typename T, typename A = accumulate_t<T>>
void moments_planes(const T* in, int64_t stride, int64_t count, int64_t size, RoughMoments<A> result) {
  constexpr int64_t lanes = lanes_of<A>;
  constexpr int chains = 4;
  using V = vector_t<A>;
  V guess{};
  for (int64_t u = 0; u < 8; ++u) {
    guess += load(in + u * count / 8 * stride + u * (size - lanes) / 7);
  }
  const A centre = total_of<V, A>(guess) / static_cast<A>(8 * lanes);
  V sum[chains] = {}, square[chains] = {};
  A last_sum = 0, last_square = 0;
  for (int64_t k = 0; k < count; ++k) {
    const T* plane = in + k * stride;
    int64_t p = 0;
    for (; p + chains * lanes <= size; p += chains * lanes) {
      for (int u = 0; u < chains; ++u) {
        const V v = load(plane + p + u * lanes) - centre;
        sum[u] += v;
        square[u] += v * v;
      }
    }
    for (; p + lanes <= size; p += lanes) {
      const V v = load(plane + p) - centre;
      sum[0] += v;
      square[0] += v * v;
    }
    for (; p < size; ++p) {
      const A v = static_cast<A>(plane[p]) - centre;
      last_sum += v;
      last_square += v * v;
    }
  }
  *result.centre = centre;
  *result.sum = total_of<V, A>((sum[0] + sum[1]) + (sum[2] + sum[3])) + last_sum;
  *result.squares = total_of<V, A>((square[0] + square[1]) + (square[2] + square[3])) + last_square;
}

template <typename V, typename A>
TAS_FAST_INLINE void add_to(A* sums, V v) {
  store(sums, load(sums) + v);
}

template <bool centred, int pixels, typename T, typename A>
TAS_FAST_INLINE void reduce_some_pixels(const Program<A>& program, const A* const* source, const int64_t* stride, const T* g,
    const T* gate, int64_t g_stride, int64_t ahead, int64_t q, int64_t p, A* sums) {
  constexpr int64_t lanes = lanes_of<A>;
  using V = vector_t<A>;
  V value[pixels], part[2] = {};
  const int64_t at = p * g_stride + program.row.data()[q];
  for (int u = 0; u < pixels; ++u) {
    value[u] = gated_load(g, gate, at + u * g_stride);
    part[u % 2] += value[u];
  }
  if (program.vectors() > 2) {
    prefetch_columns<pixels>(source[0] + (p + ahead) * stride[0] + program.row.data()[q], stride[0]);
    prefetch_columns<pixels>(g + at + ahead * g_stride, g_stride);
    if (gate != nullptr) {
      prefetch_columns<pixels>(gate + at + ahead * g_stride, g_stride);
    }
  }
  sums += (program.begin.data()[q] + q) * lanes;
  add_to(sums, part[0] + part[1]);
  each_slot<pixels>(program, source, stride, q, p, [&](int64_t s, const auto& of) TAS_FAST_INLINED {
    V product[2] = {};
    if constexpr (centred) {
      const V shift = load(program.shift.data() + s * lanes);
      for (int u = 0; u < pixels; ++u) {
        product[u % 2] += value[u] * (of(u) - shift);
      }
    } else {
      for (int u = 0; u < pixels; ++u) {
        product[u % 2] += value[u] * of(u);
      }
    }
    sums += lanes;
    add_to(sums, product[0] + product[1]);
  });
}

template <bool centred, typename T, typename A>
TAS_FAST_INLINE void reduce_all_pixels(const Program<A>& program, const A* const* source, const int64_t* stride, const T* g,
    const T* gate, int64_t g_stride, int64_t pixels, A* sums) {
  for (int64_t q = 0; q < program.vectors(); ++q) {
    int64_t p = 0;
    for (; p + block <= pixels; p += block) {
      reduce_some_pixels<centred, block>(program, source, stride, g, gate, g_stride, pixels, q, p, sums);
    }
    for (; p < pixels; ++p) {
      reduce_some_pixels<centred, 1>(program, source, stride, g, gate, g_stride, pixels, q, p, sums);
    }
  }
}

template <typename T, typename A = accumulate_t<T>>
void reduce_pixels(const Program<A>& program, const A* const* source, const int64_t* stride, bool centred, const T* g,
    const T* gate, int64_t g_stride, int64_t pixels, A* sums) {
  if (centred) {
    reduce_all_pixels<true>(program, source, stride, g, gate, g_stride, pixels, sums);
  } else {
    reduce_all_pixels<false>(program, source, stride, g, gate, g_stride, pixels, sums);
  }
}

template <int vectors, typename A>
TAS_FAST_INLINE void reduce_some_of_plane(
    const Pattern& pattern, const A* const* plane, const A* g, int64_t r, int64_t p, A* sums) {
  constexpr int64_t lanes = lanes_of<A>;
  using V = vector_t<A>;
  V value[vectors], first{}, second{};
  for (int u = 0; u < vectors; ++u) {
    value[u] = load(g + p + u * lanes);
    (u % 2 ? second : first) += value[u];
  }
  const int64_t begin = pattern.begin.data()[r];
  sums += (begin + r) * lanes;
  store(sums, load(sums) + (first + second));
  for (int64_t e = begin; e < pattern.begin.data()[r + 1]; ++e) {
    sums += lanes;
    const A* from = plane[pattern.columns.data()[e]] + p;
    first = V{};
    second = V{};
    for (int u = 0; u < vectors; ++u) {
      (u % 2 ? second : first) += value[u] * load(from + u * lanes);
    }
    store(sums, load(sums) + (first + second));
  }
}

template <typename T, typename A = accumulate_t<T>>
void reduce_planes(const Pattern& pattern, const A* const* plane, const T* g, const T* gate, int64_t g_stride, int64_t size,
    A* staged, A* sums) {
  constexpr int64_t lanes = lanes_of<A>;
  constexpr int some = block / 2;
  const int64_t rows = static_cast<int64_t>(pattern.begin.size()) - 1;
  const int64_t padded = (size + lanes - 1) / lanes * lanes;
  for (int64_t r = 0; r < rows; ++r) {
    stage_plane(g + r * g_stride, gate == nullptr ? nullptr : gate + r * g_stride, staged, padded, size, A(0));
    int64_t p = 0;
    for (; p + block * lanes <= padded; p += block * lanes) {
      reduce_some_of_plane<block>(pattern, plane, staged, r, p, sums);
    }
    for (; p + some * lanes <= padded; p += some * lanes) {
      reduce_some_of_plane<some>(pattern, plane, staged, r, p, sums);
    }
    for (; p < padded; p += lanes) {
      reduce_some_of_plane<1>(pattern, plane, staged, r, p, sums);
    }
  }
}

template <typename A>
void flush_lanes(A* sums, double* total, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    total[i] += static_cast<double>(sums[i]);
    sums[i] = A(0);
  }
}

template <typename A>
void flush_sums(A* sums, double* total, int64_t count) {
  constexpr int64_t lanes = lanes_of<A>;
  for (int64_t i = 0; i < count; ++i) {
    total[i] += static_cast<double>(total_of<vector_t<A>, A>(load(sums + i * lanes)));
    store(sums + i * lanes, vector_t<A>{});
  }
}

template <typename T, typename A = accumulate_t<T>>
const Kernels<T> table{lanes_of<A>, stage_pixels<T>, stage_planes<T>, gate_rows<T>, map_pixels<T>, map_planes<T>,
    finish_pixels<T>, moments_pixels<T>, moments_planes<T>, reduce_pixels<T>, reduce_planes<T>, flush_lanes<A>, flush_sums<A>};

#undef TAS_FAST_INLINE
#undef TAS_FAST_INLINED

}  // namespace tas_fast::TAS_FAST_UNIT
