// Binary attention of one head: signs of queries times signs of keys, the softmax rounded to {0, level}, and that times
// the signs of values. All of it from counted bits.
#pragma once

#include "buffers.h"

namespace binaryvit {

// Sets the bits of the keys whose probability exceeds half the level. Scores are integers, so that the softmax is a
// matter of how many channels' signs differ: the exponential is looked up, and what exceeds half the level is all that
// is nearer than some distance.
inline int64_t binarize_probabilities(const Attention& attention, const int32_t* distances, int64_t keys,
                                      uint64_t* is_on) {
  Ints least = simd::load(distances);
  for (int64_t first = kLanes; first < keys; first += kLanes)
    least = simd::smaller(least, simd::load(distances + first));
  const int32_t nearest = simd::smallest(least);

  const simd::Table exponentials(attention.exponentials + nearest * attention.columns);
  const bool is_near = attention.head_channels - nearest < simd::Table::kNear;
  Floats sums{};
  for (int64_t first = 0; first < keys; first += kLanes) {
    const Ints farther = simd::subtract(simd::load(distances + first), simd::broadcast_int(nearest));
    const Floats each = is_near ? exponentials.near(farther) : exponentials.far(farther);
    sums += keys - first < kLanes ? simd::first_lanes(each, keys - first) : each;
  }
  const Floats sum = simd::all(simd::sum(sums));

  const float* largest_sums = attention.largest_sums + nearest * attention.columns;
  int64_t levels = 0;
  for (int64_t column = 0; column < attention.columns; column += kLanes) {
    const int on = __builtin_popcountll(simd::at_most(sum, simd::load(largest_sums + column)));
    levels += on;
    if (on < kLanes) break;
  }

  const Ints limit = simd::broadcast_int(nearest + static_cast<int32_t>(levels));
  int64_t total = 0;
  for (int64_t first = 0; first < keys; first += 64) {
    const int64_t count = std::min<int64_t>(64, keys - first);
    uint64_t word = 0;
    for (int64_t i = 0; i < count; i += kLanes) word |= simd::less(simd::load(distances + first + i), limit) << i;
    if (count < 64) word &= (uint64_t{1} << count) - 1;
    total += __builtin_popcountll(word);
    *is_on++ = word;
  }
  return total;
}

// The context of a group of queries in one head: for each channel, how many of the keys that are on have +1 there minus
// how many have -1, as floats. `queries` are the head's words of each query.
template <int rows>
void attend(const Attention& attention, const uint64_t* const (&queries)[rows], const uint64_t* k_tiles,
            const uint64_t* v_tiles, int64_t keys, const Scratch& scratch, float* const (&to)[rows]) {
  const Ints farthest = simd::broadcast_int(static_cast<int32_t>(attention.head_channels));
  for (int64_t first = 0; first < keys; first += kLanes) {
    Ints distances[rows];
    count_tile<simd::Different>(k_tiles, queries, attention.head_words, distances);
    for (int r = 0; r < rows; ++r) {
      const bool is_whole = keys - first >= kLanes;
      simd::store(scratch.distances + r * scratch.keys + first,
                  is_whole ? distances[r] : simd::first_lanes(distances[r], keys - first, farthest));
    }
    k_tiles += attention.head_words * simd::kTileWords;
  }

  const uint64_t* is_on[rows];
  Floats total[rows];
  for (int r = 0; r < rows; ++r) {
    is_on[r] = scratch.packed(r);
    total[r] = simd::all(static_cast<float>(
        binarize_probabilities(attention, scratch.distances + r * scratch.keys, keys, scratch.packed(r))));
  }

  const int64_t words = words_for(keys);
  for (int64_t first = 0; first < attention.head_channels; first += kLanes) {
    Ints both[rows];
    count_tile<simd::Both>(v_tiles, is_on, words, both);
    for (int r = 0; r < rows; ++r) {
      const Floats plus = simd::to_floats(both[r]);
      simd::store_first(to[r] + first, plus + plus - total[r], attention.head_channels - first);
    }
    v_tiles += words * simd::kTileWords;
  }
}

// Exchanges rows and columns of a square of 64 x 64 bits.
inline void transpose_bits(uint64_t (&square)[64]) {
  uint64_t mask = 0xffffffff;
  for (int half = 32; half > 0; half /= 2, mask ^= mask << half)
    for (int start = 0; start < 64; start += 2 * half)
      for (int i = start; i < start + half; ++i) {
        const uint64_t exchanged = ((square[i] >> half) ^ square[i + half]) & mask;
        square[i] ^= exchanged << half;
        square[i + half] ^= exchanged;
      }
}

// The packed keys (heads, words) to tiles in which keys lie side by side; one key at a time.
inline void place_key(const Attention& attention, const uint64_t* words, int64_t key, int64_t keys, uint64_t* k_tiles) {
  const int64_t tile_words = attention.head_words * simd::kTileWords;
  for (int64_t head = 0; head < attention.heads; ++head) {
    uint64_t* tile = k_tiles + (head * tiles_for(keys) + key / kLanes) * tile_words;
    for (int64_t word = 0; word < attention.head_words; ++word)
      tile[word * simd::kTileWords + simd::place_in_tile(key % kLanes)] = *words++;
  }
}

// The packed values (keys, heads, words of channels) to tiles in which channels lie side by side and keys are the bits.
inline void place_values(const Attention& attention, const uint64_t* v_bits, int64_t keys, uint64_t* v_tiles) {
  const int64_t key_words = words_for(keys), stride = attention.heads * attention.head_words;
  const int64_t tiles = tiles_for(attention.head_channels);
  for (int64_t head = 0; head < attention.heads; ++head, v_tiles += tiles * key_words * simd::kTileWords)
    for (int64_t word = 0; word < attention.head_words; ++word)
      for (int64_t key_word = 0; key_word < key_words; ++key_word) {
        uint64_t square[64] = {};
        const int64_t first = key_word * 64, count = std::min<int64_t>(64, keys - first);
        for (int64_t i = 0; i < count; ++i) square[i] = v_bits[(first + i) * stride + head * attention.head_words + word];
        transpose_bits(square);
        for (int64_t i = 0; i < 64 && (word * 64 + i) / kLanes < tiles; ++i) {
          const int64_t channel = word * 64 + i;
          v_tiles[(channel / kLanes * key_words + key_word) * simd::kTileWords +
                  simd::place_in_tile(channel % kLanes)] = square[i];
        }
      }
}

}  // namespace binaryvit
