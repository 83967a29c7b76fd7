// Standard normal numbers as a pure function of (key, streams, element): see normal.py, whose every
// number these functions repeat bit for bit. Compiled with -ffp-contract=off, because a fused
// multiply-add would round once where the twin rounds twice; the three target clones (AVX-512, AVX2,
// baseline) differ in width alone, and `words` has code of its own for the first two.
//
// A block is 64 elements: 16 lanes, each one counter of Philox-4x32 and the four words it gives.

#include <cmath>
#include <cstdint>

#include "values.h"
#include "wide.h"

#ifdef VERSIONED
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16, BLOCK = 4 * LANES, ROUNDS = 7;
constexpr int RUN = 4 * BLOCK;  // elements made at a time
constexpr uint32_t M0 = 0xD2511F53u, M1 = 0xCD9E8D57u, W0 = 0x9E3779B9u, W1 = 0xBB67AE85u;
constexpr int64_t SLICE = 1 << 14;  // elements of a thread's smallest share

struct Address {
    uint32_t key0, key1;  // of the tensor
    uint32_t row, column; // streams under one key
};

// The words of `RUN` blocks: x[64 i + 16 k + l] is word k of lane l of block i.
INLINE void plain_words(uint64_t block, Address a, uint32_t x[RUN]) {
    for (int i = 0; i < RUN; i += BLOCK) {
#pragma GCC ivdep
        for (int lane = 0; lane < LANES; lane++) {
            const uint64_t counter = (block + uint64_t(i / BLOCK)) * LANES + uint64_t(lane);
            uint32_t c0 = uint32_t(counter), c1 = uint32_t(counter >> 32), c2 = a.row, c3 = a.column;
            uint32_t k0 = a.key0, k1 = a.key1;
            for (int round = 0; round < ROUNDS; round++) {
                const uint64_t p0 = uint64_t(c0) * M0, p1 = uint64_t(c2) * M1;
                c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
                c1 = uint32_t(p1);
                c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
                c3 = uint32_t(p0);
                k0 += W0;
                k1 += W1;
            }
            uint32_t *lanes = x + i + lane;
            lanes[0] = c0; lanes[LANES] = c1; lanes[2 * LANES] = c2; lanes[3 * LANES] = c3;
        }
    }
}

DEFAULT void words(uint64_t block, Address a, uint32_t x[RUN]) { plain_words(block, a, x); }

#ifdef VERSIONED
// The same, two to three times as fast: lanes in the lower halves of a register's 64-bit elements, where
// one instruction multiplies them. What it leaves in the upper halves is never looked at.
V3 INLINE void philox(__m256i counter, Address a, __m256i c[4]) {
    const __m256i m0 = _mm256_set1_epi64x(M0), m1 = _mm256_set1_epi64x(M1);
    c[0] = counter;
    c[1] = _mm256_srli_epi64(counter, 32);
    c[2] = _mm256_set1_epi64x(a.row);
    c[3] = _mm256_set1_epi64x(a.column);
    uint32_t k0 = a.key0, k1 = a.key1;
    for (int round = 0; round < ROUNDS; round++) {
        const __m256i p0 = _mm256_mul_epu32(c[0], m0), p1 = _mm256_mul_epu32(c[2], m1);
        const __m256i high0 = _mm256_srli_epi64(p0, 32), high1 = _mm256_srli_epi64(p1, 32);
        c[0] = _mm256_xor_si256(_mm256_xor_si256(high1, c[1]), _mm256_set1_epi64x(k0));
        c[1] = p1;
        c[2] = _mm256_xor_si256(_mm256_xor_si256(high0, c[3]), _mm256_set1_epi64x(k1));
        c[3] = p0;
        k0 += W0;
        k1 += W1;
    }
}

V3 void words(uint64_t block, Address a, uint32_t x[RUN]) {
    constexpr int HALF = LANES / 2;
    const __m256i evens = _mm256_set_epi64x(6, 4, 2, 0), one = _mm256_set1_epi64x(1);
    for (int lane = 0; lane < RUN / 4; lane += HALF) {
        const int64_t first = int64_t(block * LANES) + lane;
        const __m256i counter = _mm256_add_epi64(_mm256_set1_epi64x(first), evens);
        __m256i even[4], odd[4];
        philox(counter, a, even);
        philox(_mm256_add_epi64(counter, one), a, odd);
        uint32_t *lanes = x + lane / LANES * BLOCK + lane % LANES;
        for (int k = 0; k < 4; k++)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(lanes + k * LANES), _mm256_blend_epi32(
                even[k], _mm256_slli_epi64(odd[k], 32), 0xAA));
    }
}

// With AVX-512 eight lanes at once.
V4 INLINE void philox(__m512i counter, Address a, __m512i c[4]) {
    const __m512i m0 = _mm512_set1_epi64(M0), m1 = _mm512_set1_epi64(M1);
    c[0] = counter;
    c[1] = _mm512_srli_epi64(counter, 32);
    c[2] = _mm512_set1_epi64(a.row);
    c[3] = _mm512_set1_epi64(a.column);
    uint32_t k0 = a.key0, k1 = a.key1;
    for (int round = 0; round < ROUNDS; round++) {
        const __m512i p0 = _mm512_mul_epu32(c[0], m0), p1 = _mm512_mul_epu32(c[2], m1);
        const __m512i high0 = _mm512_srli_epi64(p0, 32), high1 = _mm512_srli_epi64(p1, 32);
        c[0] = _mm512_ternarylogic_epi64(high1, c[1], _mm512_set1_epi64(k0), 0x96);  // a ^ b ^ c
        c[1] = p1;
        c[2] = _mm512_ternarylogic_epi64(high0, c[3], _mm512_set1_epi64(k1), 0x96);
        c[3] = p0;
        k0 += W0;
        k1 += W1;
    }
}

V4 void words(uint64_t block, Address a, uint32_t x[RUN]) {
    const __m512i evens = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0), one = _mm512_set1_epi64(1);
    for (int i = 0; i < RUN; i += BLOCK) {
        const int64_t first = int64_t((block + uint64_t(i / BLOCK)) * LANES);
        const __m512i counter = _mm512_add_epi64(_mm512_set1_epi64(first), evens);
        __m512i even[4], odd[4];
        philox(counter, a, even);
        philox(_mm512_add_epi64(counter, one), a, odd);
        for (int k = 0; k < 4; k++)
            _mm512_storeu_si512(x + i + k * LANES, _mm512_mask_blend_epi32(
                0xAAAA, even[k], _mm512_slli_epi64(odd[k], 32)));
    }
}
#endif

// Box-Muller: radius from a, angle from b.
INLINE void pair(uint32_t a, uint32_t b, float *first, float *second) {
    const float u = (float(a) + 0.5f) * 0x1p-32f;
    const int32_t i = int32_t(bits(u)) - 0x3F3504F3;  // u = m 2^e with m in [sqrt(1/2), sqrt(2))
    const float e = float(i >> 23);
    const float x = number(uint32_t((i & 0x7FFFFF) + 0x3F3504F3)) - 1.0f;
    const float xx = x * x;
    float y = 7.0376836292e-2f;
    y = y * x + -1.1514610310e-1f;
    y = y * x + 1.1676998740e-1f;
    y = y * x + -1.2420140846e-1f;
    y = y * x + 1.4249322787e-1f;
    y = y * x + -1.6668057665e-1f;
    y = y * x + 2.0000714765e-1f;
    y = y * x + -2.4999993993e-1f;
    y = y * x + 3.3333331174e-1f;
    y = y * x * xx - 0.5f * xx;
    const float radius = std::sqrt(-2.0f * ((x + y) + e * 0.6931471805599453f));
    const uint32_t quarter = (b + (1u << 29)) >> 30;
    const float t = float(int32_t(b - (quarter << 30))) * 1.4629180792671596e-9f;  // 2 pi 2^-32
    const float tt = t * t;
    const float s = ((-1.9515295891e-4f * tt + 8.3321608736e-3f) * tt + -1.6666654611e-1f) * tt * t + t;
    const float c =
        ((2.443315711809948e-5f * tt + -1.388731625493765e-3f) * tt + 4.166664568298827e-2f) * tt * tt
        - 0.5f * tt + 1.0f;
    const uint32_t swapped = (bits(s) ^ bits(c)) & (0u - (quarter & 1));  // without a branch
    *first = radius * number(bits(c) ^ swapped ^ (((quarter + 1) & 2) << 30));
    *second = radius * number(bits(s) ^ swapped ^ ((quarter & 2) << 30));
}

INLINE void normals(uint64_t block, Address a, float z[RUN]) {
    uint32_t x[RUN];
    words(block, a, x);
    for (int i = 0; i < RUN; i += BLOCK) {
        const uint32_t *w = x + i;
        float *out = z + i;
#pragma GCC ivdep
        for (int lane = 0; lane < LANES; lane++) {
            pair(w[lane], w[LANES + lane], out + lane, out + LANES + lane);
            pair(w[2 * LANES + lane], w[3 * LANES + lane], out + 2 * LANES + lane,
                 out + 3 * LANES + lane);
        }
    }
}

constexpr int SIGNS_OF_WORD = 16, SIGNS_OF_RUN = RUN * SIGNS_OF_WORD;

// Sign e is bit e % 16 of the upper half of word e / 16: set is -1. The sixteen of a word are one
// vector (left to itself the compiler takes a bit of sixteen words, and scatters them).
typedef uint32_t Sixteen __attribute__((vector_size(4 * SIGNS_OF_WORD)));

INLINE void signs(uint64_t block, Address a, float z[SIGNS_OF_RUN]) {
    constexpr Sixteen up = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};
    uint32_t x[RUN];
    words(block, a, x);
    for (int k = 0; k < RUN; k++) {
        const Sixteen own = ((Sixteen{} + x[k]) << up & 0x80000000u) | 0x3F800000u;
        std::memcpy(z + k * SIGNS_OF_WORD, &own, sizeof own);
    }
}

// out[i] = keep * base[i] + scale * z(start + i) for i in [0, n), or scale * z without a base; with
// `random`, the address of 16 bits for each element, rounded stochastically. z is normal, or a sign.
template <bool SIGNS, class T>
INLINE void add(T *out, const T *base, int64_t n, uint64_t start, Address a, float keep, float scale,
                const Address *random) {
    constexpr int SIZE = SIGNS ? SIGNS_OF_RUN : RUN;
    float z[SIZE];
    uint32_t x[RUN];
    for (int64_t i = 0; i < n;) {
        const uint64_t element = start + uint64_t(i);
        const int64_t from = int64_t(element % SIZE);
        const int64_t count = n - i < SIZE - from ? n - i : SIZE - from;
        const uint64_t block = element / SIZE * (RUN / BLOCK);
        if constexpr (SIGNS) signs(block, a, z); else normals(block, a, z);
        if (random != nullptr) {
            for (int64_t j = 0; j < count; j++) {
                const uint64_t place = element + uint64_t(j);
                if (j == 0 || place % RUN == 0) words(place / RUN * (RUN / BLOCK), *random, x);
                const float own = base == nullptr ? 0.0f : keep * load(base[i + j]);
                store(out + i + j, own + scale * z[from + j], x[place % RUN] >> 16);
            }
        } else if (base == nullptr) {
            for (int64_t j = 0; j < count; j++) store(out + i + j, scale * z[from + j]);
        } else if (count == SIZE) {
            for (int j = 0; j < SIZE; j++)
                store(out + i + j, keep * load(base[i + j]) + scale * z[j]);
        } else {
            for (int64_t j = 0; j < count; j++)
                store(out + i + j, keep * load(base[i + j]) + scale * z[from + j]);
        }
        i += count;
    }
}

WIDE void add_normals(float *out, const float *base, int64_t n, uint64_t start, Address a,
                      float keep, float scale, const Address *) {
    add<false>(out, base, n, start, a, keep, scale, nullptr);
}

WIDE void add_signs(float *out, const float *base, int64_t n, uint64_t start, Address a, float keep,
                    float scale, const Address *) {
    add<true>(out, base, n, start, a, keep, scale, nullptr);
}

WIDE void add_normals(BFloat16 *out, const BFloat16 *base, int64_t n, uint64_t start, Address a,
                      float keep, float scale, const Address *random) {
    add<false>(out, base, n, start, a, keep, scale, random);
}

WIDE void add_signs(BFloat16 *out, const BFloat16 *base, int64_t n, uint64_t start, Address a,
                    float keep, float scale, const Address *random) {
    add<true>(out, base, n, start, a, keep, scale, random);
}

WIDE void sixteen_bits(int32_t *out, int64_t n, uint64_t start, Address a) {
    uint32_t x[RUN];
    for (int64_t i = 0; i < n;) {
        const uint64_t element = start + uint64_t(i);
        const int64_t from = int64_t(element % RUN);
        const int64_t count = n - i < RUN - from ? n - i : RUN - from;
        words(element / RUN * (RUN / BLOCK), a, x);
        for (int64_t j = 0; j < count; j++) out[i + j] = int32_t(x[from + j] >> 16);
        i += count;
    }
}

template <class T>
void fill(T *out, const T *base, int64_t n, uint64_t start, Address a, float keep, float scale,
          const Address *random, int of_signs, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n > SLICE)
    for (int64_t i = 0; i < n; i += SLICE) {
        const T *own = base ? base + i : nullptr;
        const int64_t count = n - i < SLICE ? n - i : SLICE;
        if (of_signs) add_signs(out + i, own, count, start + uint64_t(i), a, keep, scale, random);
        else add_normals(out + i, own, count, start + uint64_t(i), a, keep, scale, random);
    }
}

// Row t of out: the row rows[t] of base plus scale times the same row of the noise.
template <class T>
void fill_rows(T *out, const T *base, const int64_t *rows, int64_t n, int64_t width, Address a,
               float scale, int of_signs, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * width > SLICE)
    for (int64_t t = 0; t < n; t++) {
        const T *own = base ? base + rows[t] * width : nullptr;
        const uint64_t start = uint64_t(rows[t]) * uint64_t(width);
        if (of_signs) add_signs(out + t * width, own, width, start, a, 1.0f, scale, nullptr);
        else add_normals(out + t * width, own, width, start, a, 1.0f, scale, nullptr);
    }
}

}  // namespace

extern "C" {

void agzo_fill(float *out, const float *base, int64_t n, uint64_t start, uint32_t key0,
               uint32_t key1, float keep, float scale, int of_signs, int threads) {
    fill(out, base, n, start, Address{key0, key1, 0, 0}, keep, scale, nullptr, of_signs, threads);
}

void agzo_fill_bfloat16(BFloat16 *out, const BFloat16 *base, int64_t n, uint64_t start,
                        uint32_t key0, uint32_t key1, float keep, float scale, int stochastic,
                        uint32_t random0, uint32_t random1, int of_signs, int threads) {
    const Address random{random0, random1, 0, 0};
    fill(out, base, n, start, Address{key0, key1, 0, 0}, keep, scale,
         stochastic ? &random : nullptr, of_signs, threads);
}

void agzo_fill_rows(float *out, const float *base, const int64_t *rows, int64_t n, int64_t width,
                    uint32_t key0, uint32_t key1, float scale, int of_signs, int threads) {
    fill_rows(out, base, rows, n, width, Address{key0, key1, 0, 0}, scale, of_signs, threads);
}

void agzo_fill_rows_bfloat16(BFloat16 *out, const BFloat16 *base, const int64_t *rows, int64_t n,
                             int64_t width, uint32_t key0, uint32_t key1, float scale,
                             int of_signs, int threads) {
    fill_rows(out, base, rows, n, width, Address{key0, key1, 0, 0}, scale, of_signs, threads);
}

// out[e, c, p]: element p of the streams (row e, column c).
void agzo_normal_table(float *out, int64_t examples, int64_t columns, int64_t positions,
                       uint32_t key0, uint32_t key1, int threads) {
#pragma omp parallel for num_threads(threads) if (examples * columns * positions > SLICE)
    for (int64_t i = 0; i < examples * columns; i++)
        add_normals(out + i * positions, static_cast<const float *>(nullptr), positions, 0,
                    Address{key0, key1, uint32_t(i / columns), uint32_t(i % columns)}, 1.0f, 1.0f,
                    nullptr);
}

void agzo_bits(int32_t *out, int64_t n, uint64_t start, uint32_t key0, uint32_t key1, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n > SLICE)
    for (int64_t i = 0; i < n; i += SLICE)
        sixteen_bits(out + i, n - i < SLICE ? n - i : SLICE, start + uint64_t(i),
                     Address{key0, key1, 0, 0});
}

}  // extern "C"
