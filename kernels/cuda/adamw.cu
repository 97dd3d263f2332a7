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
    sweep_blocks(sweep_part *out, const float *g, int64_t n)
{
    const int64_t from = (int64_t)blockIdx.x * SWEEP_PER_BLOCK;
    const int64_t to = from + SWEEP_PER_BLOCK < n ? from + SWEEP_PER_BLOCK : n;
    sweep_part v = {0.0, 0};

    for (int64_t i = from + threadIdx.x; i < to; i += SWEEP_THREADS) {
        const float x = g[i];
        if (isfinite(x))
            v.sum_sq += (double)x * (double)x;
        else
            v.nonfinite++;
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

__global__ void adamw_update(float *p, float *m, float *v, const float *g, int64_t n,
                             const kn_sweep *sweep, const kn_adamw_step *step)
{
    const kn_adamw_step s = *step;
    const float norm = (float)sqrt(sweep->sum_sq);
    float clip = 1.0f;

    if (sweep->nonfinite)
        return;
    if (s.max_grad_norm > 0.0f)
        clip = fminf(1.0f, s.max_grad_norm / (norm + 1e-6f));
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const float gi = g[i] * clip;
        const float mi = s.beta1 * m[i] + (1.0f - s.beta1) * gi;
        const float vi = s.beta2 * v[i] + (1.0f - s.beta2) * gi * gi;
        m[i] = mi;
        v[i] = vi;
        p[i] = p[i] * (1.0f - s.lr * s.weight_decay) -
               s.lr / s.bias1 * mi / (sqrtf(vi) / sqrtf(s.bias2) + s.eps);
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
               (sweep_part *)ctx->partial.p, a->g, a->n);
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
           a->v, a->g, a->n, a->sweep, a->step);
    return cuda_launched();
}
