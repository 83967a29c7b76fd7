// float32 and bfloat16 values in memory; sums are made in float32 and rounded once, to nearest or
// stochastically (rounding.py has the formula).

#pragma once

#include <cstdint>
#include <cstring>

#include "wide.h"

INLINE uint32_t bits(float x) { uint32_t u; std::memcpy(&u, &x, 4); return u; }
INLINE float number(uint32_t u) { float x; std::memcpy(&x, &u, 4); return x; }

struct BFloat16 { uint16_t pattern; };

INLINE float load(float x) { return x; }
INLINE float load(BFloat16 x) { return number(uint32_t(x.pattern) << 16); }

INLINE bool is_nan(uint32_t u) { return (u & 0x7FFFFFFFu) > 0x7F800000u; }

INLINE void store(float *at, float x) { *at = x; }
INLINE void store(BFloat16 *at, float x) {
    const uint32_t u = bits(x);
    const uint32_t nearest = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    at->pattern = is_nan(u) ? uint16_t(0x7FC0) : uint16_t(nearest);
}

// `random` is uniform in [0, 2^16); float32 keeps all bits.
INLINE void store(float *at, float x, uint32_t) { *at = x; }
INLINE void store(BFloat16 *at, float x, uint32_t random) {
    const uint32_t u = bits(x);
    const bool finite = (u & 0x7F800000u) != 0x7F800000u;
    at->pattern = is_nan(u) ? uint16_t(0x7FC0) : uint16_t((finite ? u + random : u) >> 16);
}
