// The memory of a forward pass, laid out in one allocation of the caller's.
#pragma once

#include <algorithm>

#include "unit.h"

namespace binaryvit {

// Hands out parts of a piece of memory; without memory it only counts.
class Arena {
 public:
  explicit Arena(char* memory) : memory_(memory) {}

  template <class Number>
  Number* take(int64_t count) {
    Number* part = memory_ ? reinterpret_cast<Number*>(memory_ + used_) : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(Number)) + kSlack, 64);
    return part;
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kSlack = 64;  // vectors may be read beyond the end
  char* memory_;
  int64_t used_ = 0;
};

// The largest sizes any block or merge of a model needs.
struct Sizes {
  int64_t tokens = 0, q_words = 0, k_words = 0, v_words = 0;       // of an image: floats of all tokens, words of heads
  int64_t cell_floats = 0, row = 0, wide_row = 0, row_words = 0;   // of a thread
  int64_t v_tiles = 0, keys = 0;

  explicit Sizes(const Model& model) {
    for (const Stage& stage : model.stages) {
      raise(tokens, stage.tokens * stage.stride);
      raise(row, stage.stride);
      for (const Merge& merge : stage.merge) {
        raise(cell_floats, kRows * 4 * padded(merge.unit.inputs / 4));
        raise(row, padded(merge.unit.inputs / 4));
        raise(wide_row, stage.stride);
        raise(row_words, merge.unit.words);
      }
      for (const Block& block : stage.blocks) {
        const Attention& attention = block.attention;
        const int64_t cell = block.reduction * block.reduction, of_stage = stage.tokens / cell;
        const int64_t words = attention.heads * attention.head_words;
        raise(keys, round_up(of_stage, kPadding));
        raise(q_words, stage.tokens * words);
        raise(k_words, tiles_for(of_stage) * kLanes * words);
        raise(v_words, of_stage * words);
        raise(v_tiles, attention.heads * tiles_for(attention.head_channels) * simd::kTileWords * words_for(of_stage));
        raise(cell_floats, kRows * cell * stage.stride);
        raise(wide_row, padded(block.fc1.outputs));
        raise(row_words, std::max({block.q.words, block.fc2.words, words}));
      }
    }
    raise(row_words, words_for(keys));
  }

 private:
  static void raise(int64_t& size, int64_t least) { size = std::max(size, least); }
};

// What the threads that work on one image share. Rows of tokens follow each other at the stage's stride.
struct ImageBuffers {
  float *x, *merged;  // the tokens, and those of the next stage while they are merged
  float* q;           // real-valued queries
  float* kv;          // sum of real-valued keys and values
  float* y;           // the second norm's output, which the pooling branches read
  uint64_t* q_bits;   // signs: (tokens, heads, words)
  uint64_t* k_tiles;  // (heads, tiles of keys, words, channels of a tile)
  uint64_t* v_bits;   // (keys, heads, words)

  ImageBuffers(Arena& arena, const Sizes& sizes)
      : x(arena.take<float>(sizes.tokens)), merged(arena.take<float>(sizes.tokens)),
        q(arena.take<float>(sizes.tokens)), kv(arena.take<float>(sizes.tokens)), y(arena.take<float>(sizes.tokens)),
        q_bits(arena.take<uint64_t>(sizes.q_words)), k_tiles(arena.take<uint64_t>(sizes.k_words)),
        v_bits(arena.take<uint64_t>(sizes.v_words)) {}
};

// kRows rows of floats of one thread.
struct Rows {
  float* first;
  int64_t stride;
  Rows(Arena& arena, int64_t stride) : first(arena.take<float>(kRows * stride)), stride(stride) {}
  float* operator[](int64_t row) const { return first + row * stride; }
};

// What a thread needs for itself: a group of rows at a time.
struct Scratch {
  float* cells;  // the tokens of kRows cells
  Rows a, b, c, wide, wide_shortcut;
  uint64_t* bits;     // kRows packed rows
  uint64_t* v_tiles;  // values with channels side by side: (heads, tiles of channels, words of keys, channels)
  int32_t* distances; // (kRows, keys)
  int64_t row_words, keys;

  Scratch(Arena& arena, const Sizes& sizes)
      : cells(arena.take<float>(sizes.cell_floats)), a(arena, sizes.row), b(arena, sizes.row), c(arena, sizes.row),
        wide(arena, sizes.wide_row), wide_shortcut(arena, sizes.wide_row),
        bits(arena.take<uint64_t>(kRows * sizes.row_words)), v_tiles(arena.take<uint64_t>(sizes.v_tiles)),
        distances(arena.take<int32_t>(kRows * sizes.keys)), row_words(sizes.row_words), keys(sizes.keys) {}

  uint64_t* packed(int64_t row) const { return bits + row * row_words; }
};

}  // namespace binaryvit
