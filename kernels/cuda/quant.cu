/* quant.cu - 4-bit block quantisation, as bitsandbytes' CUDA kernels define it
 * (blocks of 64 over the flattened matrix; multiplication with the float32
 * reciprocal of the block's largest magnitude; thresholds are float32 midpoints,
 * a tie goes down; a block of zeros has code 0), and frozen weights, which are
 * quantised and dequantised once into the compute dtype. */
#include "cuda.cuh"

#include <math.h>
#include <stdlib.h>

enum { BLOCK = 64, OUTER = 256, QUANT_THREADS = 256 };

__constant__ float nf4_code[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
__constant__ float fp4_code[8] = {
    0.0f, 0.005208333333f, 0.66666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f,
};
__constant__ float fp4_above[7] = {
    0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f,
};
__constant__ uint8_t fp4_next[7] = {1, 6, 7, 4, 5, 2, 3};

__device__ static inline uint8_t to_code(float x, bool nf4)
{
    uint8_t code = 0;

    if (nf4) {
        while (code < 15 && x > (nf4_code[code] + nf4_code[code + 1]) * 0.5f)
            code++;
        return code;
    }
    for (int i = 0; i < 7 && fabsf(x) > fp4_above[i]; i++)
        code = fp4_next[i];
    return (uint8_t)(code | (x < 0.0f ? 8 : 0));
}

__device__ static inline float from_code(uint8_t code, bool nf4)
{
    if (nf4)
        return nf4_code[code & 15];
    return code & 8 ? -fp4_code[code & 7] : fp4_code[code & 7];
}

__device__ static inline float round_to(float v, kn_dtype t)
{
    if (t == KN_BF16)
        return __bfloat162float(__float2bfloat16_rn(v));
    return t == KN_F16 ? __half2float(__float2half_rn(v)) : v;
}

__device__ static inline float element(const void *p, kn_dtype t, int64_t i)
{
    if (t == KN_BF16)
        return __bfloat162float(((const bf16_t *)p)[i]);
    return t == KN_F16 ? __half2float(((const __half *)p)[i]) : ((const float *)p)[i];
}

/* What is quantised: source data as loaded, n elements. */
struct quant_source {
    const void *p;
    kn_dtype stored, loaded;
    int64_t n;
};

__device__ static inline float source_at(const quant_source &s, int64_t i)
{
    return round_to(element(s.p, s.stored, i), s.loaded);
}

/* absmax of each block of 64: a warp each. */
__global__ void block_absmax(float *absmax, quant_source s, int64_t blocks)
{
    const int64_t b = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const int lane = threadIdx.x & 31;
    float m = 0.0f;

    if (b >= blocks)
        return;
    for (int64_t i = b * BLOCK + lane; i < (b + 1) * BLOCK && i < s.n; i += 32)
        m = fmaxf(m, fabsf(source_at(s, i)));
    m = warp_max(m);
    if (lane == 0)
        absmax[b] = m;
}

/* The mean of absmax in a fixed tree: one block. */
__global__ void __launch_bounds__(QUANT_THREADS)
    mean_absmax(float *offset, const float *absmax, int64_t blocks)
{
    SHARED(double, part, [QUANT_THREADS]);
    double sum = 0.0;

    for (int64_t i = threadIdx.x; i < blocks; i += QUANT_THREADS)
        sum += (double)absmax[i];
    part[threadIdx.x] = sum;
    for (int o = QUANT_THREADS / 2; o; o >>= 1) {
        __syncthreads();
        if ((int)threadIdx.x < o)
            part[threadIdx.x] += part[threadIdx.x + o];
    }
    if (threadIdx.x == 0)
        *offset = (float)(part[0] / (double)blocks);
}

/* The nearest entry of the dynamic map; a tie goes to the even index; NaN to 0. */
__device__ static inline uint8_t to_dynamic(const float *map, float x)
{
    int low = 0, high = 255;

    if (!(x > map[0]))
        return 0;
    while (high - low > 1) { /* the last entry below x, at most 254 */
        const int middle = (low + high) / 2;
        if (x > map[middle])
            low = middle;
        else
            high = middle;
    }
    const float middle = (map[low] + map[low + 1]) * 0.5f;
    if (x == middle)
        return (uint8_t)(low + (low & 1));
    return (uint8_t)(x > middle ? low + 1 : low);
}

/* absmax itself in 8 bits, 256 of them per block; `back`: what they dequantise to. */
__global__ void __launch_bounds__(OUTER)
    nest_absmax(uint8_t *code, float *nested, float *back, const float *absmax,
                const float *offset, const float *map, int64_t blocks)
{
    SHARED(float, part, [OUTER]);
    const int64_t i = (int64_t)blockIdx.x * OUTER + threadIdx.x;
    const float v = i < blocks ? absmax[i] - *offset : 0.0f;

    part[threadIdx.x] = fabsf(v);
    for (int o = OUTER / 2; o; o >>= 1) {
        __syncthreads();
        if ((int)threadIdx.x < o)
            part[threadIdx.x] = fmaxf(part[threadIdx.x], part[threadIdx.x + o]);
    }
    __syncthreads();
    const float top = part[0];
    if (threadIdx.x == 0)
        nested[blockIdx.x] = top;
    if (i < blocks) {
        const uint8_t c = to_dynamic(map, v * (1.0f / top));
        code[i] = c;
        back[i] = map[c] * top + *offset;
    }
}

__global__ void pack_codes(uint8_t *packed, const float *absmax, quant_source s, bool nf4)
{
    const int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, i = 2 * j;

    if (i >= s.n)
        return;
    const float inverse = 1.0f / absmax[i / BLOCK];
    const uint8_t high = to_code(source_at(s, i) * inverse, nf4);
    const uint8_t low = i + 1 < s.n ? to_code(source_at(s, i + 1) * inverse, nf4) : 0;
    packed[j] = (uint8_t)(high << 4 | low);
}

/* Columns of a weight from a part's values, through 4 bits where asked: scale is
 * what the block is dequantised with (absmax, or its nested form). */
template <class T>
__global__ void fill_weight(T *w, int64_t ld, quant_source s, int64_t k, kn_quant quant,
                            const float *absmax, const float *scale)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i >= s.n)
        return;
    float v = source_at(s, i);
    if (quant != KN_QUANT_NONE) {
        const bool nf4 = quant == KN_QUANT_NF4;
        const int64_t b = i / BLOCK;
        v = round_to(from_code(to_code(v * (1.0f / absmax[b]), nf4), nf4) * scale[b], s.loaded);
    }
    w[i / k * ld + i % k] = fromf<T>(v);
}

__global__ void unpack_codes(float *y, const uint8_t *packed, const float *absmax,
                             const uint8_t *absmax_q, const float *nested, float offset,
                             const float *map, int64_t n, bool nf4, kn_dtype dtype)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i >= n)
        return;
    const int64_t b = i / BLOCK;
    const float scale =
        absmax_q ? map[absmax_q[b]] * nested[b / OUTER] + offset : absmax[b];
    const uint8_t both = packed[i / 2];
    y[i] = round_to(from_code((uint8_t)(i % 2 ? both & 15 : both >> 4), nf4) * scale, dtype);
}

/* The signed dynamic 8-bit map (Dettmers et al. 2022, arXiv:2110.02861, section
 * 2.1), every step in float32, as kernels/ref/quant.c spells out. */
static void dynamic_map(float *map)
{
    int at = 128;

    map[127] = 0.0f;
    map[255] = 1.0f;
    for (int i = 0; i < 7; i++) {
        const int n = 1 << i;
        const float step = (1.0f - 0.1f) / (float)n, power = (float)pow(10.0, i - 6);
        for (int j = 0; j < n; j++, at++) {
            float edge[2];
            for (int e = 0; e < 2; e++)
                edge[e] = j + e < (n + 1) / 2 ? 0.1f + step * (float)(j + e)
                                              : 1.0f - step * (float)(n - j - e);
            map[at] = power * ((edge[0] + edge[1]) / 2.0f);
            map[254 - at] = -map[at];
        }
    }
}

static unsigned grid(int64_t n, int per_block)
{
    return (unsigned)((n + per_block - 1) / per_block);
}

struct quant_work { /* device memory of one quantisation */
    float *absmax, *back, *nested, *offset, *map;
    uint8_t *code;
    int64_t blocks, outer;
};

static void work_free(quant_work *w)
{
    cudaFree(w->absmax);
    cudaFree(w->back);
    cudaFree(w->nested);
    cudaFree(w->offset);
    cudaFree(w->map);
    cudaFree(w->code);
}

static int work_alloc(quant_work *w, int64_t n)
{
    float map[256];

    *w = {};
    w->blocks = (n + BLOCK - 1) / BLOCK;
    w->outer = (w->blocks + OUTER - 1) / OUTER;
    dynamic_map(map);
    if (cudaMalloc((void **)&w->absmax, (size_t)w->blocks * 4) ||
        cudaMalloc((void **)&w->back, (size_t)w->blocks * 4) ||
        cudaMalloc((void **)&w->nested, (size_t)w->outer * 4) ||
        cudaMalloc((void **)&w->offset, 4) || cudaMalloc((void **)&w->map, sizeof map) ||
        cudaMalloc((void **)&w->code, (size_t)w->blocks) ||
        cudaMemcpy(w->map, map, sizeof map, cudaMemcpyHostToDevice)) {
        work_free(w);
        return -ENOMEM;
    }
    return 0;
}

/* absmax, and with `nested` its 8-bit form and what that dequantises to. */
static void find_scales(cudaStream_t stream, quant_work *w, const quant_source *s, bool nested,
                        const float *offset_in)
{
    LAUNCH(block_absmax, grid(w->blocks, QUANT_THREADS / 32), QUANT_THREADS, 0, stream, w->absmax,
           *s, w->blocks);
    if (!nested)
        return;
    if (offset_in)
        cudaMemcpyAsync(w->offset, offset_in, 4, cudaMemcpyHostToDevice, stream);
    else
        LAUNCH(mean_absmax, 1, QUANT_THREADS, 0, stream, w->offset, w->absmax, w->blocks);
    LAUNCH(nest_absmax, (unsigned)w->outer, OUTER, 0, stream, w->code, w->nested, w->back,
           w->absmax, w->offset, w->map, w->blocks);
}

int cuda_quantize4(const kn_quantize4 *a)
{
    quant_work w = {};
    float *x = NULL;
    uint8_t *packed = NULL;
    const size_t bytes = (size_t)(a->n + 1) / 2;
    int r = kn_check_quantize4(a);

    if (r)
        return r < 0 ? r : 0;
    r = -ENOMEM;
    if (work_alloc(&w, a->n))
        return r;
    if (cudaMalloc((void **)&x, (size_t)a->n * 4) || cudaMalloc((void **)&packed, bytes))
        goto fail;
    r = cuda_error(cudaMemcpy(x, a->x, (size_t)a->n * 4, cudaMemcpyHostToDevice));
    if (r)
        goto fail;
    {
        const quant_source s = {x, KN_F32, KN_F32, a->n};
        find_scales(0, &w, &s, a->nested, a->offset_in);
        LAUNCH(pack_codes, grid((int64_t)bytes, QUANT_THREADS), QUANT_THREADS, 0, 0, packed,
               w.absmax, s, a->type == KN_QUANT_NF4);
    }
    r = cuda_launched();
    if (!r)
        r = cuda_error(cudaMemcpy(a->packed, packed, bytes, cudaMemcpyDeviceToHost));
    if (!r)
        r = cuda_error(
            cudaMemcpy(a->absmax, w.absmax, (size_t)w.blocks * 4, cudaMemcpyDeviceToHost));
    if (!r && a->nested) {
        cudaMemcpy(a->absmax_q, w.code, (size_t)w.blocks, cudaMemcpyDeviceToHost);
        cudaMemcpy(a->nested_absmax, w.nested, (size_t)w.outer * 4, cudaMemcpyDeviceToHost);
        r = cuda_error(cudaMemcpy(a->offset, w.offset, 4, cudaMemcpyDeviceToHost));
    }
fail:
    cudaFree(x);
    cudaFree(packed);
    work_free(&w);
    return r;
}

int cuda_dequantize4(const kn_dequantize4 *a)
{
    quant_work w = {};
    float *y = NULL;
    uint8_t *packed = NULL;
    const size_t bytes = (size_t)(a->n + 1) / 2;
    int r = kn_check_dequantize4(a);

    if (r)
        return r < 0 ? r : 0;
    r = -ENOMEM;
    if (work_alloc(&w, a->n))
        return r;
    if (cudaMalloc((void **)&y, (size_t)a->n * 4) || cudaMalloc((void **)&packed, bytes))
        goto fail;
    r = cuda_error(cudaMemcpy(packed, a->packed, bytes, cudaMemcpyHostToDevice));
    if (!r && a->absmax_q) {
        cudaMemcpy(w.code, a->absmax_q, (size_t)w.blocks, cudaMemcpyHostToDevice);
        r = cuda_error(cudaMemcpy(w.nested, a->nested_absmax, (size_t)w.outer * 4,
                                  cudaMemcpyHostToDevice));
    } else if (!r) {
        r = cuda_error(
            cudaMemcpy(w.absmax, a->absmax, (size_t)w.blocks * 4, cudaMemcpyHostToDevice));
    }
    if (r)
        goto fail;
    LAUNCH(unpack_codes, grid(a->n, QUANT_THREADS), QUANT_THREADS, 0, 0, y, packed, w.absmax,
           a->absmax_q ? w.code : NULL, w.nested, a->offset, w.map, a->n, a->type == KN_QUANT_NF4,
           a->dtype);
    r = cuda_launched();
    if (!r)
        r = cuda_error(cudaMemcpy(a->y, y, (size_t)a->n * 4, cudaMemcpyDeviceToHost));
fail:
    cudaFree(y);
    cudaFree(packed);
    work_free(&w);
    return r;
}

/* Rows of one part into the weight, by way of the device. */
static int load_part(kn_ctx *ctx, const kn_weight_desc *d, int part, kn_weight *w, int64_t row)
{
    const kn_weight_part *p = &d->parts[part];
    const int64_t n = p->n * d->k;
    quant_work work = {};
    void *data = NULL;
    char *to = (char *)w->p + (size_t)row * w->ld * cuda_size(w->compute);
    int r;

    if (work_alloc(&work, n))
        return -ENOMEM;
    r = cudaMalloc(&data, (size_t)n * cuda_size(p->dtype)) ? -ENOMEM : 0;
    if (!r)
        r = cuda_error(cudaMemcpyAsync(data, p->data, (size_t)n * cuda_size(p->dtype),
                                       cudaMemcpyHostToDevice, ctx->stream));
    if (!r) {
        const quant_source s = {data, p->dtype, d->load_dtype, n};
        const float *scale = d->double_quant ? work.back : work.absmax;
        if (d->quant != KN_QUANT_NONE)
            find_scales(ctx->stream, &work, &s, d->double_quant, NULL);
        if (w->compute == KN_BF16)
            LAUNCH(fill_weight<bf16_t>, grid(n, QUANT_THREADS), QUANT_THREADS, 0, ctx->stream,
                   (bf16_t *)to, w->ld, s, d->k, d->quant, work.absmax, scale);
        else
            LAUNCH(fill_weight<float>, grid(n, QUANT_THREADS), QUANT_THREADS, 0, ctx->stream,
                   (float *)to, w->ld, s, d->k, d->quant, work.absmax, scale);
        r = cuda_launched();
    }
    if (!r)
        r = cuda_error(cudaStreamSynchronize(ctx->stream));
    cudaFree(data);
    work_free(&work);
    return r;
}

size_t cuda_weight_bytes(const kn_weight_desc *d, kn_dtype compute)
{
    const int64_t ext = cuda_ext(d->lora_cols);
    int64_t n = 0;

    for (int i = 0; i < d->n_parts; i++)
        n += d->parts[i].n;
    return (size_t)(n + ext) * (size_t)(cuda_round(d->k) + ext) * cuda_size(compute);
}

int cuda_weight_open(kn_ctx *ctx, const kn_weight_desc *d, kn_weight **ret)
{
    int r = kn_check_weight(d);
    int64_t row = 0;
    kn_weight *w;

    for (int i = 0; r == 0 && i < d->n_parts; i++)
        r = d->parts[i].data ? 0 : -EINVAL;
    if (r)
        return r;
    w = (kn_weight *)calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->k = d->k;
    w->n_parts = d->n_parts;
    w->compute = ctx->compute;
    w->no_backward = d->no_backward;
    w->ext = cuda_ext(d->lora_cols);
    w->ld = cuda_round(d->k) + w->ext;
    for (int i = 0; i < d->n_parts; i++) {
        w->part_n[i] = d->parts[i].n;
        w->n += d->parts[i].n;
    }
    r = cuda_alloc(ctx, cuda_weight_bytes(d, ctx->compute), &w->p);
    for (int i = 0; i < d->n_parts && r == 0; i++) {
        r = load_part(ctx, d, i, w, row);
        row += d->parts[i].n;
    }
    if (r) {
        cuda_weight_close(ctx, w);
        return r;
    }
    *ret = w;
    return 0;
}

void cuda_weight_close(kn_ctx *ctx, kn_weight *w)
{
    if (w)
        cuda_free(ctx, w->p);
    free(w);
}
