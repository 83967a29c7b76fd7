// y += scale (x right^T) left: a low-rank perturbation beside a linear layer's output, each token's
// row in one pass. Sums are made in float32, in lanes whose number no vector width changes, so the
// bits are the same everywhere; a bfloat16 y is rounded once.

#include <cstdint>

#include "values.h"
#include "wide.h"

namespace {

constexpr int LANES = 32;
constexpr int64_t SLICE = 1 << 14;  // values below which a thread is not worth starting

template <int R, class T>
INLINE void add(T *y, const T *x, const float *right, const float *left, int64_t width,
                int64_t height, float scale) {
    float lane[R][LANES] = {}, own[R];
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES)
        for (int l = 0; l < LANES; l++) {
            const float value = load(x[j + l]);
            for (int k = 0; k < R; k++)
                lane[k][l] = __builtin_fmaf(value, right[k * width + j + l], lane[k][l]);
        }
    for (int l = 0; j + l < width; l++)
        for (int k = 0; k < R; k++)
            lane[k][l] = __builtin_fmaf(load(x[j + l]), right[k * width + j + l], lane[k][l]);
    for (int k = 0; k < R; k++) {
        for (int half = LANES / 2; half > 0; half /= 2)
            for (int l = 0; l < half; l++) lane[k][l] += lane[k][l + half];
        own[k] = lane[k][0] * scale;
    }
#pragma GCC ivdep
    for (int64_t i = 0; i < height; i++) {
        float sum = own[0] * left[i];
        for (int k = 1; k < R; k++) sum = __builtin_fmaf(own[k], left[k * height + i], sum);
        store(y + i, load(y[i]) + sum);
    }
}

template <class T>
INLINE void any(T *y, const T *x, const float *right, const float *left, int64_t width,
                int64_t height, int r, float scale) {
    switch (r) {
        case 1: add<1>(y, x, right, left, width, height, scale); break;
        case 2: add<2>(y, x, right, left, width, height, scale); break;
        case 3: add<3>(y, x, right, left, width, height, scale); break;
        default: add<4>(y, x, right, left, width, height, scale);
    }
}

WIDE void token(float *y, const float *x, const float *right, const float *left, int64_t width,
                int64_t height, int r, float scale) {
    any(y, x, right, left, width, height, r, scale);
}

WIDE void token(BFloat16 *y, const BFloat16 *x, const float *right, const float *left,
                int64_t width, int64_t height, int r, float scale) {
    any(y, x, right, left, width, height, r, scale);
}

template <class T>
void all(T *y, const T *x, const float *right, const float *left, int64_t tokens, int64_t width,
         int64_t height, int r, float scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (tokens * (width + height) > SLICE)
    for (int64_t t = 0; t < tokens; t++)
        token(y + t * height, x + t * width, right, left, width, height, r, scale);
}

}  // namespace

extern "C" {

void agzo_branch(float *y, const float *x, const float *right, const float *left, int64_t tokens,
                 int64_t width, int64_t height, int r, float scale, int threads) {
    all(y, x, right, left, tokens, width, height, r, scale, threads);
}

void agzo_branch_bfloat16(BFloat16 *y, const BFloat16 *x, const float *right, const float *left,
                          int64_t tokens, int64_t width, int64_t height, int r, float scale,
                          int threads) {
    all(y, x, right, left, tokens, width, height, r, scale, threads);
}

}  // extern "C"
