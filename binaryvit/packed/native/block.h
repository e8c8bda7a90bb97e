// A block in two passes over its tokens, and the merge between stages in one. Between passes all threads that work on
// an image wait for each other; within one, each takes its tokens from norm to norm while they are in its cache.
#pragma once

#include "attention.h"

namespace binaryvit {

// The threads that work on one image, seen from one of them.
struct Team {
  int size, rank;
  void wait() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
  int64_t begin(int64_t count) const { return count * rank / size; }
  int64_t end(int64_t count) const { return count * (rank + 1) / size; }
};

// x += the pooling branches of y at one token of the grid. Taps row by row, and the bias last, as PyTorch has them.
inline void add_pooling(const Pooling& pooling, const Stage& stage, const float* y, int64_t token, float* x) {
  constexpr int kRowOf[kTaps] = {-2, -1, 0, 0, 0, 0, 0, 1, 2}, kColumnOf[kTaps] = {0, 0, -2, -1, 0, 1, 2, 0, 0};
  const float *inside[kTaps], *taps[kTaps];
  int count = 0;
  for (int tap = 0; tap < kTaps; ++tap) {
    const int64_t row = token / stage.grid + kRowOf[tap], column = token % stage.grid + kColumnOf[tap];
    if (row < 0 || row >= stage.grid || column < 0 || column >= stage.grid) continue;
    inside[count] = y + (row * stage.grid + column) * stage.stride;
    taps[count++] = pooling.taps[tap];
  }
  for (int64_t i = 0; i < stage.channels; i += kLanes) {
    Floats sum{};
    for (int tap = 0; tap < count; ++tap)
      sum = simd::fused_multiply_add(simd::load(inside[tap] + i), simd::load(taps[tap] + i), sum);
    simd::store(x + i, simd::load(x + i) + (sum + simd::load(pooling.bias + i)));
  }
}

// A block's last step needs its neighbours' y, so whoever reads its output next does it, by calling this.
inline float* finished_token(const Stage& stage, const Block* before, const ImageBuffers& image, int64_t token) {
  float* x = image.x + token * stage.stride;
  if (before)
    for (const Pooling& pooling : before->pooling) add_pooling(pooling, stage, image.y, token, x);
  return x;
}

// Token `i` of a cell of `side` x `side` tokens, which cover the grid; the tokens themselves where side is 1.
inline int64_t token_of_cell(const Stage& stage, int64_t side, int64_t cell, int64_t i) {
  if (side == 1) return cell;
  const int64_t cells = stage.grid / side;
  return (cell / cells * side + i / side) * stage.grid + cell % cells * side + i % side;
}

// The average of `count` rows that follow each other.
inline void average_rows(const float* rows, int64_t stride, int64_t count, int64_t channels, float* to) {
  const Floats divisor = simd::all(static_cast<float>(count));
  for (int64_t i = 0; i < channels; i += kLanes) {
    Floats sum = simd::load(rows + i);
    for (int64_t row = 1; row < count; ++row) sum += simd::load(rows + row * stride + i);
    simd::store(to + i, sum / divisor);
  }
}

// The signs of each head's channels, in separate words.
inline void pack_heads(const Attention& attention, const float* row, const float* shift, uint64_t* to) {
  for (int64_t head = 0; head < attention.heads; ++head, to += attention.head_words) {
    const int64_t first = head * attention.head_channels;
    pack_signs(row + first, shift + first, attention.head_channels, to);
  }
}

// A unit whose output is as wide as its input, or a multiple of it.
template <int rows>
void apply_to_rows(const Unit& unit, const float* const (&x)[rows], const Scratch& scratch, float* const (&to)[rows]) {
  const uint64_t* bits[rows];
  Shortcut<rows> shortcut;
  const bool is_copied = unit.outputs > unit.inputs && unit.inputs % kLanes;
  shortcut.period = is_copied || unit.outputs == unit.inputs ? padded(unit.outputs) : unit.inputs;
  for (int r = 0; r < rows; ++r) {
    pack_signs(x[r], unit.shift, unit.inputs, scratch.packed(r));
    bits[r] = scratch.packed(r);
    if (is_copied) repeat(x[r], unit.inputs, unit.outputs / unit.inputs, scratch.wide_shortcut[r]);
    shortcut.row[r] = is_copied ? scratch.wide_shortcut[r] : x[r];
  }
  apply(unit, bits, shortcut, to);
}

template <int rows>
struct Pointers {
  float* row[rows];
  const float* read[rows];
  Pointers(float* first, int64_t stride) {
    for (int r = 0; r < rows; ++r) read[r] = row[r] = first + r * stride;
  }
  explicit Pointers(const Rows& of) : Pointers(of.first, of.stride) {}
};

// First pass: queries, keys and values of this thread's cells of R x R tokens.
inline void project(const Stage& stage, const Block& block, const Block* before, const ImageBuffers& image,
                    const Scratch& scratch, const Team& team) {
  const Attention& attention = block.attention;
  const int64_t side = block.reduction, of_cell = side * side, keys = stage.tokens / of_cell, stride = stage.stride;
  const int64_t q_words = attention.heads * attention.head_words, begin = team.begin(keys);
  for_each_group(team.end(keys) - begin, [&](int64_t first_cell, auto constant) {
    constexpr int cells = constant;
    first_cell += begin;
    const auto token_of = [&](int64_t i) { return token_of_cell(stage, side, first_cell + i / of_cell, i % of_cell); };
    for (int64_t i = 0; i < cells * of_cell; ++i)
      normalize(finished_token(stage, before, image, token_of(i)), block.norm1, stage.channels,
                scratch.cells + i * stride);

    for_each_group(cells * of_cell, [&](int64_t first, auto group) {
      constexpr int rows = group;
      const Pointers<rows> x(scratch.cells + first * stride, stride);
      float* q[rows];
      for (int r = 0; r < rows; ++r) q[r] = image.q + token_of(first + r) * stride;
      apply_to_rows<rows>(block.q, x.read, scratch, q);
      for (int r = 0; r < rows; ++r)
        pack_heads(attention, q[r], attention.shift_q, image.q_bits + token_of(first + r) * q_words);
    });

    Pointers<cells> z(scratch.cells, stride);
    if (side > 1) {
      const Pointers<cells> average(scratch.a), reduced(scratch.b);
      for (int cell = 0; cell < cells; ++cell)
        average_rows(scratch.cells + cell * of_cell * stride, stride, of_cell, stage.channels, average.row[cell]);
      apply_to_rows<cells>(block.reduce[0], average.read, scratch, reduced.row);
      z = reduced;
    }
    const Pointers<cells> k(image.kv + first_cell * stride, stride), v(scratch.c);
    apply_to_rows<cells>(block.k, z.read, scratch, k.row);
    apply_to_rows<cells>(block.v, z.read, scratch, v.row);
    for (int cell = 0; cell < cells; ++cell) {
      pack_heads(attention, k.row[cell], attention.shift_k, scratch.packed(0));
      place_key(attention, scratch.packed(0), first_cell + cell, keys, image.k_tiles);
      pack_heads(attention, v.row[cell], attention.shift_v, image.v_bits + (first_cell + cell) * q_words);
      for (int64_t i = 0; i < stage.channels; i += kLanes)
        simd::store(k.row[cell] + i, simd::load(k.row[cell] + i) + simd::load(v.row[cell] + i));
    }
  });
}

// RPReLU(norm(level * context) + q + kv).
inline void activate_context(const Attention& attention, const float* q, const float* kv, float* context) {
  const Activation& activation = attention.activation;
  for (int64_t i = 0; i < attention.channels; i += kLanes) {
    const Floats scaled = simd::load(context + i) * simd::load(attention.level + i);
    const Floats normalized = simd::fused_multiply_add(scaled, simd::load(attention.norm.factor + i),
                                                       simd::load(attention.norm.offset + i));
    simd::store(context + i, activated(normalized + simd::load(q + i) + simd::load(kv + i),
                                       simd::load(activation.shift_in + i), simd::load(activation.slope + i),
                                       simd::load(activation.shift_out + i)));
  }
}

// The two layers of the MLP; the hidden rows never leave the cache.
template <int rows>
void apply_mlp(const Block& block, const Pointers<rows>& y, const Scratch& scratch, const Pointers<rows>& to) {
  const Unit& unit = block.fc2;
  const Pointers<rows> hidden(scratch.wide), average(scratch.b);
  apply_to_rows<rows>(block.fc1, y.read, scratch, hidden.row);
  const uint64_t* bits[rows];
  Shortcut<rows> shortcut;
  shortcut.period = padded(unit.outputs);
  for (int r = 0; r < rows; ++r) {
    pack_signs(hidden.row[r], unit.shift, unit.inputs, scratch.packed(r));
    average_groups(hidden.row[r], unit.inputs / unit.outputs, unit.outputs, average.row[r]);
    bits[r] = scratch.packed(r);
    shortcut.row[r] = average.row[r];
  }
  apply(unit, bits, shortcut, to.row);
}

// Second pass: attention, its output projection, and the MLP, for this thread's tokens.
inline void attend_and_mix(const Stage& stage, const Block& block, const ImageBuffers& image, const Scratch& scratch,
                           const Team& team) {
  const Attention& attention = block.attention;
  const int64_t side = block.reduction, keys = stage.tokens / (side * side), stride = stage.stride;
  const int64_t q_words = attention.heads * attention.head_words;
  const int64_t k_words = tiles_for(keys) * simd::kTileWords * attention.head_words;
  const int64_t v_words = tiles_for(attention.head_channels) * simd::kTileWords * words_for(keys);
  const int64_t begin = team.begin(stage.tokens);
  place_values(attention, image.v_bits, keys, scratch.v_tiles);
  for_each_group(team.end(stage.tokens) - begin, [&](int64_t first, auto group) {
    constexpr int rows = group;
    first += begin;
    const Pointers<rows> context(scratch.a), result(scratch.c), x(image.x + first * stride, stride);
    for (int64_t head = 0; head < attention.heads; ++head) {
      const uint64_t* queries[rows];
      float* to[rows];
      for (int r = 0; r < rows; ++r) {
        queries[r] = image.q_bits + (first + r) * q_words + head * attention.head_words;
        to[r] = context.row[r] + head * attention.head_channels;
      }
      attend<rows>(attention, queries, image.k_tiles + head * k_words, scratch.v_tiles + head * v_words, keys, scratch,
                   to);
    }
    for (int r = 0; r < rows; ++r) {
      const int64_t token = first + r, row = token / stage.grid, column = token % stage.grid;
      const int64_t key = side == 1 ? token : row / side * (stage.grid / side) + column / side;
      activate_context(attention, image.q + token * stride, image.kv + key * stride, context.row[r]);
    }
    apply_to_rows<rows>(block.proj, context.read, scratch, result.row);

    const Pointers<rows> y(image.y + first * stride, stride);
    for (int r = 0; r < rows; ++r) {
      add_affine(x.row[r], result.row[r], block.affine1, stage.channels);
      normalize(x.row[r], block.norm2, stage.channels, y.row[r]);
    }
    apply_mlp<rows>(block, y, scratch, result);
    for (int r = 0; r < rows; ++r) add_affine(x.row[r], result.row[r], block.affine2, stage.channels);
  });
}

// The binary patch merging into `stage`: 2 x 2 tokens become one.
inline void merge(const Stage& from, const Stage& stage, const ImageBuffers& image, const Scratch& scratch,
                  const Team& team) {
  constexpr int64_t kCell = 4;
  const Merge& merge = stage.merge[0];
  const Unit& unit = merge.unit;
  const Block* before = from.blocks.empty() ? nullptr : &from.blocks.back();
  const int64_t copies = stage.channels / from.channels, begin = team.begin(stage.tokens);
  for_each_group(team.end(stage.tokens) - begin, [&](int64_t first, auto group) {
    constexpr int rows = group;
    first += begin;
    const Pointers<rows> to(image.merged + first * stage.stride, stage.stride), average(scratch.a);
    const uint64_t* bits[rows];
    Shortcut<rows> shortcut;
    shortcut.period = padded(stage.channels);
    for (int r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < kCell; ++i) {
        float* normalized = scratch.cells + i * from.stride;
        const float* x = finished_token(from, before, image, token_of_cell(from, 2, first + r, i));
        normalize(x, merge.norm_in, from.channels, normalized);
        pack_signs(normalized, unit.shift, from.channels, scratch.packed(r) + i * (unit.words / kCell));
      }
      average_rows(scratch.cells, from.stride, kCell, from.channels, average.row[r]);
      repeat(average.row[r], from.channels, copies, scratch.wide_shortcut[r]);
      bits[r] = scratch.packed(r);
      shortcut.row[r] = scratch.wide_shortcut[r];
    }
    apply(unit, bits, shortcut, to.row);
    const float* positions = merge.positions + first * stage.stride;
    for (int64_t i = 0; i < rows * stage.stride; i += kLanes)
      simd::store(to.row[0] + i, simd::load(to.row[0] + i) + simd::load(positions + i));
  });
}

}  // namespace binaryvit
