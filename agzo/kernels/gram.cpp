// y = (X^T X) q for a few q, reading X once: the twin of gram.py, which reads it twice. Each token's
// row meets q and is added to y while it is in the first cache. Tokens are summed in parts, and these
// in their order, so the bits depend neither on threads nor on vector width. With one q all steps of a
// power iteration are made here, of a float32 or bfloat16 X.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "values.h"
#include "wide.h"

namespace {

constexpr int64_t LEAST = 128;  // tokens in a part that is summed alone
constexpr int64_t PARTS = 64;   // that there are at most: each has a sum of its own
constexpr int LANES = 16;       // sums that a product with q is made in
constexpr int TOKENS = 4;       // rows that are added to y together

template <class T>
INLINE float dot(const float *q, const T *x, int64_t n) {
    float lane[LANES] = {};
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] = __builtin_fmaf(q[j + l], load(x[j + l]), lane[l]);
    for (int l = 0; j + l < n; l++) lane[l] = __builtin_fmaf(q[j + l], load(x[j + l]), lane[l]);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

template <class T>
INLINE void add(float *y, const T *x, const float *c, int64_t n) {
    const T *x1 = x + n, *x2 = x1 + n, *x3 = x2 + n;
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) {
        float sum = __builtin_fmaf(c[0], load(x[j]), y[j]);
        sum = __builtin_fmaf(c[1], load(x1[j]), sum);
        sum = __builtin_fmaf(c[2], load(x2[j]), sum);
        y[j] = __builtin_fmaf(c[3], load(x3[j]), sum);
    }
}

template <class T>
INLINE void add_one(float *y, const T *x, float c, int64_t n) {
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) y[j] = __builtin_fmaf(c, load(x[j]), y[j]);
}

// y (r, n) += sum over tokens of (q x) x, of those that keep has (all where it is null); where
// `drawn` (tokens) is given, of drawn x instead, with r = 1.
template <class T>
INLINE void sum(float *y, const T *x, const float *q, const float *drawn, const uint8_t *keep,
                int64_t tokens, int64_t n, int r) {
    for (int64_t t = 0; t < tokens; t += TOKENS) {
        const int count = int(std::min<int64_t>(TOKENS, tokens - t));
        const T *rows = x + t * n;
        for (int k = 0; k < r; k++) {
            float c[TOKENS] = {};
            for (int i = 0; i < count; i++)
                if (!keep || keep[t + i]) c[i] = drawn ? drawn[t + i] : dot(q + k * n, rows + i * n, n);
            if (count == TOKENS)
                add(y + k * n, rows, c, n);
            else
                for (int i = 0; i < count; i++) add_one(y + k * n, rows + i * n, c[i], n);
        }
    }
}

WIDE void part(float *y, const float *x, const float *q, const float *drawn, const uint8_t *keep,
               int64_t tokens, int64_t n, int r) {
    sum(y, x, q, drawn, keep, tokens, n, r);
}

WIDE void part(float *y, const BFloat16 *x, const float *q, const float *drawn, const uint8_t *keep,
               int64_t tokens, int64_t n, int r) {
    sum(y, x, q, drawn, keep, tokens, n, r);
}

// y = the sum over all of m tokens, see `sum`; `sums` is memory for the parts.
template <class T>
void whole(float *y, const T *x, const float *q, const float *drawn, const uint8_t *keep, int64_t m,
           int64_t n, int r, int threads, std::vector<float> &sums) {
    const int64_t each = std::max(LEAST, (m + PARTS - 1) / PARTS), size = r * n;
    const int64_t parts = std::max<int64_t>(1, (m + each - 1) / each);  // an expert may see no token
    sums.assign(size_t(parts * size), 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static) if (m * n > (1 << 16))
    for (int64_t p = 0; p < parts; p++)
        part(sums.data() + p * size, x + p * each * n, q, drawn ? drawn + p * each : nullptr,
             keep ? keep + p * each : nullptr, std::min(each, m - p * each), n, r);
    std::copy(sums.begin(), sums.begin() + size, y);
    for (int64_t p = 1; p < parts; p++)
        for (int64_t j = 0; j < size; j++) y[j] += sums[size_t(p * size + j)];
}

// y = y / (its length), with the sign of LAPACK's QR of one column; the first axis if y has no other.
WIDE void normalise(float *y, int64_t n) {
    double lane[LANES] = {};
    int64_t j = 1;
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += double(y[j + l]) * double(y[j + l]);
    for (int l = 0; j + l < n; l++) lane[l] += double(y[j + l]) * double(y[j + l]);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    if (lane[0] == 0.0) {
        y[0] = 1.0f;
        return;
    }
    const double length = std::sqrt(lane[0] + double(y[0]) * double(y[0]));
    const double signed_length = -std::copysign(length, double(y[0]));
    for (int64_t i = 0; i < n; i++) y[i] = float(double(y[i]) / signed_length);
}

template <class T>
void power(float *y, const T *x, const float *drawn, const uint8_t *keep, int64_t m, int64_t n,
           int steps, int threads) {
    std::vector<float> sums, q(static_cast<size_t>(n));
    if (drawn) whole(y, x, nullptr, drawn, keep, m, n, 1, threads, sums);
    normalise(y, n);
    for (int step = 0; step < steps; step++) {
        std::copy(y, y + n, q.begin());
        whole(y, x, q.data(), nullptr, keep, m, n, 1, threads, sums);
        normalise(y, n);
    }
}

}  // namespace

extern "C" {

void agzo_gram(float *y, const float *x, const float *q, const uint8_t *keep, int64_t m, int64_t n,
               int r, int threads) {
    std::vector<float> sums;
    whole(y, x, q, nullptr, keep, m, n, r, threads, sums);
}

// y (n) = what `steps` power iterations make of X^T drawn, or of y as it is where drawn is null.
void agzo_power(float *y, const float *x, const float *drawn, const uint8_t *keep, int64_t m,
                int64_t n, int steps, int threads) {
    power(y, x, drawn, keep, m, n, steps, threads);
}

void agzo_power_bfloat16(float *y, const BFloat16 *x, const float *drawn, const uint8_t *keep,
                         int64_t m, int64_t n, int steps, int threads) {
    power(y, x, drawn, keep, m, n, steps, threads);
}

}  // extern "C"
