/* logprob.cu - log-probabilities and their gradient from a chunk of logits: a block
 * per row, three passes over the row (largest; sums; gradient). A chunk of 1,024
 * rows of 32,000 logits is 131 MB: the passes after the first run from memory on
 * every GPU, 3 reads and 1 write. */
#include "cuda.cuh"

enum { LOGPROB_THREADS = 512 };

struct best {
    float value;
    int index;
};

__device__ static inline best better(best a, best b)
{
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

/* The largest logit of the row, the lowest index winning a tie; every thread gets it. */
__device__ static inline best block_best(best v)
{
    SHARED(float, value, [32]);
    SHARED(int, index, [32]);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;

    for (int o = 16; o; o >>= 1) {
        best other = {__shfl_xor_sync(0xffffffffu, v.value, o),
                      __shfl_xor_sync(0xffffffffu, v.index, o)};
        v = better(v, other);
    }
    if (lane == 0) {
        value[warp] = v.value;
        index[warp] = v.index;
    }
    __syncthreads();
    v = {value[0], index[0]};
    for (int w = 1; w < warps; w++)
        v = better(v, {value[w], index[w]});
    __syncthreads();
    return v;
}

template <class G>
__global__ void __launch_bounds__(LOGPROB_THREADS)
    logprob_rows(float *z, int64_t ld, int cols, const int32_t *target, float *lse, float *logp,
                 float *sum_z, float *sum_pz, float *lse2, int32_t *hit, bool grad)
{
    float *row = z + (size_t)blockIdx.x * ld;
    const int t = target[blockIdx.x];
    best top = {-INFINITY, 0x7fffffff};
    float e1 = 0.0f, e2 = 0.0f, s = 0.0f, ez = 0.0f;

    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        top = better(top, {row[c], c});
    top = block_best(top);
    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        const float v = row[c], e = expf(v - top.value);
        e1 += e;
        e2 += e * e;
        s += v;
        ez += e * v;
    }
    e1 = block_sum(e1);
    e2 = block_sum(e2);
    s = block_sum(s);
    ez = block_sum(ez);
    const bool known = t >= 0 && t < cols;
    const float l = top.value + logf(e1), zt = known ? row[t] : NAN;
    if (threadIdx.x == 0) {
        if (lse)
            lse[blockIdx.x] = l;
        if (logp)
            logp[blockIdx.x] = zt - l;
        if (sum_z)
            sum_z[blockIdx.x] = s;
        if (sum_pz)
            sum_pz[blockIdx.x] = ez / e1;
        if (lse2)
            lse2[blockIdx.x] = 2.0f * top.value + logf(e2);
        if (hit)
            hit[blockIdx.x] = top.index == t;
    }
    if (!grad)
        return;
    /* A narrower gradient lands in the first half of the row: a slice is read by
     * all before any of it is written, and writes never pass what has been read. */
    G *out = reinterpret_cast<G *>(row);
    __syncthreads();
    for (int c0 = 0; c0 < cols; c0 += blockDim.x) {
        const int c = c0 + threadIdx.x;
        const float v = c < cols ? (c == t ? 1.0f : 0.0f) - expf(row[c] - l) : 0.0f;
        __syncthreads();
        if (c < cols)
            out[c] = fromf<G>(v);
    }
}

template <class G> static void launch(kn_ctx *ctx, const kn_logprob *a)
{
    LAUNCH(logprob_rows<G>, (unsigned)a->z.rows, LOGPROB_THREADS, 0, ctx->stream, (float *)a->z.p,
           a->z.ld, (int)a->z.cols, a->target, a->lse, a->logp, a->sum_z, a->sum_pz, a->lse2,
           a->hit, a->grad);
}

int cuda_logprob(kn_ctx *ctx, const kn_logprob *a)
{
    const int r = kn_check_logprob(a);

    if (r)
        return r < 0 ? r : 0;
    if (a->grad_dtype == KN_BF16)
        launch<bf16_t>(ctx, a);
    else
        launch<float>(ctx, a);
    return cuda_launched();
}
