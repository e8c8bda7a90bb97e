// Plain C++, for any processor: vectors of GCC and Clang, which they take apart where the processor has none.
#pragma once

#include <cmath>

namespace simd {

constexpr const char* kName = "plain C++";
constexpr int kLanes = 4;
constexpr int kRows = 2;

typedef uint64_t Words __attribute__((vector_size(16)));
constexpr int kWords = 2;

inline Words load(const uint64_t* from) { return Words{from[0], from[1]}; }
inline Words broadcast(uint64_t word) { return Words{word, word}; }
inline Words add(Words a, Words b) { return a + b; }
inline uint64_t count_ones(uint64_t word) { return static_cast<uint64_t>(__builtin_popcountll(word)); }
inline Words count_ones(Words words) { return Words{count_ones(words[0]), count_ones(words[1])}; }

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

inline Ints interleave(Words even, Words odd) {
  return Ints{static_cast<int32_t>(even[0]), static_cast<int32_t>(odd[0]), static_cast<int32_t>(even[1]),
              static_cast<int32_t>(odd[1])};
}
inline Floats fused_multiply_add(Floats a, Floats b, Floats c) {
  return Floats{std::fma(a[0], b[0], c[0]), std::fma(a[1], b[1], c[1]), std::fma(a[2], b[2], c[2]),
                std::fma(a[3], b[3], c[3])};
}
inline Floats to_floats(Ints values) {
  return Floats{static_cast<float>(values[0]), static_cast<float>(values[1]), static_cast<float>(values[2]),
                static_cast<float>(values[3])};
}

inline uint64_t mask_of(Ints comparison) {
  uint64_t mask = 0;
  for (int lane = 0; lane < kLanes; ++lane) mask |= static_cast<uint64_t>(comparison[lane] & 1) << lane;
  return mask;
}
inline uint64_t not_negative(Floats x) { return mask_of(x >= Floats{}); }
inline uint64_t at_most(Floats a, Floats b) { return mask_of(a <= b); }
inline uint64_t less(Ints a, Ints b) { return mask_of(a < b); }

inline Floats prelu(Floats x, Floats slope) { return x > Floats{} ? x : slope * x; }
inline Ints broadcast_int(int32_t value) { return Ints{value, value, value, value}; }
inline Ints subtract(Ints a, Ints b) { return a - b; }
inline Ints smaller(Ints a, Ints b) { return a < b ? a : b; }

class Table {
 public:
  static constexpr int kNear = 0;
  explicit Table(const float* entries) : entries_(entries) {}
  Floats near(Ints index) const { return far(index); }
  Floats far(Ints index) const {
    return Floats{entries_[index[0]], entries_[index[1]], entries_[index[2]], entries_[index[3]]};
  }

 private:
  const float* entries_;
};

}  // namespace simd
