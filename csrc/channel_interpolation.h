// The band of the interpolation matrix and the checks, for cpu/ and cuda/; tas_fast/ops/channel_interpolation.py has the meaning.
#pragma once

#include "common.h"

namespace tas_fast {

// Row r of the matrix that maps `from` to `to` channels reads the channels begin(r) .. end(r) - 1. Exchanging the roles gives the
// rows of the transposed matrix, so the backward pass is a band as well.
struct Band {
  int64_t from, to;
  C10_HOST_DEVICE int64_t begin(int64_t r) const {
    return r * from / to;
  }
  C10_HOST_DEVICE int64_t end(int64_t r) const {
    return ((r + 1) * from + to - 1) / to;
  }
  C10_HOST_DEVICE int64_t count(int64_t r) const {
    return end(r) - begin(r);
  }
  C10_HOST_DEVICE Band transposed() const {
    return Band{to, from};
  }
};

inline void check_interpolation(
    const Tensor& x, int64_t channels, const char* name, const char* tensor, const char* argument) {
  STD_TORCH_CHECK(x.dim() == 4, name, ": ", tensor, " must be [N, C, H, W], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.size(1) >= 1, name, ": ", tensor, " must have at least one channel, got none");
  STD_TORCH_CHECK(channels >= 1, name, ": ", argument, " must be at least 1, got ", channels);
}

inline void check_interpolation_forward(const Tensor& x, int64_t out_channels) {
  check_interpolation(x, out_channels, "channel_interpolation", "x", "out_channels");
}

inline void check_interpolation_backward(const Tensor& grad_out, int64_t in_channels) {
  check_interpolation(grad_out, in_channels, "channel_interpolation_backward", "grad_out", "in_channels");
}

}  // namespace tas_fast
