// NEON on 64-bit ARM: four channels in a vector of floats, two 64-bit words in a vector of words.
#pragma once

#include <arm_neon.h>

namespace simd {

constexpr const char* kName = "NEON";
constexpr int kLanes = 4;
constexpr int kRows = 4;

using Words = uint64x2_t;
constexpr int kWords = 2;

inline Words load(const uint64_t* from) { return vld1q_u64(from); }
inline Words broadcast(uint64_t word) { return vdupq_n_u64(word); }
inline Words add(Words a, Words b) { return vaddq_u64(a, b); }
inline Words count_ones(Words words) {
  return vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(vcntq_u8(vreinterpretq_u8_u64(words)))));
}

using Floats = float32x4_t;
using Ints = int32x4_t;

inline Ints interleave(Words even, Words odd) {
  return vreinterpretq_s32_u64(vorrq_u64(even, vshlq_n_u64(odd, 32)));
}
inline Floats fused_multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats to_floats(Ints values) { return vcvtq_f32_s32(values); }

inline uint64_t mask_of(uint32x4_t comparison) {
  const uint32x4_t places = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(comparison, places));
}
inline uint64_t not_negative(Floats x) { return mask_of(vcgezq_f32(x)); }
inline uint64_t at_most(Floats a, Floats b) { return mask_of(vcleq_f32(a, b)); }
inline uint64_t less(Ints a, Ints b) { return mask_of(vcltq_s32(a, b)); }

inline Floats prelu(Floats x, Floats slope) { return vbslq_f32(vcgtzq_f32(x), x, vmulq_f32(x, slope)); }
inline Ints broadcast_int(int32_t value) { return vdupq_n_s32(value); }
inline Ints subtract(Ints a, Ints b) { return vsubq_s32(a, b); }
inline Ints smaller(Ints a, Ints b) { return vminq_s32(a, b); }

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
