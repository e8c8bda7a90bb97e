// AVX-512 with VPOPCNTDQ: sixteen channels in a vector of floats, eight 64-bit words in a vector of words.
#pragma once

#include <immintrin.h>

namespace simd {

constexpr const char* kName = "AVX-512 VPOPCNTDQ";
constexpr int kLanes = 16;  // channels side by side in a tile
constexpr int kRows = 4;    // tokens that share what is loaded of the weights

using Words = __m512i;
constexpr int kWords = 8;

inline Words load(const uint64_t* from) { return _mm512_loadu_si512(from); }
inline Words broadcast(uint64_t word) { return _mm512_set1_epi64(static_cast<int64_t>(word)); }
inline Words add(Words a, Words b) { return _mm512_add_epi64(a, b); }
inline Words count_ones(Words words) { return _mm512_popcnt_epi64(words); }

using Floats = __m512;
using Ints = __m512i;

// Counts in even and in odd channels, each below 2^32, to all channels in order.
inline Ints interleave(Words even, Words odd) { return _mm512_or_si512(even, _mm512_slli_epi64(odd, 32)); }

inline Floats fused_multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats to_floats(Ints values) { return _mm512_cvtepi32_ps(values); }

// Bit i of a mask is lane i of a comparison.
inline uint64_t not_negative(Floats x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ); }
inline uint64_t at_most(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline uint64_t less(Ints a, Ints b) { return _mm512_cmplt_epi32_mask(a, b); }

// x where it is positive, elsewhere slope * x.
inline Floats prelu(Floats x, Floats slope) {
  return _mm512_mask_mul_ps(x, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NGT_UQ), x, slope);
}
inline Ints broadcast_int(int32_t value) { return _mm512_set1_epi32(value); }
inline Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline int32_t smallest(Ints values) { return _mm512_reduce_min_epi32(values); }
inline float sum(Floats values) { return _mm512_reduce_add_ps(values); }  // halves onto halves
inline Ints smaller(Ints a, Ints b) { return _mm512_min_epi32(a, b); }

// Floats by index; the first 64 stay in registers, which is much faster than gathering from memory.
class Table {
 public:
  static constexpr int kNear = 64;
  explicit Table(const float* entries) : entries_(entries) {
    for (int i = 0; i < 4; ++i) parts_[i] = _mm512_loadu_ps(entries + 16 * i);
  }
  Floats near(Ints index) const {
    const Floats low = _mm512_permutex2var_ps(parts_[0], index, parts_[1]);
    const Floats high = _mm512_permutex2var_ps(parts_[2], index, parts_[3]);
    return _mm512_mask_mov_ps(low, _mm512_test_epi32_mask(index, _mm512_set1_epi32(32)), high);
  }
  Floats far(Ints index) const { return _mm512_i32gather_ps(index, entries_, 4); }

 private:
  const float* entries_;
  Floats parts_[4];
};

}  // namespace simd
