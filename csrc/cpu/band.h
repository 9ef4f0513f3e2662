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
// - 1 (the last one overlaps its neighbour) from groups of slots. A group loads `lanes` neighbouring channels of its source from
// `first` on, and with kind pair more from `second` on. Each of its slots permutes them by its indices, unless the group is
// straight, subtracts shift and multiplies by weight. Rows hold at least `lanes` numbers, so nothing is read beyond them.
template <typename A>
struct Program {
  using Index = typename lane_index<A>::type;
  enum Kind : int32_t { straight, single, pair };
  struct Group {
    Kind kind;
    int32_t source, first, second, begin, end;
  };

  int64_t lanes, rows;
  std::vector<int32_t> row, begin{0}, group_begin{0}, entry;  // begin: slots of vector q; entry: of each slot and lane, or -1
  std::vector<Group> groups;
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
      begin.push_back(static_cast<int32_t>(slots()));
      group_begin.push_back(static_cast<int32_t>(groups.size()));
    }
  }

  int64_t vectors() const {
    return static_cast<int64_t>(row.size());
  }
  int64_t slots() const {
    return static_cast<int64_t>(entry.size()) / lanes;
  }
  // Channels that the rows of a source or result with this many channels are padded to.
  int64_t padded(int64_t channels) const {
    return std::max(channels, lanes);
  }

 private:
  // Entries of a row that no slot has taken yet.
  struct Open {
    int32_t next, stop;
  };

  // Cover the entries of `count` rows that read source d: each slot takes from every row its next entry, if near enough.
  void add_slots(const BandMap<A>& map, int64_t first_row, int64_t count, int64_t d) {
    const Pattern& pattern = map.pattern;
    const int32_t low = pattern.first[d], high = pattern.first[d + 1];
    const int64_t length = padded(high - low);
    std::vector<Open> open(count);
    for (int64_t l = 0; l < count; ++l) {
      const auto start = pattern.columns.begin() + pattern.begin[first_row + l];
      const auto stop = pattern.columns.begin() + pattern.begin[first_row + l + 1];
      open[l].next = static_cast<int32_t>(std::lower_bound(start, stop, low) - pattern.columns.begin());
      open[l].stop = static_cast<int32_t>(std::lower_bound(start, stop, high) - pattern.columns.begin());
    }
    for (;;) {
      int32_t smallest = high;
      for (const Open& o : open) {
        smallest = o.next < o.stop ? std::min(smallest, pattern.columns[o.next]) : smallest;
      }
      if (smallest == high) {
        return;
      }
      const int64_t first = std::max<int64_t>(std::min((smallest - low) / lanes * lanes, length - 2 * lanes), 0);
      add_slot(map, open, first_row, low, length, first, std::min(first + lanes, length - lanes), d);
    }
  }

  void add_slot(const BandMap<A>& map, std::vector<Open>& open, int64_t first_row, int64_t low, int64_t length, int64_t first,
      int64_t second, int64_t d) {
    const Pattern& pattern = map.pattern;
    const int64_t slot = slots(), base = slot * lanes;
    index.resize(base + lanes);
    weight.resize(base + lanes, A(0));
    shift.resize(base + lanes, A(0));
    entry.resize(base + lanes, -1);
    int64_t least_step = length, largest_step = -lanes;
    bool in_first = true;
    for (int64_t l = 0; l < lanes; ++l) {
      index[base + l] = static_cast<Index>(l);
      if (l >= static_cast<int64_t>(open.size())) {
        continue;
      }
      Open& o = open[l];
      const int64_t column = o.next < o.stop ? pattern.columns[o.next] - low : length;
      if (column >= second + lanes) {
        index[base + l] = own_place(pattern, first_row + l, low, first, l);
        continue;
      }
      index[base + l] = static_cast<Index>(column < first + lanes ? column - first : lanes + column - second);
      weight[base + l] = map.weight.empty() ? A(0) : map.weight[o.next];
      shift[base + l] = map.shift.empty() ? A(0) : map.shift[low + column];
      entry[base + l] = o.next++;
      in_first = in_first && column < first + lanes;
      least_step = std::min(least_step, column - l);
      largest_step = std::max(largest_step, column - l);
    }
    const int32_t at = static_cast<int32_t>(slot), source = static_cast<int32_t>(d);
    if (least_step == largest_step && least_step >= 0 && least_step + lanes <= length) {
      groups.push_back({straight, source, static_cast<int32_t>(least_step), 0, at, at + 1});
      return;
    }
    const Kind kind = in_first ? single : pair;
    if (static_cast<int64_t>(groups.size()) > group_begin.back()) {
      Group& last = groups.back();
      if (last.kind != straight && last.source == d && last.first == first) {
        last.kind = std::max(last.kind, kind);
        last.end = at + 1;
        return;
      }
    }
    groups.push_back({kind, source, static_cast<int32_t>(first), static_cast<int32_t>(second), at, at + 1});
  }

  // Where a row without an entry in this slot looks: at a channel that it reads anyhow, so that a NaN stays where it belongs.
  Index own_place(const Pattern& pattern, int64_t r, int64_t low, int64_t first, int64_t lane) const {
    for (int32_t e = pattern.begin[r]; e < pattern.begin[r + 1]; ++e) {
      const int64_t place = pattern.columns[e] - low - first;
      if (place >= 0 && place < lanes) {
        return static_cast<Index>(place);
      }
    }
    return static_cast<Index>(lane);
  }
};

}  // namespace tas_fast
