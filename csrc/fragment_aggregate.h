// Checks of fragment aggregation that need no values, for cpu/ and cuda/; tas_fast/ops/fragment_aggregate.py has the meaning.
#pragma once

#include "common.h"

#include <algorithm>

namespace tas_fast {

inline ScalarType accumulation_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_table(
    const char* operation, const char* name, const Tensor& table, int64_t rows, int64_t columns, ScalarType type) {
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == rows && table.size(1) >= columns, operation, ": ", name,
      " must be [n, C] with n = ", rows, " and C >= ", columns);
  STD_TORCH_CHECK(table.scalar_type() == type, operation, ": ", name, " must be of the dtype that sums over y have");
}

inline void check_fragments(const char* operation, const Tensor& y, const Tensor& widths, const Tensor& probs,
    const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& index, int64_t out_channels) {
  STD_TORCH_CHECK(y.dim() == 4, operation, ": y must be [N, C, H, W], got ", y.dim(), " dimensions");
  STD_TORCH_CHECK(out_channels >= 1, operation, ": out_channels must be at least 1, got ", out_channels);
  const ScalarType integer = widths.scalar_type();
  STD_TORCH_CHECK(widths.dim() == 1 && (integer == ScalarType::Int || integer == ScalarType::Long), operation,
      ": widths must be int32 or int64 [n]");
  STD_TORCH_CHECK(!index.has_value() || (index->dim() == 1 && index->scalar_type() == ScalarType::Long), operation,
      ": index must be int64 [K]");
  const int64_t fragments = index.has_value() ? index->size(0) : widths.size(0);
  STD_TORCH_CHECK(fragments >= 1 && probs.dim() == 1 && probs.size(0) == fragments, operation,
      ": probs must be [K] with K = ", fragments, " fragments, at least one");
  const ScalarType type = accumulation_type(y.scalar_type());
  STD_TORCH_CHECK(probs.scalar_type() == type, operation, ": probs must be of the dtype that sums over y have");
  const int64_t read = std::min(y.size(1), out_channels);
  check_table(operation, "weight", weight, widths.size(0), read, type);
  check_table(operation, "bias", bias, widths.size(0), read, type);
}

}  // namespace tas_fast
