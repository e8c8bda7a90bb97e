// The elementwise passes of a binary unit over its tokens (see native.py): each reads what it needs once.
//
// Tensors are contiguous and row-major: x (tokens, inputs), products and outputs (tokens, outputs). Sums over tokens
// are taken block by block, in float or integer, and then over the blocks in their order, in more digits: so they are
// the same with any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kBlock = 64;  // tokens: the squares of so many products, each at most 4096, add up in an int32

int64_t count_blocks(int64_t tokens) { return (tokens + kBlock - 1) / kBlock; }

constexpr int64_t kWorthAThread = 32768;  // numbers, PyTorch's own measure

// Calls work(block, first token, end token) for every block of tokens.
template <class Work>
void for_each_block(int64_t tokens, int64_t channels, Work work) {
  const int64_t blocks = count_blocks(tokens);
#pragma omp parallel for schedule(static) if (tokens * channels > kWorthAThread)
  for (int64_t block = 0; block < blocks; ++block)
    work(block, block * kBlock, std::min(tokens, (block + 1) * kBlock));
}

// The 16 bits of a bfloat16, rounded to the nearest, ties to even.
struct BFloat16 {
  uint16_t bits;
};

inline void store(float value, float& to) { to = value; }
inline void store(float value, BFloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = value == value ? static_cast<uint16_t>(rounded) : 0x7fc0;  // NaN stays one
}

inline void store(float value, int8_t& to) { to = static_cast<int8_t>(value); }

inline float load(float from) { return from; }
inline float load(BFloat16 from) {
  const uint32_t bits = static_cast<uint32_t>(from.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// How a unit's input reaches its output past the product: copied side by side into a wider one, averaged over groups of
// adjacent channels into a narrower one. Both repeat one row of `width` numbers.
struct Shortcut {
  int64_t inputs, outputs;
  int64_t width = std::min(inputs, outputs), group = inputs / width;
  mutable std::vector<float> means = std::vector<float>(group > 1 ? width : 0);

  const float* row(const float* x) const {
    if (group == 1) return x;
    if (group == 2) average<2>(x);
    else if (group == 4) average<4>(x);
    else if (group == 8) average<8>(x);
    else average<0>(x);
    return means.data();
  }

  // Averages groups of so many channels; 0: of `group`. A number known in advance lets the sums run side by side.
  template <int known>
  void average(const float* x) const {
    const int64_t size = known ? known : group;
    const float share = 1.0f / size;
    float* to = means.data();
    for (int64_t channel = 0; channel < width; ++channel) {
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; ++i) sum += x[channel * size + i];
      to[channel] = sum * share;
    }
  }
};

// What the norm amounts to in each channel, the rows of a (5, outputs) tensor: the product's scale, mean and biased
// variance of the scaled product, and what a product is multiplied with and what is added to it before RPReLU.
struct Channels {
  const float *scale, *mean, *variance, *factor, *offset;
  Channels(const float* rows, int64_t outputs)
      : scale(rows), mean(rows + outputs), variance(rows + 2 * outputs), factor(rows + 3 * outputs),
        offset(rows + 4 * outputs) {}
};

// The sums of (blocks, channels) over the blocks, in their order.
template <class Sum, class Number>
std::vector<Sum> totals(const Number* sums, int64_t blocks, int64_t channels) {
  std::vector<Sum> total(channels);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t channel = 0; channel < channels; ++channel) total[channel] += sums[block * channels + channel];
  return total;
}

}  // namespace

extern "C" {

// Keeps int32 products as int16 and takes their statistics, from sums of integers: exact up to the last step. Reads the
// first row of channels (scale) and fills the others.
void keep_and_normalize(const int32_t* product, const float* gamma, const float* beta, const float* shift_in,
                        double eps, int16_t* kept, float* channels, int64_t tokens, int64_t outputs) {
  const int64_t blocks = count_blocks(tokens);
  std::vector<int32_t> sums_of_blocks(blocks * outputs), squares_of_blocks(blocks * outputs);
  int32_t *all_sums = sums_of_blocks.data(), *all_squares = squares_of_blocks.data();
  for_each_block(tokens, outputs, [=](int64_t block, int64_t first, int64_t end) {
    int32_t *sum = all_sums + block * outputs, *squares = all_squares + block * outputs;
    for (int64_t token = first; token < end; ++token) {
      const int32_t* p = product + token * outputs;
      int16_t* k = kept + token * outputs;
#pragma omp simd
      for (int64_t o = 0; o < outputs; ++o) {
        k[o] = static_cast<int16_t>(p[o]);
        sum[o] += p[o];
        squares[o] += p[o] * p[o];
      }
    }
  });
  const auto sum = totals<int64_t>(all_sums, blocks, outputs), squares = totals<int64_t>(all_squares, blocks, outputs);
  for (int64_t o = 0; o < outputs; ++o) {
    const double mean = static_cast<double>(sum[o]) / tokens, square = static_cast<double>(squares[o]) / tokens;
    const double scale = channels[o], variance = scale * scale * (square - mean * mean);
    const double factor = gamma[o] / std::sqrt(variance + eps);
    const double row[] = {scale, scale * mean, variance, factor * scale, beta[o] - shift_in[o] - factor * scale * mean};
    for (int64_t i = 0; i < 5; ++i) channels[i * outputs + o] = static_cast<float>(row[i]);
  }
}

// y = RPReLU(normalized product + shortcut of x).
void activate(const int16_t* product, const float* x, const float* channels, const float* slope,
              const float* shift_out, float* y, int64_t tokens, int64_t inputs, int64_t outputs) {
  const Channels channel(channels, outputs);
  for_each_block(tokens, outputs, [=](int64_t, int64_t first, int64_t end) {
    const Shortcut shortcut{inputs, outputs};
    const int64_t width = shortcut.width;
    for (int64_t token = first; token < end; ++token) {
      const float* row = shortcut.row(x + token * inputs);
      for (int64_t from = 0; from < outputs; from += width) {
        const int16_t* p = product + token * outputs + from;
        const float *f = channel.factor + from, *h = channel.offset + from, *s = slope + from;
        const float* shift = shift_out + from;
        float* to = y + token * outputs + from;
#pragma omp simd
        for (int64_t o = 0; o < width; ++o) {
          const float z = f[o] * p[o] + h[o] + row[o];
          to[o] = (z > 0 ? z : s[o] * z) + shift[o];
        }
      }
    }
  });
}

// Through RPReLU and batch norm, summed over tokens. Fills gradients (5, outputs), those of gamma, beta, shift_in,
// slope and shift_out, and weights (3, outputs), with which the gradient of the product is
// weights[0] * of_z + weights[1] * product + weights[2].
void channel_gradients(const float* gradient, const int16_t* product, const float* x, const float* channels,
                       const float* gamma, const float* slope, double eps, float* gradients, float* weights,
                       int64_t tokens, int64_t inputs, int64_t outputs) {
  const Channels channel(channels, outputs);
  const int64_t blocks = count_blocks(tokens), size = blocks * outputs;
  // Near the products' mean, so that no digits are lost where a channel hardly varies; an integer, so that the
  // difference is exact.
  std::vector<float> centres(outputs);
  for (int64_t o = 0; o < outputs; ++o)
    centres[o] = channel.scale[o] > 0 ? std::round(channel.mean[o] / channel.scale[o]) : 0.0f;
  // Of the gradient of y: where z > 0; elsewhere; times z elsewhere; through RPReLU times the centred product.
  std::vector<float> sums(4 * size);
  const float* all_centres = centres.data();
  float* all_sums = sums.data();
  for_each_block(tokens, outputs, [=](int64_t block, int64_t first, int64_t end) {
    const Shortcut shortcut{inputs, outputs};
    const int64_t width = shortcut.width;
    for (int64_t token = first; token < end; ++token) {
      const float* row = shortcut.row(x + token * inputs);
      for (int64_t from = 0; from < outputs; from += width) {
        const int16_t* p = product + token * outputs + from;
        const float *g = gradient + token * outputs + from, *centre = all_centres + from;
        const float *f = channel.factor + from, *h = channel.offset + from, *s = slope + from;
        float* above = all_sums + block * outputs + from;
        float *below = above + size, *times_z = below + size, *times_product = times_z + size;
#pragma omp simd
        for (int64_t o = 0; o < width; ++o) {
          const float z = f[o] * p[o] + h[o] + row[o];
          const float rest = z > 0 ? 0.0f : g[o];
          const float passed = z > 0 ? g[o] : 0.0f;
          above[o] += passed;
          below[o] += rest;
          times_z[o] += rest * z;
          times_product[o] += (passed + s[o] * rest) * (p[o] - centre[o]);
        }
      }
    }
  });
  const auto above = totals<double>(all_sums, blocks, outputs);
  const auto below = totals<double>(all_sums + size, blocks, outputs);
  const auto times_z = totals<double>(all_sums + 2 * size, blocks, outputs);
  const auto times_product = totals<double>(all_sums + 3 * size, blocks, outputs);
  for (int64_t o = 0; o < outputs; ++o) {
    const double scale = channel.scale[o], mean = channel.mean[o];
    const double inverse_deviation = 1 / std::sqrt(channel.variance[o] + eps);
    const double of_beta = above[o] + slope[o] * below[o];
    const double of_gamma = inverse_deviation * (scale * times_product[o] + (scale * centres[o] - mean) * of_beta);
    const double of_channel[] = {of_gamma, of_beta, -of_beta, times_z[o], above[o] + below[o]};
    for (int64_t i = 0; i < 5; ++i) gradients[i * outputs + o] = static_cast<float>(of_channel[i]);
    const double factor = gamma[o] * inverse_deviation, of_normalized = inverse_deviation * of_gamma / tokens;
    weights[o] = static_cast<float>(factor);
    weights[outputs + o] = static_cast<float>(-factor * of_normalized * scale);
    weights[2 * outputs + o] = static_cast<float>(factor * (mean * of_normalized - of_beta / tokens));
  }
}

}  // extern "C"

namespace {

// The gradient of the product, from the weights of channel_gradients, and what the shortcut hands to x.
template <class Float>
void product_gradient(const float* gradient, const int16_t* product, const float* x, const float* channels,
                      const float* slope, const float* weights, Float* of_product, float* of_x, int64_t tokens,
                      int64_t inputs, int64_t outputs) {
  const Channels channel(channels, outputs);
  for_each_block(tokens, outputs, [=](int64_t, int64_t first, int64_t end) {
    const Shortcut shortcut{inputs, outputs};
    const int64_t width = shortcut.width;
    std::vector<float> passed(width);  // to the row that is repeated
    for (int64_t token = first; token < end; ++token) {
      const float* row = shortcut.row(x + token * inputs);
      std::fill(passed.begin(), passed.end(), 0.0f);
      float* sum = passed.data();
      for (int64_t from = 0; from < outputs; from += width) {
        const int16_t* p = product + token * outputs + from;
        const float* g = gradient + token * outputs + from;
        const float *f = channel.factor + from, *h = channel.offset + from, *s = slope + from;
        const float *a = weights + from, *b = a + outputs, *c = b + outputs;
        Float* to = of_product + token * outputs + from;
#pragma omp simd
        for (int64_t o = 0; o < width; ++o) {
          const float z = f[o] * p[o] + h[o] + row[o];
          const float of_z = z > 0 ? g[o] : s[o] * g[o];
          store(a[o] * of_z + b[o] * p[o] + c[o], to[o]);
          sum[o] += of_z;
        }
      }
      float* to = of_x + token * inputs;
      if (shortcut.group == 1) {
        std::copy(passed.begin(), passed.end(), to);
      } else {
        for (int64_t channel = 0; channel < width; ++channel)
          std::fill_n(to + channel * shortcut.group, shortcut.group, passed[channel] / shortcut.group);
      }
    }
  });
}

// The signs of x + shift, sign(0) = +1, as the type that products take.
template <class Number>
void signs(const float* x, const float* shift, Number* to, int64_t tokens, int64_t inputs) {
  for_each_block(tokens, inputs, [=](int64_t, int64_t first, int64_t end) {
    for (int64_t token = first; token < end; ++token) {
      const float *row = x + token * inputs, *b = shift;
      Number* signs = to + token * inputs;
#pragma omp simd
      for (int64_t i = 0; i < inputs; ++i) store(row[i] + b[i] >= 0 ? 1.0f : -1.0f, signs[i]);
    }
  });
}

// Adds to of_x the gradient of the signs times the straight-through estimator's derivative; of_shift is the sum of it.
template <class Float>
void input_gradient(const Float* of_signs, const float* x, const float* shift, float* of_x, float* of_shift,
                    int64_t tokens, int64_t inputs) {
  const int64_t blocks = count_blocks(tokens);
  std::vector<float> sums(blocks * inputs);
  float* all_sums = sums.data();
  for_each_block(tokens, inputs, [=](int64_t block, int64_t first, int64_t end) {
    for (int64_t token = first; token < end; ++token) {
      const float *from = x + token * inputs, *b = shift;
      const Float* g = of_signs + token * inputs;
      float *to = of_x + token * inputs, *sum = all_sums + block * inputs;
#pragma omp simd
      for (int64_t i = 0; i < inputs; ++i) {
        const float derivative = 2 - 2 * std::fabs(from[i] + b[i]);
        const float passed = (derivative < 0 ? 0.0f : derivative) * load(g[i]);  // NaN stays one
        to[i] += passed;
        sum[i] += passed;
      }
    }
  });
  const auto total = totals<double>(all_sums, blocks, inputs);
  for (int64_t i = 0; i < inputs; ++i) of_shift[i] = static_cast<float>(total[i]);
}

}  // namespace

extern "C" void signs_int8(const float* x, const float* shift, int8_t* to, int64_t tokens, int64_t inputs) {
  signs(x, shift, to, tokens, inputs);
}

// What has one form for each type of the backward pass's products.
#define FOR_TYPE(Float, name)                                                                                          \
  extern "C" void product_gradient_##name(const float* gradient, const int16_t* product, const float* x,               \
                                          const float* channels, const float* slope, const float* weights,             \
                                          Float* of_product, float* of_x, int64_t tokens, int64_t inputs,              \
                                          int64_t outputs) {                                                           \
    product_gradient(gradient, product, x, channels, slope, weights, of_product, of_x, tokens, inputs, outputs);       \
  }                                                                                                                    \
  extern "C" void signs_##name(const float* x, const float* shift, Float* to, int64_t tokens, int64_t inputs) {        \
    signs(x, shift, to, tokens, inputs);                                                                               \
  }                                                                                                                    \
  extern "C" void input_gradient_##name(const Float* of_signs, const float* x, const float* shift, float* of_x,        \
                                        float* of_shift, int64_t tokens, int64_t inputs) {                             \
    input_gradient(of_signs, x, shift, of_x, of_shift, tokens, inputs);                                                \
  }

FOR_TYPE(float, float32)
FOR_TYPE(BFloat16, bfloat16)
