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

inline Tensor uninitialised(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device());
}

inline Tensor uninitialised_images(const Tensor& like, int64_t channels, MemoryFormat layout) {
  const std::vector<int64_t> sizes{like.size(0), channels, like.size(2), like.size(3)};
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt, layout);
}

template <typename T>
const T* data_of(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

}  // namespace tas_fast
