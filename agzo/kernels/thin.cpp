// y += left^T right with factors of a few rows, in one pass over y: the twin of thin.py, which takes
// a pass a row. Products are added by fused multiply-adds, as torch's addcmul_ adds them with AVX2, so
// the bits are the same there; only processors without such an instruction (before 2013) are slow.
// A bfloat16 y is summed in float32 and rounded once.

#include <cstdint>

#include "values.h"
#include "wide.h"

namespace {

constexpr int64_t SLICE = 1 << 14;  // values below which a thread is not worth starting

template <int R>
INLINE void add(float *y, const float *a, int64_t step, const float *right, int64_t n) {
    float own[R];
    for (int k = 0; k < R; k++) own[k] = a[k * step];
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) {
        float sum = y[j];
        for (int k = 0; k < R; k++) sum = __builtin_fmaf(own[k], right[k * n + j], sum);
        y[j] = sum;
    }
}

// y = keep y + scale (left^T right)
template <int R>
INLINE void add(BFloat16 *y, const float *a, int64_t step, const float *right, int64_t n, float keep,
                float scale) {
    float own[R];
    for (int k = 0; k < R; k++) own[k] = a[k * step];
#pragma GCC ivdep
    for (int64_t j = 0; j < n; j++) {
        float sum = own[0] * right[j];
        for (int k = 1; k < R; k++) sum = __builtin_fmaf(own[k], right[k * n + j], sum);
        store(y + j, sum * scale + load(y[j]) * keep);
    }
}

WIDE void add_row(float *y, const float *a, int64_t step, const float *right, int64_t n, int r) {
    switch (r) {
        case 1: add<1>(y, a, step, right, n); break;
        case 2: add<2>(y, a, step, right, n); break;
        case 3: add<3>(y, a, step, right, n); break;
        default: add<4>(y, a, step, right, n);
    }
}

WIDE void add_row(BFloat16 *y, const float *a, int64_t step, const float *right, int64_t n, int r,
                  float keep, float scale) {
    switch (r) {
        case 1: add<1>(y, a, step, right, n, keep, scale); break;
        case 2: add<2>(y, a, step, right, n, keep, scale); break;
        case 3: add<3>(y, a, step, right, n, keep, scale); break;
        default: add<4>(y, a, step, right, n, keep, scale);
    }
}

}  // namespace

extern "C" {

void agzo_add_thin(float *y, const float *left, const float *right, int64_t m, int64_t n, int r,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (m * n > SLICE)
    for (int64_t i = 0; i < m; i++) add_row(y + i * n, left + i, m, right, n, r);
}

// y = keep y + scale left^T right, the factors in float32.
void agzo_add_thin_bfloat16(BFloat16 *y, const float *left, const float *right, int64_t m, int64_t n,
                            int r, float keep, float scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (m * n > SLICE)
    for (int64_t i = 0; i < m; i++)
        add_row(y + i * n, left + i, m, right, n, r, keep, scale);
}

}  // extern "C"
