/* adamw.cu - the gradient's norm and non-finite count in one sweep, then AdamW,
 * both over one flat buffer. 42 M parameters: 168 MB read by the sweep, 672 MB
 * read and 504 MB written by the update. */
#include "cuda.cuh"

enum { SWEEP_THREADS = 256, SWEEP_PER_BLOCK = SWEEP_THREADS * 32 };

struct sweep_part {
    double sum_sq;
    long long nonfinite;
};

__device__ static inline sweep_part block_add(sweep_part v)
{
    SHARED(sweep_part, part, [SWEEP_THREADS]);

    part[threadIdx.x] = v;
    for (int o = SWEEP_THREADS / 2; o; o >>= 1) {
        __syncthreads();
        if ((int)threadIdx.x < o) {
            part[threadIdx.x].sum_sq += part[threadIdx.x + o].sum_sq;
            part[threadIdx.x].nonfinite += part[threadIdx.x + o].nonfinite;
        }
    }
    __syncthreads();
    v = part[0];
    __syncthreads();
    return v;
}

/* Block b sums elements [b, b + 1) * SWEEP_PER_BLOCK: a tree fixed by n alone. */
__global__ void __launch_bounds__(SWEEP_THREADS)
    sweep_blocks(sweep_part *out, const float *g, int64_t n, bool whole)
{
    const int64_t from = (int64_t)blockIdx.x * SWEEP_PER_BLOCK;
    const int64_t to = from + SWEEP_PER_BLOCK < n ? from + SWEEP_PER_BLOCK : n;
    sweep_part v = {0.0, 0};

    /* Four at a time, whether or not they lie at 16 bytes: the order of the sum is the
     * same. */
    for (int64_t i = from + threadIdx.x * 4; i < to; i += SWEEP_THREADS * 4) {
        const int have = to - i < 4 ? (int)(to - i) : 4;
        vec4 x = {};
        if (have == 4)
            x = load4(g + i, whole);
        for (int e = 0; e < have; e++) {
            const float xe = have == 4 ? x.v[e] : g[i + e];
            if (isfinite(xe))
                v.sum_sq += (double)xe * (double)xe;
            else
                v.nonfinite++;
        }
    }
    v = block_add(v);
    if (threadIdx.x == 0)
        out[blockIdx.x] = v;
}

__global__ void __launch_bounds__(SWEEP_THREADS)
    sweep_total(kn_sweep *out, const sweep_part *parts, int64_t n)
{
    sweep_part v = {0.0, 0};

    for (int64_t i = threadIdx.x; i < n; i += SWEEP_THREADS) {
        v.sum_sq += parts[i].sum_sq;
        v.nonfinite += parts[i].nonfinite;
    }
    v = block_add(v);
    if (threadIdx.x == 0) {
        out->sum_sq = v.sum_sq;
        out->nonfinite = v.nonfinite;
    }
}

struct adamw_now { /* one parameter */
    float p, m, v;
};

__device__ static inline adamw_now adamw_one(adamw_now x, float g, const kn_adamw_step &s,
                                             float clip)
{
    g *= clip;
    x.m = s.beta1 * x.m + (1.0f - s.beta1) * g;
    x.v = s.beta2 * x.v + (1.0f - s.beta2) * g * g;
    x.p = x.p * (1.0f - s.lr * s.weight_decay) -
          s.lr / s.bias1 * x.m / (sqrtf(x.v) / sqrtf(s.bias2) + s.eps);
    return x;
}

/* Four parameters a thread and time; `whole`: the buffers begin at 16 bytes. */
__global__ void adamw_update(float *p, float *m, float *v, const float *g, int64_t n, bool whole,
                             const kn_sweep *sweep, const kn_adamw_step *step)
{
    const kn_adamw_step s = *step;
    const float norm = (float)sqrt(sweep->sum_sq);
    float clip = 1.0f;

    if (sweep->nonfinite)
        return;
    if (s.max_grad_norm > 0.0f)
        clip = fminf(1.0f, s.max_grad_norm / (norm + 1e-6f));
    const int64_t fours = n / 4, first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (int64_t i = first; i < fours; i += (int64_t)gridDim.x * blockDim.x) {
        const vec4 gi = load4(g + 4 * i, whole);
        vec4 pi = load4(p + 4 * i, whole), mi = load4(m + 4 * i, whole);
        vec4 vi = load4(v + 4 * i, whole);
        for (int e = 0; e < 4; e++) {
            const adamw_now x = adamw_one({pi.v[e], mi.v[e], vi.v[e]}, gi.v[e], s, clip);
            pi.v[e] = x.p;
            mi.v[e] = x.m;
            vi.v[e] = x.v;
        }
        store4(p + 4 * i, pi, whole);
        store4(m + 4 * i, mi, whole);
        store4(v + 4 * i, vi, whole);
    }
    const int64_t last = 4 * fours + first; /* the up to three behind the fours */
    if (last < n) {
        const adamw_now x = adamw_one({p[last], m[last], v[last]}, g[last], s, clip);
        p[last] = x.p;
        m[last] = x.m;
        v[last] = x.v;
    }
}

static int64_t sweep_blocks_of(int64_t n)
{
    return (n + SWEEP_PER_BLOCK - 1) / SWEEP_PER_BLOCK;
}

size_t cuda_sweep_bytes(int64_t n)
{
    return (size_t)(sweep_blocks_of(n) + 1) * sizeof(sweep_part);
}

int cuda_grad_sweep(kn_ctx *ctx, const kn_grad_sweep *a)
{
    const int64_t blocks = sweep_blocks_of(a->n);
    int r = kn_check_grad_sweep(a);

    if (r)
        return r;
    r = cuda_reserve(&ctx->partial, cuda_sweep_bytes(a->n));
    if (r)
        return r;
    if (blocks > 0)
        LAUNCH(sweep_blocks, (unsigned)blocks, SWEEP_THREADS, 0, ctx->stream,
               (sweep_part *)ctx->partial.p, a->g, a->n, (uintptr_t)a->g % 16 == 0);
    LAUNCH(sweep_total, 1, SWEEP_THREADS, 0, ctx->stream, a->sweep,
           (const sweep_part *)ctx->partial.p, blocks);
    return cuda_launched();
}

int cuda_adamw(kn_ctx *ctx, const kn_adamw *a)
{
    const int r = kn_check_adamw(a);
    const int64_t blocks = (a->n + 1023) / 1024;

    if (r)
        return r < 0 ? r : 0;
    LAUNCH(adamw_update, (unsigned)(blocks < 4096 ? blocks : 4096), 256, 0, ctx->stream, a->p, a->m,
           a->v, a->g, a->n,
           (((uintptr_t)a->p | (uintptr_t)a->m | (uintptr_t)a->v | (uintptr_t)a->g) & 15) == 0,
           a->sweep, a->step);
    return cuda_launched();
}
