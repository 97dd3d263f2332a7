/* logprob.cu - log-probabilities and their gradient from a chunk of logits: a block
 * per row, two passes over it: the largest logit and the sums against it in one
 * (scaled anew when a larger one comes), then the gradient. A chunk of 1,024 rows of
 * 32,000 logits is 131 MB: 2 reads from memory, and half a write in bf16. */
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

/* What a part of a row has shown: its largest logit, and sums of exp(z - that), of its
 * square, of z and of z exp(z - that). */
struct seen {
    best top;
    float e1, e2, s, ez;
};

__device__ static inline seen scaled(seen v, float top)
{
    const float f = v.top.value == -INFINITY ? 0.0f : expf(v.top.value - top);

    v.e1 *= f;
    v.e2 *= f * f;
    v.ez *= f;
    return v;
}

__device__ static inline seen both(seen a, seen b)
{
    const best top = better(a.top, b.top);

    a = scaled(a, top.value);
    b = scaled(b, top.value);
    return {top, a.e1 + b.e1, a.e2 + b.e2, a.s + b.s, a.ez + b.ez};
}

__device__ static inline seen from_lane(seen v, int o)
{
    const unsigned all = 0xffffffffu;

    return {{__shfl_xor_sync(all, v.top.value, o), __shfl_xor_sync(all, v.top.index, o)},
            __shfl_xor_sync(all, v.e1, o),
            __shfl_xor_sync(all, v.e2, o),
            __shfl_xor_sync(all, v.s, o),
            __shfl_xor_sync(all, v.ez, o)};
}

/* Of the whole row; every thread gets it. The order of the sums is fixed. */
__device__ static inline seen block_seen(seen v)
{
    SHARED(seen, part, [32]);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;

    for (int o = 16; o; o >>= 1) /* lane 0's order */
        v = both(v, from_lane(v, o));
    if (lane == 0)
        part[warp] = v;
    __syncthreads();
    v = part[0];
    for (int w = 1; w < warps; w++)
        v = both(v, part[w]);
    return v;
}

/* Four logits from column c on, `have` of them there. */
__device__ static inline seen add_four(seen v, const float *row, int c, int have, bool whole)
{
    vec4 z;

    if (have == 4)
        z = load4(row + c, whole);
    else
        for (int e = 0; e < have; e++)
            z.v[e] = row[c + e];
    best top = v.top;
    for (int e = 0; e < have; e++)
        top = better(top, {z.v[e], c + e});
    if (top.value > v.top.value)
        v = scaled(v, top.value);
    v.top = top;
    for (int e = 0; e < have; e++) {
        const float x = expf(z.v[e] - top.value);
        v.e1 += x;
        v.e2 += x * x;
        v.s += z.v[e];
        v.ez += x * z.v[e];
    }
    return v;
}

/* Four elements at their own four's alignment: 16 bytes, or 8 in bf16. */
__device__ static inline void put_four(float *to, const float *g)
{
    *(float4 *)to = make_float4(g[0], g[1], g[2], g[3]);
}
__device__ static inline void put_four(bf16_t *to, const bf16_t *g)
{
    uint2 u;

    memcpy(&u, g, sizeof u);
    *(uint2 *)to = u;
}

template <class G>
__global__ void __launch_bounds__(LOGPROB_THREADS)
    logprob_rows(float *z, int64_t ld, int cols, bool whole, const int32_t *target, float *lse,
                 float *logp, float *sum_z, float *sum_pz, float *lse2, int32_t *hit, bool grad)
{
    float *row = z + (size_t)blockIdx.x * ld;
    const int t = target[blockIdx.x];
    seen v = {{-INFINITY, 0x7fffffff}, 0.0f, 0.0f, 0.0f, 0.0f};

    for (int c = threadIdx.x * 4; c < cols; c += blockDim.x * 4)
        v = add_four(v, row, c, min(4, cols - c), whole);
    v = block_seen(v);
    const bool known = t >= 0 && t < cols;
    const float l = v.top.value + logf(v.e1), zt = known ? row[t] : NAN;
    if (threadIdx.x == 0) {
        if (lse)
            lse[blockIdx.x] = l;
        if (logp)
            logp[blockIdx.x] = zt - l;
        if (sum_z)
            sum_z[blockIdx.x] = v.s;
        if (sum_pz)
            sum_pz[blockIdx.x] = v.ez / v.e1;
        if (lse2)
            lse2[blockIdx.x] = 2.0f * v.top.value + logf(v.e2);
        if (hit)
            hit[blockIdx.x] = v.top.index == t;
    }
    if (!grad)
        return;
    /* A narrower gradient lands in the first half of the row: a slice is read by
     * all before any of it is written, and writes never pass what has been read. */
    G *out = reinterpret_cast<G *>(row);
    __syncthreads();
    for (int c0 = 0; c0 < cols; c0 += blockDim.x * 4) {
        const int c = c0 + threadIdx.x * 4, have = min(4, cols - c);
        G g[4];
        if (have == 4) {
            const vec4 x = load4(row + c, whole);
            for (int e = 0; e < 4; e++)
                g[e] = fromf<G>((c + e == t ? 1.0f : 0.0f) - expf(x.v[e] - l));
        } else {
            for (int e = 0; e < have; e++)
                g[e] = fromf<G>((c + e == t ? 1.0f : 0.0f) - expf(row[c + e] - l));
        }
        __syncthreads();
        if (have == 4 && whole)
            put_four(out + c, g);
        else
            for (int e = 0; e < have; e++)
                out[c + e] = g[e];
    }
}

template <class G> static void launch(kn_ctx *ctx, const kn_logprob *a)
{
    LAUNCH(logprob_rows<G>, (unsigned)a->z.rows, LOGPROB_THREADS, 0, ctx->stream, (float *)a->z.p,
           a->z.ld, (int)a->z.cols, (uintptr_t)a->z.p % 16 == 0 && a->z.ld % 4 == 0, a->target,
           a->lse, a->logp, a->sum_z, a->sum_pz, a->lse2, a->hit, a->grad);
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
