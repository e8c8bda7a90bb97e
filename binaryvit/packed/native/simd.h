// Vectors of this processor: each simd_*.h defines the same names, here is what they share.
//
// A tile is kLanes output channels side by side. Its weights are stored word by word: for each word of the input, first
// the word of every even channel, then of every odd one, so that counts come out in order (`interleave`).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(BINARYVIT_PLAIN)
#include "simd_plain.h"
#elif defined(__AVX512VPOPCNTDQ__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && !defined(BINARYVIT_AVX2)
#include "simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "simd_avx2.h"
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include "simd_neon.h"
#else
#include "simd_plain.h"
#endif

namespace simd {

constexpr int kTileWords = 2 * kWords;  // of all channels of a tile, for one word of the input
static_assert(kTileWords == kLanes, "one word a channel");

inline int64_t place_in_tile(int64_t channel) { return channel % 2 * kWords + channel / 2; }

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}
inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }
inline Ints load(const int32_t* from) {
  Ints values;
  std::memcpy(&values, from, sizeof values);
  return values;
}
inline void store(int32_t* to, Ints values) { std::memcpy(to, &values, sizeof values); }

inline Floats all(float value) { return Floats{} + value; }

inline void store_first(float* to, Floats values, int64_t count) {
  if (count >= kLanes) return store(to, values);
  float lanes[kLanes];
  store(lanes, values);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// The first `count` lanes of values, then those of `otherwise`.
inline Ints first_lanes(Ints values, int64_t count, Ints otherwise) {
  static const struct Masks {
    int32_t lanes[2 * kLanes] = {};
    Masks() { std::memset(lanes, 0xff, sizeof lanes / 2); }
  } masks;
  const Ints mask = load(masks.lanes + kLanes - count);
  return (values & mask) | (otherwise & ~mask);
}
inline Floats first_lanes(Floats values, int64_t count) {
  return reinterpret_cast<Floats>(first_lanes(reinterpret_cast<Ints>(values), count, Ints{}));
}

// Of all lanes; a simd_*.h may know better.
template <class Vector>
int32_t smallest(Vector values) {
  int32_t lanes[kLanes];
  store(lanes, values);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] < lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

// Of all lanes, halves onto halves, in the order in which PyTorch's softmax takes it.
template <class Vector>
float sum(Vector values) {
  float lanes[kLanes];
  store(lanes, values);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// The words of two vectors compared bit by bit: where they differ, and where both are one.
struct Different {
  static Words of(Words a, Words b) { return a ^ b; }
};
struct Both {
  static Words of(Words a, Words b) { return a & b; }
};

}  // namespace simd
