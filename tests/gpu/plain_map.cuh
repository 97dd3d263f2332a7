/* plain_map.cuh - one step over a matrix, a kernel of its own: what plain.cu's operations are
 * made of. Included by plain.cu alone. */
#ifndef TESTS_GPU_PLAIN_MAP_CUH
#define TESTS_GPU_PLAIN_MAP_CUH

#include "cuda.cuh"

enum { PLAIN_THREADS = 256, SCRATCHES = 6 };

/* y[row][c] = f(a, b, row, c), where a and b are the elements of two matrices. */
template <class T, class F>
__global__ void __launch_bounds__(PLAIN_THREADS)
    map_rows(T *y, int64_t ldy, const T *a, int64_t lda, const T *b, int64_t ldb, int cols,
             int eights, F f)
{
    const int64_t row = blockIdx.x;
    const T *ar = a + row * lda, *br = b + row * ldb;
    T *yr = y + row * ldy;

    for (int c = threadIdx.x * 8; c < eights; c += blockDim.x * 8) {
        vec8<T> va = load8(ar + c), vb = load8(br + c);
        for (int e = 0; e < 8; e++)
            va.v[e] = fromf<T>(f(tof(va.v[e]), tof(vb.v[e]), row, c + e));
        store8(yr + c, va);
    }
    for (int c = eights + threadIdx.x; c < cols; c += blockDim.x)
        yr[c] = fromf<T>(f(tof(ar[c]), tof(br[c]), row, c));
}

/* f added up over the row, then finish(sum, row): a block per row. */
template <class T, class F, class G>
__global__ void __launch_bounds__(PLAIN_THREADS)
    sum_rows(const T *a, int64_t lda, const T *b, int64_t ldb, int cols, F f, G finish)
{
    const int64_t row = blockIdx.x;
    float sum = 0.0f;

    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        sum += f(tof(a[row * lda + c]), tof(b[row * ldb + c]), row, c);
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        finish(sum, row);
}

/* The steps. */
struct add_of {
    __device__ float operator()(float a, float b, int64_t, int) const { return a + b; }
};
struct product_of {
    __device__ float operator()(float a, float b, int64_t, int) const { return a * b; }
};
struct first_of { /* a copy */
    __device__ float operator()(float a, float, int64_t, int) const { return a; }
};

namespace
{
cuda_buffer scratch[SCRATCHES];
template <class T> struct rows_at {
    T *p;
    int64_t ld;
};

template <class T> rows_at<T> rows_of(const kn_mat &m)
{
    return {(T *)m.p, m.ld};
}

template <class T> T *take(int which, int64_t elements, int *r)
{
    if (!*r)
        *r = cuda_reserve(&scratch[which], (size_t)elements * sizeof(T));
    return (T *)scratch[which].p;
}

template <class T, class F>
void map(kn_ctx *ctx, int64_t rows, int64_t cols, rows_at<T> y, rows_at<T> a, rows_at<T> b, F f)
{
    const int eights =
        cuda_eights(cols, {{y.p, y.ld, sizeof(T)}, {a.p, a.ld, sizeof(T)}, {b.p, b.ld, sizeof(T)}});

    if (rows > 0)
        LAUNCH((map_rows<T, F>), (unsigned)rows, PLAIN_THREADS, 0, ctx->stream, y.p, y.ld,
               (const T *)a.p, a.ld, (const T *)b.p, b.ld, (int)cols, eights, f);
}
} // namespace

#endif
