// AVX2 with FMA: eight channels in a vector of floats, four 64-bit words in a vector of words.
#pragma once

#include <immintrin.h>

namespace simd {

constexpr const char* kName = "AVX2";
constexpr int kLanes = 8;
constexpr int kRows = 4;

using Words = __m256i;
constexpr int kWords = 4;

inline Words load(const uint64_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Words broadcast(uint64_t word) { return _mm256_set1_epi64x(static_cast<int64_t>(word)); }
inline Words add(Words a, Words b) { return _mm256_add_epi64(a, b); }

// By a table of the ones in each half byte (Mula et al. 2018), summed over the bytes of each word.
inline Words count_ones(Words words) {
  const __m256i ones = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i half = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(ones, _mm256_and_si256(words, half));
  const __m256i high = _mm256_shuffle_epi8(ones, _mm256_and_si256(_mm256_srli_epi16(words, 4), half));
  return _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
}

using Floats = __m256;
using Ints = __m256i;

inline Ints interleave(Words even, Words odd) { return _mm256_or_si256(even, _mm256_slli_epi64(odd, 32)); }
inline Floats fused_multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats to_floats(Ints values) { return _mm256_cvtepi32_ps(values); }

inline uint64_t mask_of(Floats comparison) { return static_cast<uint32_t>(_mm256_movemask_ps(comparison)); }
inline uint64_t not_negative(Floats x) { return mask_of(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ)); }
inline uint64_t at_most(Floats a, Floats b) { return mask_of(_mm256_cmp_ps(a, b, _CMP_LE_OQ)); }
inline uint64_t less(Ints a, Ints b) { return mask_of(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a))); }

inline Floats prelu(Floats x, Floats slope) {
  return _mm256_blendv_ps(_mm256_mul_ps(x, slope), x, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ));
}
inline Ints broadcast_int(int32_t value) { return _mm256_set1_epi32(value); }
inline Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints smaller(Ints a, Ints b) { return _mm256_min_epi32(a, b); }

class Table {
 public:
  static constexpr int kNear = 0;
  explicit Table(const float* entries) : entries_(entries) {}
  Floats near(Ints index) const { return far(index); }
  Floats far(Ints index) const { return _mm256_i32gather_ps(entries_, index, 4); }

 private:
  const float* entries_;
};

}  // namespace simd
