// Banded maps over the channels of a pixel, as lists and as programs for vector units; tas_fast/ops/fragment_aggregate.py and
// tas_fast/ops/weighted_interpolation_sum.py say which maps.
#pragma once

#include "../channel_interpolation.h"

#include <algorithm>
#include <utility>

namespace tas_fast {

// Which columns a row of a matrix reads: columns[begin[r]] .. columns[begin[r + 1] - 1], ascending. The columns are those of
// several sources one after another; source d owns first[d] .. first[d + 1] - 1.
struct Pattern {
  std::vector<int32_t> begin{0}, columns, first;

  int64_t rows() const {
    return static_cast<int64_t>(begin.size()) - 1;
  }
  int64_t entries() const {
    return begin.back();
  }
  int64_t sources() const {
    return static_cast<int64_t>(first.size()) - 1;
  }
  void end_row() {
    begin.push_back(static_cast<int32_t>(columns.size()));
  }
  int32_t find(int64_t row, int64_t column) const {
    int32_t e = begin[row];
    while (columns[e] != column) {
      ++e;
    }
    return e;
  }
};

// Rows and columns exchanged, of a pattern with one source; origin[e] is the entry that became entry e.
inline Pattern transposed(const Pattern& pattern, std::vector<int32_t>& origin) {
  Pattern result;
  const int32_t columns = pattern.first.back();
  result.first = {0, static_cast<int32_t>(pattern.rows())};
  result.begin.assign(columns + 1, 0);
  for (const int32_t column : pattern.columns) {
    ++result.begin[column + 1];
  }
  for (int32_t i = 0; i < columns; ++i) {
    result.begin[i + 1] += result.begin[i];
  }
  result.columns.resize(pattern.columns.size());
  origin.resize(pattern.columns.size());
  std::vector<int32_t> next(result.begin.begin(), result.begin.end() - 1);
  for (int64_t r = 0; r < pattern.rows(); ++r) {
    for (int32_t e = pattern.begin[r]; e < pattern.begin[r + 1]; ++e) {
      const int32_t place = next[pattern.columns[e]]++;
      result.columns[place] = static_cast<int32_t>(r);
      origin[place] = e;
    }
  }
  return result;
}

// out_r = bias_r + sum_e weight_e (in_column(e) - shift_column(e)); an empty shift is zero.
template <typename A>
struct BandMap {
  Pattern pattern;
  std::vector<A> weight, shift, bias;
};

template <typename A>
struct lane_index {
  using type = int32_t;
};
template <>
struct lane_index<double> {
  using type = int64_t;
};

// The same map for pixels whose channels are adjacent, `lanes` rows at a time. Vector q makes the rows row[q] .. row[q] + lanes
// - 1 (the last one overlaps its neighbour) in slots: slot s loads `lanes` neighbouring channels of source[s] from offset[s]
// on, permutes them by its indices unless they are straight, subtracts shift and multiplies by weight. A source's rows hold at
// least `lanes` numbers, so nothing is read beyond them.
template <typename A>
struct Program {
  using Index = typename lane_index<A>::type;

  int64_t lanes, rows;
  std::vector<int32_t> row, begin{0}, source, offset, straight, entry;
  std::vector<Index> index;
  std::vector<A> weight, shift, bias;

  Program(const BandMap<A>& map, int64_t lanes_) : lanes(lanes_), rows(map.pattern.rows()) {
    for (int64_t r = 0; r < rows; r += lanes) {
      row.push_back(static_cast<int32_t>(r + lanes <= rows ? r : std::max<int64_t>(rows - lanes, 0)));
    }
    bias.assign(row.size() * lanes, A(0));
    for (size_t q = 0; q < row.size(); ++q) {
      const int64_t count = std::min(lanes, rows - row[q]);
      if (!map.bias.empty()) {
        std::copy_n(map.bias.begin() + row[q], count, bias.begin() + q * lanes);
      }
      for (int64_t d = 0; d < map.pattern.sources(); ++d) {
        add_slots(map, row[q], count, d);
      }
      begin.push_back(static_cast<int32_t>(source.size()));
    }
  }

  int64_t vectors() const {
    return static_cast<int64_t>(row.size());
  }
  int64_t slots() const {
    return static_cast<int64_t>(source.size());
  }
  // Channels that the rows of a source or result with this many channels are padded to.
  int64_t padded(int64_t channels) const {
    return std::max(channels, lanes);
  }

 private:
  // Cover the entries of `count` rows that read source d: each slot takes from every row its next entry, if near enough.
  void add_slots(const BandMap<A>& map, int64_t first_row, int64_t count, int64_t d) {
    const Pattern& pattern = map.pattern;
    const int32_t low = pattern.first[d], high = pattern.first[d + 1];
    const int64_t length = padded(high - low);
    std::vector<std::pair<int32_t, int32_t>> open(count);
    for (int64_t l = 0; l < count; ++l) {
      int32_t e = pattern.begin[first_row + l], stop = pattern.begin[first_row + l + 1];
      while (e < stop && pattern.columns[e] < low) {
        ++e;
      }
      while (stop > e && pattern.columns[stop - 1] >= high) {
        --stop;
      }
      open[l] = {e, stop};
    }
    for (;;) {
      int32_t smallest = high;
      for (const auto& [e, stop] : open) {
        smallest = e < stop ? std::min(smallest, pattern.columns[e]) : smallest;
      }
      if (smallest == high) {
        return;
      }
      const int64_t from = std::min<int64_t>(smallest - low, length - lanes);
      const int64_t base = static_cast<int64_t>(source.size()) * lanes;
      index.resize(base + lanes);
      weight.resize(base + lanes, A(0));
      shift.resize(base + lanes, A(0));
      entry.resize(base + lanes, -1);
      int64_t smallest_step = length, largest_step = -lanes;
      for (int64_t l = 0; l < lanes; ++l) {
        index[base + l] = static_cast<Index>(l);
        if (l >= count) {
          continue;
        }
        auto& [e, stop] = open[l];
        const int64_t place = e < stop ? pattern.columns[e] - low - from : lanes;
        if (place >= lanes) {
          index[base + l] = own_place(pattern, first_row + l, low + from, l);
          continue;
        }
        index[base + l] = static_cast<Index>(place);
        weight[base + l] = map.weight.empty() ? A(0) : map.weight[e];
        shift[base + l] = map.shift.empty() ? A(0) : map.shift[pattern.columns[e]];
        entry[base + l] = e;
        smallest_step = std::min(smallest_step, from + place - l);
        largest_step = std::max(largest_step, from + place - l);
        ++e;
      }
      const bool same = smallest_step == largest_step && smallest_step >= 0 && smallest_step + lanes <= length;
      source.push_back(static_cast<int32_t>(d));
      offset.push_back(static_cast<int32_t>(same ? smallest_step : from));
      straight.push_back(same);
    }
  }

  // Where a row without an entry in this slot looks: at a channel that it reads anyhow, so that a NaN stays where it belongs.
  Index own_place(const Pattern& pattern, int64_t r, int64_t from, int64_t lane) const {
    for (int32_t e = pattern.begin[r]; e < pattern.begin[r + 1]; ++e) {
      const int64_t place = pattern.columns[e] - from;
      if (place >= 0 && place < lanes) {
        return static_cast<Index>(place);
      }
    }
    return static_cast<Index>(lane);
  }
};

}  // namespace tas_fast
