// Exact inference on packed bits: tokens in, tokens out, through all stages of a model in one call.

#include <omp.h>

#include "block.h"

namespace binaryvit {

// All stages of one image, by the threads of a team. Rows of channels are not padded in `from` and `to`.
static void forward_image(const Model& model, const float* from, float* to, ImageBuffers image, const Scratch& scratch,
                          const Team& team) {
  const Stage& input = model.stages.front();
  for (int64_t token = team.begin(input.tokens); token < team.end(input.tokens); ++token)
    std::copy_n(from + token * input.channels, input.channels, image.x + token * input.stride);
  const Stage* previous = nullptr;
  for (const Stage& stage : model.stages) {
    team.wait();
    if (previous) {
      merge(*previous, stage, image, scratch, team);
      std::swap(image.x, image.merged);
      team.wait();
    }
    const Block* before = nullptr;
    for (const Block& block : stage.blocks) {
      project(stage, block, before, image, scratch, team);
      team.wait();
      attend_and_mix(stage, block, image, scratch, team);
      team.wait();
      before = &block;
    }
    previous = &stage;
  }
  const Block* before = previous->blocks.empty() ? nullptr : &previous->blocks.back();
  for (int64_t token = team.begin(previous->tokens); token < team.end(previous->tokens); ++token) {
    normalize(finished_token(*previous, before, image, token), model.norm, previous->channels, scratch.a[0]);
    std::copy_n(scratch.a[0], previous->channels, to + token * previous->channels);
  }
}

// One team for each image while there are images for all threads; the rest together.
static void forward(const Model& model, const float* from, float* to, int64_t images, int threads, char* memory) {
  const Sizes sizes(model);
  const int64_t in = model.stages.front().tokens * model.stages.front().channels;
  const int64_t out = model.stages.back().tokens * model.stages.back().channels;
  Arena arena(memory);
  std::vector<ImageBuffers> buffers;
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < threads; ++thread) {
    buffers.emplace_back(arena, sizes);
    scratch.emplace_back(arena, sizes);
  }
#pragma omp parallel num_threads(threads)
  {
    const Team team{omp_get_num_threads(), omp_get_thread_num()};  // may be fewer than asked for
    const int64_t alone = images / team.size * team.size;
    for (int64_t image = team.rank; image < alone; image += team.size)
      forward_image(model, from + image * in, to + image * out, buffers[team.rank], scratch[team.rank], Team{1, 0});
    for (int64_t image = alone; image < images; ++image) {
      team.wait();
      forward_image(model, from + image * in, to + image * out, buffers[0], scratch[team.rank], team);
    }
  }
}

// One product by itself: rows of floats are packed, a group at a time, and multiplied.
static void sign_product(const float* x, const float* shift, const uint64_t* tiles, int32_t* to, int64_t count,
                         int64_t inputs, int64_t outputs, int threads) {
  const int64_t words = words_for(inputs);
#pragma omp parallel num_threads(threads)
  {
    const Team team{omp_get_num_threads(), omp_get_thread_num()};
    std::vector<uint64_t> packed(kRows * words);
    std::vector<float> row(padded(inputs) + kPadding), shifts(shift, shift + inputs);
    shifts.resize(row.size());
    const int64_t begin = team.begin(count);
    for_each_group(team.end(count) - begin, [&](int64_t first, auto group) {
      constexpr int rows = group;
      first += begin;
      const uint64_t* bits[rows];
      for (int r = 0; r < rows; ++r) {
        std::copy_n(x + (first + r) * inputs, inputs, row.begin());
        pack_signs(row.data(), shifts.data(), inputs, packed.data() + r * words);
        bits[r] = packed.data() + r * words;
      }
      for (int64_t output = 0; output < outputs; output += kLanes) {
        Ints different[rows];
        count_tile<simd::Different>(tiles + output * words, bits, words, different);
        for (int r = 0; r < rows; ++r) {
          int32_t counts[kLanes];
          simd::store(counts, different[r]);
          for (int64_t i = 0; i < std::min<int64_t>(kLanes, outputs - output); ++i)
            to[(first + r) * outputs + output + i] = static_cast<int32_t>(inputs) - 2 * counts[i];
        }
      }
    });
  }
}

static int64_t memory_needed(const Model& model, int threads) {
  const Sizes sizes(model);
  Arena arena(nullptr);
  for (int thread = 0; thread < threads; ++thread) {
    ImageBuffers(arena, sizes);
    Scratch(arena, sizes);
  }
  return arena.used();
}

}  // namespace binaryvit

extern "C" {

// Channels side by side in a tile, by which the words of weights are laid out.
int64_t lanes() { return simd::kLanes; }
const char* instructions() { return simd::kName; }

// The integers (rows, outputs) of signs of x + shift (rows, inputs) and a weight in tiles.
void sign_product(const float* x, const float* shift, const uint64_t* tiles, int32_t* to, int64_t rows, int64_t inputs,
                  int64_t outputs, int64_t threads) {
  binaryvit::sign_product(x, shift, tiles, to, rows, inputs, outputs, static_cast<int>(threads));
}

// Bytes that `forward` needs as `memory`.
void memory_needed(const int64_t* sizes, const float* floats, const uint64_t* words, int64_t threads, int64_t* bytes) {
  *bytes = binaryvit::memory_needed(binaryvit::Model({sizes, floats, words}), static_cast<int>(threads));
}

// Tokens (images, tokens, channels) of the first stage to the normalized tokens of the last.
void forward(const int64_t* sizes, const float* floats, const uint64_t* words, const float* from, float* to,
             int64_t images, int64_t threads, char* memory) {
  binaryvit::forward(binaryvit::Model({sizes, floats, words}), from, to, images, static_cast<int>(threads), memory);
}

}
