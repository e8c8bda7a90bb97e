// A model as `program.py` lays it out: its sizes, its floats and its words, each in the order in which they are read.
//
// Rows of channels are padded to a multiple of kPadding floats, with zeros.
#pragma once

#include <cstdint>
#include <vector>

#include "simd.h"

namespace binaryvit {

constexpr int64_t kPadding = 16;

inline int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }
inline int64_t padded(int64_t channels) { return round_up(channels, kPadding); }
inline int64_t words_for(int64_t bits) { return (bits + 63) / 64; }
inline int64_t tiles_for(int64_t channels) { return (channels + simd::kLanes - 1) / simd::kLanes; }

// Reads what `program.py` wrote, in its order.
struct Reader {
  const int64_t* sizes;
  const float* floats;
  const uint64_t* words;

  int64_t size() { return *sizes++; }
  const float* channels(int64_t count) {
    const float* row = floats;
    floats += padded(count);
    return row;
  }
  const uint64_t* tiles(int64_t outputs, int64_t words_per_row) {
    const uint64_t* first = words;
    words += tiles_for(outputs) * words_per_row * simd::kTileWords;
    return first;
  }
};

// fma(x, factor, offset): a batch norm in evaluation mode.
struct Norm {
  const float *factor, *offset;
  Norm() = default;
  Norm(Reader& from, int64_t channels) : factor(from.channels(channels)), offset(from.channels(channels)) {}
};

// x * alpha + beta, rounded twice; ones and zeros where a model has none.
struct Affine {
  const float *alpha, *beta;
  Affine(Reader& from, int64_t channels) : alpha(from.channels(channels)), beta(from.channels(channels)) {}
};

// RPReLU.
struct Activation {
  const float *shift_in, *slope, *shift_out;
  Activation(Reader& from, int64_t channels)
      : shift_in(from.channels(channels)), slope(from.channels(channels)), shift_out(from.channels(channels)) {}
};

// RPReLU(norm(scale * (signs of x + shift) . weights) + shortcut), as layers.BinaryUnit and the binary patch merging.
struct Unit {
  int64_t inputs, outputs, words;  // words of one packed row of inputs
  const float* shift;
  const float* scale;
  Norm norm;
  Activation activation;
  const uint64_t* weights;

  // `shifts` is how many inputs have a separate shift; `inputs` but for the merge, whose four tokens share theirs.
  Unit(Reader& from, int64_t shifts)
      : inputs(from.size()), outputs(from.size()), words(from.size()), shift(from.channels(shifts)),
        scale(from.channels(outputs)), norm(from, outputs), activation(from, outputs),
        weights(from.tiles(outputs, words)) {}
};

// Two products and what stands between them, for all heads.
struct Attention {
  int64_t channels, heads, head_channels, head_words;
  const float *shift_q, *shift_k, *shift_v;
  // By the distance of the nearest key (row) and how much farther a key is (column): exp of the score minus the largest
  // score, and the largest sum of these at which the probability still exceeds half the level. `columns` in a row.
  int64_t columns;
  const float *exponentials, *largest_sums;
  const float* level;  // what a product of {0, 1} and signs is multiplied with, for each channel
  Norm norm;
  Activation activation;

  Attention(Reader& from, int64_t channels)
      : channels(channels), heads(from.size()), head_channels(channels / heads), head_words(words_for(head_channels)),
        shift_q(from.channels(channels)), shift_k(from.channels(channels)), shift_v(from.channels(channels)),
        columns(from.size()), exponentials(from.channels((head_channels + 1) * columns)),
        largest_sums(from.channels((head_channels + 1) * columns)), level(from.channels(channels)),
        norm(from, channels), activation(from, channels) {}
};

constexpr int kTaps = 9;

// The pooling branches as one depthwise convolution, whose kernel is a cross.
struct Pooling {
  const float* taps[kTaps];
  const float* bias;
  Pooling(Reader& from, int64_t channels) {
    for (const float*& tap : taps) tap = from.channels(channels);
    bias = from.channels(channels);
  }
};

struct Block {
  int64_t reduction;  // R: keys and values come from the average of R x R tokens
  std::vector<Unit> reduce;
  Norm norm1;
  Unit q, k, v;
  Attention attention;
  Unit proj;
  Affine affine1;
  Norm norm2;
  Unit fc1, fc2;
  Affine affine2;
  std::vector<Pooling> pooling;  // one or none

  Block(Reader& from, int64_t channels)
      : reduction(from.size()), reduce(read_reduce(from, channels)), norm1(from, channels), q(from, channels),
        k(from, channels), v(from, channels), attention(from, channels), proj(from, channels),
        affine1(from, channels), norm2(from, channels), fc1(from, channels), fc2(from, fc1.outputs),
        affine2(from, channels) {
    if (from.size()) pooling.emplace_back(from, channels);
  }

 private:
  std::vector<Unit> read_reduce(Reader& from, int64_t channels) const {
    std::vector<Unit> unit;
    if (reduction > 1) unit.emplace_back(from, channels);
    return unit;
  }
};

// From one stage's grid to the next: a binary unit on 2 x 2 tokens.
struct Merge {
  Norm norm_in;
  Unit unit;
  const float* positions;  // (tokens, padded outputs)
  Merge(Reader& from, int64_t inputs, int64_t outputs, int64_t tokens)
      : norm_in(from, inputs), unit(from, inputs), positions(from.channels(tokens * padded(outputs))) {}
};

struct Stage {
  int64_t channels, stride, grid, tokens;  // stride: floats from one token to the next
  std::vector<Merge> merge;                // what brings the tokens here: one, or none in the first stage
  std::vector<Block> blocks;

  Stage(Reader& from, int64_t channels_before)
      : channels(from.size()), stride(padded(channels)), grid(from.size()), tokens(from.size()) {
    if (from.size()) merge.emplace_back(from, channels_before, channels, tokens);
    for (int64_t count = from.size(); count > 0; --count) blocks.emplace_back(from, channels);
  }
};

struct Model {
  std::vector<Stage> stages;
  Norm norm;

  explicit Model(Reader from) {
    int64_t channels = 0;
    for (int64_t count = from.size(); count > 0; --count) {
      stages.emplace_back(from, channels);
      channels = stages.back().channels;
    }
    norm = Norm(from, channels);
  }
};

}  // namespace binaryvit
