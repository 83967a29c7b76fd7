// y = (X^T X) q for a few q, reading X once: the twin of gram.py, which reads it twice. Each token's
// row meets q and is added to y while it is in the first cache. Tokens are summed in parts, and these
// in their order, so the bits depend neither on threads nor on vector width.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "wide.h"

namespace {

constexpr int64_t LEAST = 128;  // tokens in a part that is summed alone
constexpr int64_t PARTS = 64;   // that there are at most: each has a sum of its own
constexpr int LANES = 16;       // sums that a product with q is made in
constexpr int TOKENS = 4;       // rows that are added to y together

INLINE float dot(const float *q, const float *x, int64_t n) {
    float lane[LANES] = {};
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] = __builtin_fmaf(q[j + l], x[j + l], lane[l]);
    for (int l = 0; j + l < n; l++) lane[l] = __builtin_fmaf(q[j + l], x[j + l], lane[l]);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

INLINE void add(float *y, const float *x, const float *c, int64_t n) {
    const float *x1 = x + n, *x2 = x1 + n, *x3 = x2 + n;
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) {
        float sum = __builtin_fmaf(c[0], x[j], y[j]);
        sum = __builtin_fmaf(c[1], x1[j], sum);
        sum = __builtin_fmaf(c[2], x2[j], sum);
        y[j] = __builtin_fmaf(c[3], x3[j], sum);
    }
}

INLINE void add_one(float *y, const float *x, float c, int64_t n) {
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) y[j] = __builtin_fmaf(c, x[j], y[j]);
}

// y (r, n) += sum over tokens of (q x) x, of those that keep has (all where it is null).
WIDE void part(float *y, const float *x, const float *q, const uint8_t *keep, int64_t tokens, int64_t n,
               int r) {
    for (int64_t t = 0; t < tokens; t += TOKENS) {
        const int count = int(std::min<int64_t>(TOKENS, tokens - t));
        const float *rows = x + t * n;
        for (int k = 0; k < r; k++) {
            float c[TOKENS] = {};
            for (int i = 0; i < count; i++)
                if (!keep || keep[t + i]) c[i] = dot(q + k * n, rows + i * n, n);
            if (count == TOKENS)
                add(y + k * n, rows, c, n);
            else
                for (int i = 0; i < count; i++) add_one(y + k * n, rows + i * n, c[i], n);
        }
    }
}

}  // namespace

extern "C" void agzo_gram(float *y, const float *x, const float *q, const uint8_t *keep, int64_t m,
                          int64_t n, int r, int threads) {
    const int64_t each = std::max(LEAST, (m + PARTS - 1) / PARTS), size = r * n;
    const int64_t parts = std::max<int64_t>(1, (m + each - 1) / each);  // an expert may see no token
    std::vector<float> sums(size_t(parts * size), 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static) if (m * n > (1 << 16))
    for (int64_t p = 0; p < parts; p++)
        part(sums.data() + p * size, x + p * each * n, q, keep ? keep + p * each : nullptr,
             std::min(each, m - p * each), n, r);
    std::copy(sums.begin(), sums.begin() + size, y);
    for (int64_t p = 1; p < parts; p++)
        for (int64_t j = 0; j < size; j++) y[j] += sums[size_t(p * size + j)];
}
