/* plain_logprob.cuh - log-softmax written out, then read by each of its users. Included by
 * plain.cu. */
#ifndef TESTS_GPU_PLAIN_LOGPROB_CUH
#define TESTS_GPU_PLAIN_LOGPROB_CUH

#include "plain_map.cuh"

namespace
{
__device__ float block_max(float v)
{
    SHARED(float, part, [32]);

    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = part[0];
    for (int w = 1; w < (int)blockDim.x / 32; w++)
        v = fmaxf(v, part[w]);
    return v;
}

/* Per row: the largest logit, and the lowest column that has it. */
__global__ void __launch_bounds__(PLAIN_THREADS)
    max_rows(const float *z, int64_t ld, int cols, float *top, int32_t *index)
{
    const float *row = z + (int64_t)blockIdx.x * ld;
    float best = -INFINITY, first = -INFINITY;

    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        best = fmaxf(best, row[c]);
    best = block_max(best);
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        if (row[c] == best)
            first = fmaxf(first, -(float)c); /* exact below 2^24 */
    first = block_max(first);
    if (threadIdx.x == 0) {
        top[blockIdx.x] = best;
        index[blockIdx.x] = (int32_t)-first;
    }
}

struct exp_of { /* exp(by (z - top)) */
    const float *top;
    float by;
    __device__ float operator()(float a, float, int64_t row, int) const
    {
        return expf(by * (a - top[row]));
    }
};
struct log_to {
    float *lse;
    const float *top;
    float by;
    __device__ void operator()(float sum, int64_t row) const
    {
        lse[row] = by * top[row] + logf(sum);
    }
};
struct sum_to {
    float *to;
    __device__ void operator()(float sum, int64_t row) const { to[row] = sum; }
};
struct minus_row_of {
    const float *by;
    __device__ float operator()(float a, float, int64_t row, int) const { return a - by[row]; }
};
struct p_times_of { /* a: log p, b: z */
    __device__ float operator()(float a, float b, int64_t, int) const { return expf(a) * b; }
};
struct onehot_minus_of { /* a: log p */
    const int32_t *target;
    __device__ float operator()(float a, float, int64_t row, int c) const
    {
        return (c == target[row] ? 1.0f : 0.0f) - expf(a);
    }
};

__global__ void pick_rows(const float *logp, int64_t ld, const int32_t *target,
                          const int32_t *index, float *ret_logp, int32_t *hit, int rows)
{
    const int row = (int)(blockIdx.x * blockDim.x + threadIdx.x);

    if (row >= rows)
        return;
    if (ret_logp)
        ret_logp[row] = logp[row * ld + target[row]];
    if (hit)
        hit[row] = index[row] == target[row];
}

template <class G> __global__ void narrow_rows(G *to, int64_t ldt, const float *from, int cols)
{
    const int64_t row = blockIdx.x;

    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        to[row * ldt + c] = fromf<G>(from[row * (int64_t)cols + c]);
}

template <class F, class G>
void sums(kn_ctx *ctx, int64_t rows, rows_at<float> a, rows_at<float> b, int cols, F f, G finish)
{
    LAUNCH((sum_rows<float, F, G>), (unsigned)rows, PLAIN_THREADS, 0, ctx->stream,
           (const float *)a.p, a.ld, (const float *)b.p, b.ld, cols, f, finish);
}

int logprob(kn_ctx *ctx, const kn_logprob *a)
{
    const int64_t rows = a->z.rows;
    const int cols = (int)a->z.cols;
    const rows_at<float> z = rows_of<float>(a->z);
    int r = 0;
    const rows_at<float> logp = {take<float>(0, rows * cols, &r), cols};
    float *top = take<float>(1, 2 * rows, &r), *lse = a->lse ? a->lse : top + rows;
    int32_t *index = take<int32_t>(2, rows, &r);

    if (r)
        return r;
    LAUNCH(max_rows, (unsigned)rows, PLAIN_THREADS, 0, ctx->stream, (const float *)z.p, z.ld, cols,
           top, index);
    sums(ctx, rows, z, z, cols, exp_of{top, 1.0f}, log_to{lse, top, 1.0f});
    map<float>(ctx, rows, cols, logp, z, z, minus_row_of{lse});
    LAUNCH(pick_rows, (unsigned)((rows + 127) / 128), 128, 0, ctx->stream, (const float *)logp.p,
           logp.ld, a->target, (const int32_t *)index, a->logp, a->hit, (int)rows);
    if (a->sum_z)
        sums(ctx, rows, z, z, cols, first_of(), sum_to{a->sum_z});
    if (a->sum_pz)
        sums(ctx, rows, logp, z, cols, p_times_of(), sum_to{a->sum_pz});
    if (a->lse2)
        sums(ctx, rows, z, z, cols, exp_of{top, 2.0f}, log_to{a->lse2, top, 2.0f});
    if (!a->grad)
        return cuda_launched();
    map<float>(ctx, rows, cols, logp, logp, logp, onehot_minus_of{a->target});
    if (a->grad_dtype == KN_BF16)
        LAUNCH(narrow_rows<bf16_t>, (unsigned)rows, PLAIN_THREADS, 0, ctx->stream, (bf16_t *)z.p,
               2 * z.ld, (const float *)logp.p, cols);
    else
        LAUNCH(narrow_rows<float>, (unsigned)rows, PLAIN_THREADS, 0, ctx->stream, z.p, z.ld,
               (const float *)logp.p, cols);
    return cuda_launched();
}
} // namespace

#endif
