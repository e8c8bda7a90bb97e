// Packing signs, multiplying them, and all that a binary unit does with the products while they are in registers.
#pragma once

#include <algorithm>
#include <type_traits>

#include "model.h"

namespace binaryvit {

using simd::Floats;
using simd::Ints;
using simd::kLanes;
using simd::kRows;

// Calls work(first, count as a constant) for groups of up to kRows of `count` rows.
template <int rows = kRows, class Work>
void for_each_group(int64_t count, Work work) {
  int64_t first = 0;
  for (; first + rows <= count; first += rows) work(first, std::integral_constant<int, rows>());
  if constexpr (rows > 1)
    if (first < count)
      for_each_group<rows - 1>(count - first, [&](int64_t after, auto constant) { work(first + after, constant); });
}

// The signs of row + shift as bits, 1 for +1, sign(0) = +1; what is left of the last word is zero. Reads up to kLanes
// floats past the end of the row.
inline void pack_signs(const float* row, const float* shift, int64_t channels, uint64_t* to) {
  for (int64_t first = 0; first < channels; first += 64) {
    const int64_t count = std::min<int64_t>(64, channels - first);
    uint64_t word = 0;
    for (int64_t i = 0; i < count; i += kLanes)
      word |= simd::not_negative(simd::load(row + first + i) + simd::load(shift + first + i)) << i;
    *to++ = count < 64 ? word & ((uint64_t{1} << count) - 1) : word;
  }
}

// How many bits of each row of words and of each channel of a tile are Different, or Both one.
template <class Compared, int rows>
inline void count_tile(const uint64_t* tile, const uint64_t* const (&row)[rows], int64_t words, Ints (&counts)[rows]) {
  simd::Words even[rows], odd[rows];
  const simd::Words of_even = simd::load(tile), of_odd = simd::load(tile + simd::kWords);
  for (int r = 0; r < rows; ++r) {
    const simd::Words input = simd::broadcast(row[r][0]);
    even[r] = simd::count_ones(Compared::of(of_even, input));
    odd[r] = simd::count_ones(Compared::of(of_odd, input));
  }
  for (int64_t word = 1; word < words; ++word) {
    const uint64_t* both = tile + word * simd::kTileWords;
    const simd::Words of_even = simd::load(both), of_odd = simd::load(both + simd::kWords);
    for (int r = 0; r < rows; ++r) {
      const simd::Words input = simd::broadcast(row[r][word]);
      even[r] = simd::add(even[r], simd::count_ones(Compared::of(of_even, input)));
      odd[r] = simd::add(odd[r], simd::count_ones(Compared::of(of_odd, input)));
    }
  }
  for (int r = 0; r < rows; ++r) counts[r] = simd::interleave(even[r], odd[r]);
}

inline Floats activated(Floats x, Floats shift_in, Floats slope, Floats shift_out) {
  return simd::prelu(x - shift_in, slope) + shift_out;
}

// What a row adds to a unit's output: `period` floats, repeated. A multiple of kLanes, or all of the outputs.
template <int rows>
struct Shortcut {
  const float* row[rows];
  int64_t period;
};

// Applies a unit to packed rows. In the order and with the roundings of the model's modules.
template <int rows>
void apply(const Unit& unit, const uint64_t* const (&bits)[rows], const Shortcut<rows>& shortcut,
           float* const (&to)[rows]) {
  const Floats inputs = simd::all(static_cast<float>(unit.inputs)), minus_two = simd::all(-2);
  const int64_t tile_words = unit.words * simd::kTileWords;
  int64_t in_shortcut = 0;
  for (int64_t tile = 0, first = 0; first < unit.outputs; ++tile, first += kLanes) {
    Ints different[rows];
    count_tile<simd::Different>(unit.weights + tile * tile_words, bits, unit.words, different);
    const Floats scale = simd::load(unit.scale + first), factor = simd::load(unit.norm.factor + first),
                 offset = simd::load(unit.norm.offset + first), shift_in = simd::load(unit.activation.shift_in + first),
                 slope = simd::load(unit.activation.slope + first),
                 shift_out = simd::load(unit.activation.shift_out + first);
    for (int r = 0; r < rows; ++r) {
      const Floats product = simd::fused_multiply_add(simd::to_floats(different[r]), minus_two, inputs);
      const Floats normalized = simd::fused_multiply_add(product * scale, factor, offset);
      const Floats sum = normalized + simd::load(shortcut.row[r] + in_shortcut);
      simd::store(to[r] + first, activated(sum, shift_in, slope, shift_out));
    }
    in_shortcut += kLanes;
    if (in_shortcut >= shortcut.period) in_shortcut = 0;
  }
}

// to = fma(x, factor, offset), channel by channel.
inline void normalize(const float* x, const Norm& norm, int64_t channels, float* to) {
  for (int64_t i = 0; i < channels; i += kLanes)
    simd::store(to + i, simd::fused_multiply_add(simd::load(x + i), simd::load(norm.factor + i),
                                                 simd::load(norm.offset + i)));
}

// x += y * alpha + beta.
inline void add_affine(float* x, const float* y, const Affine& affine, int64_t channels) {
  for (int64_t i = 0; i < channels; i += kLanes) {
    const Floats scaled = simd::load(y + i) * simd::load(affine.alpha + i);
    simd::store(x + i, simd::load(x + i) + (scaled + simd::load(affine.beta + i)));
  }
}

// Averages of `size` adjacent channels: the shortcut into a narrower layer. 0: a size known only at run time.
template <int known = 0>
void average_neighbours(const float* x, int64_t size, int64_t outputs, float* to) {
  if (known) size = known;
  const float divisor = static_cast<float>(size);
  for (int64_t output = 0; output < outputs; ++output) {
    float sum = x[output * size];
    for (int64_t i = 1; i < size; ++i) sum += x[output * size + i];
    to[output] = sum / divisor;
  }
}

inline void average_groups(const float* x, int64_t size, int64_t outputs, float* to) {
  switch (size) {
    case 2: return average_neighbours<2>(x, size, outputs, to);
    case 4: return average_neighbours<4>(x, size, outputs, to);
    case 8: return average_neighbours<8>(x, size, outputs, to);
    default: return average_neighbours<>(x, size, outputs, to);
  }
}

// Copies of a row side by side: the shortcut into a wider layer whose width is no multiple of kLanes.
inline void repeat(const float* row, int64_t channels, int64_t copies, float* to) {
  for (int64_t copy = 0; copy < copies; ++copy) std::copy_n(row, channels, to + copy * channels);
}

}  // namespace binaryvit
