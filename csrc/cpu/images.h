// Image batches as the passes take them.
#pragma once

#include "band_passes.h"

namespace tas_fast {

// The layout to work in: that of x, except that planes too small for the loops are worth a copy to channels_last.
inline MemoryFormat inner_layout(const Tensor& x) {
  const int64_t size = x.size(2) * x.size(3);
  return size > 1 && size < plane_alignment ? MemoryFormat::ChannelsLast : layout_of(x);
}

// Of an x in the layout `inner`; single pixels have their channels side by side in both.
inline Geometry geometry_of(const Tensor& x, MemoryFormat inner) {
  const int64_t size = x.size(2) * x.size(3);
  return {x.size(0), size, size == 1 || inner == MemoryFormat::ChannelsLast};
}

inline bool has_layout(const Tensor& x, MemoryFormat layout) {
  return layout == MemoryFormat::Contiguous ? x.is_contiguous() : is_channels_last(x);
}

inline Tensor in_layout(const Tensor& x, MemoryFormat layout) {
  return has_layout(x, layout) ? x : torch::stable::contiguous(x, layout);
}

// Like torch::stable::empty, which looks the operator up by name: 1 us more for each of the eight results of a small layer.
inline Tensor uninitialised(const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), type, aoti_torch_device_type_cpu(), 0, &result));
  return Tensor(result);
}

inline Tensor uninitialised(const Tensor& like, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d > 0; --d) {
    strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  }
  return uninitialised(like, sizes, strides);
}

inline Tensor uninitialised_images(const Tensor& like, int64_t channels, MemoryFormat layout) {
  const std::vector<int64_t> sizes{like.size(0), channels, like.size(2), like.size(3)};
  if (layout == MemoryFormat::Contiguous) {
    return uninitialised(like, sizes);
  }
  const int64_t row = std::max<int64_t>(sizes[3], 1) * channels;
  return uninitialised(like, sizes, {row * std::max<int64_t>(sizes[2], 1), 1, row, channels});
}

template <typename T>
const T* data_of(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

}  // namespace tas_fast
