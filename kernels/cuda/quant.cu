/* quant.cu - 4-bit block quantisation, as bitsandbytes' CUDA kernels define it
 * (blocks of 64 over the flattened matrix; multiplication with the float32
 * reciprocal of the block's largest magnitude; thresholds are float32 midpoints,
 * a tie goes down; a block of zeros has code 0), and back.
 *
 * Back: 0.52 bytes read and 2 written per element; 14.0 GB a pass over the matrices
 * of a 7B model, 17.6 GB moved in all. The code is looked up in shared memory: 16
 * words in 16 banks, no conflicts. */
#include "quant.cuh"

#include "../dynamic.h"
#include "../quant4.h"

enum { BLOCK = KN_Q4_BLOCK, OUTER = KN_Q4_OUTER, QUANT_THREADS = 256, EXPAND_ROWS = 4 };

__constant__ float nf4_code[16] = KN_NF4_CODE;
__constant__ float fp4_code[8] = KN_FP4_CODE;
__constant__ float fp4_above[7] = KN_FP4_ABOVE;
__constant__ uint8_t fp4_next[7] = KN_FP4_NEXT;

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

__device__ static inline float source_at(const cuda_source &s, int64_t i)
{
    float v;

    if (s.stored == KN_BF16)
        v = __bfloat162float(((const bf16_t *)s.p)[i]);
    else if (s.stored == KN_F16)
        v = __half2float(((const __half *)s.p)[i]);
    else
        v = ((const float *)s.p)[i];
    return round_to(v, s.loaded);
}

/* What block b is multiplied with. bitsandbytes stores the product before it adds the
 * offset: two roundings, which the compiler must not fuse. */
__device__ static inline float scale_of(const cuda_quant4 &q, const float *map, int64_t b)
{
    if (!q.nested)
        return q.absmax[b];
    return __fadd_rn(__fmul_rn(map[q.absmax_q[b]], q.nested_absmax[b / OUTER]), *q.offset);
}

/* absmax of each block of 64: a warp each. */
__global__ void block_absmax(float *absmax, cuda_source s, int64_t blocks)
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

#pragma unroll 8 /* loads under way at a time; the order of the sum stays */
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

/* absmax itself in 8 bits, 256 of them per block. */
__global__ void __launch_bounds__(OUTER) nest_absmax(cuda_quant4 q, const float *absmax)
{
    SHARED(float, part, [OUTER]);
    const int64_t i = (int64_t)blockIdx.x * OUTER + threadIdx.x;
    const float v = i < q.blocks ? absmax[i] - *q.offset : 0.0f;

    part[threadIdx.x] = fabsf(v);
    for (int o = OUTER / 2; o; o >>= 1) {
        __syncthreads();
        if ((int)threadIdx.x < o)
            part[threadIdx.x] = fmaxf(part[threadIdx.x], part[threadIdx.x + o]);
    }
    __syncthreads();
    const float top = part[0];
    if (threadIdx.x == 0)
        q.nested_absmax[blockIdx.x] = top;
    if (i < q.blocks)
        q.absmax_q[i] = to_dynamic(q.map, v * (1.0f / top));
}

__global__ void pack_codes(uint8_t *packed, const float *absmax, cuda_source s, bool nf4)
{
    const int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, i = 2 * j;

    if (i >= s.n)
        return;
    const float inverse = 1.0f / absmax[i / BLOCK];
    const uint8_t high = to_code(source_at(s, i) * inverse, nf4);
    const uint8_t low = i + 1 < s.n ? to_code(source_at(s, i + 1) * inverse, nf4) : 0;
    packed[j] = (uint8_t)(high << 4 | low);
}

/* EXPAND_ROWS rows of the matrix a block, 8 columns a thread and time: one store of 16
 * bytes (two for float32). */
template <class T>
__global__ void __launch_bounds__(QUANT_THREADS)
    expand_rows(T *w, int64_t ld, cuda_quant4 q, int64_t rows, int64_t k, int64_t padded,
                kn_dtype loaded)
{
    SHARED(float, code, [16]);
    SHARED(float, map, [OUTER]);
    const int pieces = (int)(padded / 8);
    const bool even = k % 8 == 0; /* a piece is 4 bytes of one block */

    if (threadIdx.x < 16)
        code[threadIdx.x] = from_code((uint8_t)threadIdx.x, q.type == KN_QUANT_NF4);
    if (q.nested)
        map[threadIdx.x] = q.map[threadIdx.x];
    __syncthreads();
#pragma unroll 2
    for (int p = threadIdx.x; p < pieces * EXPAND_ROWS; p += QUANT_THREADS) {
        const int64_t row = (int64_t)blockIdx.x * EXPAND_ROWS + p / pieces, c = p % pieces * 8;
        const int64_t i = row * k + c;
        vec8<T> out;
        if (row >= rows)
            break;
        if (even && c < k) {
            const uint32_t codes = ((const uint32_t *)q.packed)[i / 8];
            const float scale = scale_of(q, map, i / BLOCK);
#pragma unroll
            for (int e = 0; e < 8; e++) /* byte e / 2, the high half first */
                out.v[e] = fromf<T>(round_to(code[codes >> (e * 4 ^ 4) & 15] * scale, loaded));
        } else {
            for (int e = 0; e < 8; e++) {
                float v = 0.0f;
                if (c + e < k) {
                    const uint8_t both = q.packed[(i + e) / 2];
                    v = round_to(code[(i + e) % 2 ? both & 15 : both >> 4] *
                                     scale_of(q, map, (i + e) / BLOCK),
                                 loaded);
                }
                out.v[e] = fromf<T>(v);
            }
        }
        store8(w + row * ld + c, out);
    }
}

template <class T>
__global__ void fill_rows(T *w, int64_t ld, cuda_source s, int64_t first, int64_t k)
{
    const int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, i = first + j;

    if (j < s.n)
        w[i / k * ld + i % k] = fromf<T>(source_at(s, j));
}

/* One row of n values. */
__global__ void unpack_codes(float *y, cuda_quant4 q, kn_dtype dtype)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i >= q.n)
        return;
    const uint8_t both = q.packed[i / 2];
    y[i] = round_to(from_code((uint8_t)(i % 2 ? both & 15 : both >> 4), q.type == KN_QUANT_NF4) *
                        scale_of(q, q.map, i / BLOCK),
                    dtype);
}

static unsigned grid(int64_t n, int64_t per_block)
{
    return (unsigned)((n + per_block - 1) / per_block);
}

size_t cuda_quant4_layout(cuda_quant4 *q, int64_t n, kn_quant type, bool nested, char *base)
{
    size_t at = 0;
    const auto take = [&](size_t bytes) {
        char *p = base ? base + at : NULL;
        at += (bytes + 255) / 256 * 256;
        return p;
    };

    *q = {};
    q->n = n;
    q->blocks = (n + BLOCK - 1) / BLOCK;
    q->outer = (q->blocks + OUTER - 1) / OUTER;
    q->type = type;
    q->nested = nested;
    q->packed = (uint8_t *)take((size_t)(n + 1) / 2);
    if (!nested) {
        q->absmax = (float *)take((size_t)q->blocks * sizeof(float));
        return at;
    }
    q->absmax_q = (uint8_t *)take((size_t)q->blocks);
    q->nested_absmax = (float *)take((size_t)q->outer * sizeof(float));
    q->offset = (float *)take(sizeof(float));
    q->map = (float *)take(OUTER * sizeof(float));
    return at;
}

int cuda_quant4_map(cudaStream_t stream, const cuda_quant4 *q)
{
    /* Kept: where a device reads the host's pages itself, nothing says when the copy is done. */
    static const struct dynamic_map {
        float v[OUTER];
        dynamic_map() { kn_dynamic_map(v, true); }
    } map;

    if (!q->nested)
        return 0;
    return cuda_error(cudaMemcpyAsync(q->map, map.v, sizeof map.v, cudaMemcpyHostToDevice, stream));
}

int cuda_quant4_piece(cudaStream_t stream, const cuda_quant4 *q, const cuda_source *s,
                      int64_t first, float *absmax)
{
    const int64_t blocks = (s->n + BLOCK - 1) / BLOCK;
    float *const exact = (q->nested ? absmax : q->absmax) + first / BLOCK;

    LAUNCH(block_absmax, grid(blocks, QUANT_THREADS / 32), QUANT_THREADS, 0, stream, exact, *s,
           blocks);
    LAUNCH(pack_codes, grid((s->n + 1) / 2, QUANT_THREADS), QUANT_THREADS, 0, stream,
           q->packed + first / 2, exact, *s, q->type == KN_QUANT_NF4);
    return cuda_launched();
}

int cuda_quant4_end(cudaStream_t stream, const cuda_quant4 *q, const float *absmax,
                    const float *offset_in)
{
    int r;

    if (!q->nested)
        return 0;
    r = cuda_quant4_map(stream, q);
    if (r)
        return r;
    if (offset_in)
        cudaMemcpyAsync(q->offset, offset_in, 4, cudaMemcpyHostToDevice, stream);
    else
        LAUNCH(mean_absmax, 1, QUANT_THREADS, 0, stream, q->offset, absmax, q->blocks);
    LAUNCH(nest_absmax, (unsigned)q->outer, OUTER, 0, stream, *q, absmax);
    return cuda_launched();
}

int cuda_quant4_expand(cudaStream_t stream, const cuda_quant4 *q, void *w, kn_dtype t, int64_t ld,
                       int64_t k, kn_dtype loaded)
{
    const int64_t rows = q->n / k, padded = cuda_round(k);

    if (t == KN_BF16)
        LAUNCH(expand_rows<bf16_t>, grid(rows, EXPAND_ROWS), QUANT_THREADS, 0, stream, (bf16_t *)w,
               ld, *q, rows, k, padded, loaded);
    else
        LAUNCH(expand_rows<float>, grid(rows, EXPAND_ROWS), QUANT_THREADS, 0, stream, (float *)w,
               ld, *q, rows, k, padded, loaded);
    return cuda_launched();
}

int cuda_fill_rows(cudaStream_t stream, const cuda_source *s, int64_t first, void *w, kn_dtype t,
                   int64_t ld, int64_t k)
{
    if (t == KN_BF16)
        LAUNCH(fill_rows<bf16_t>, grid(s->n, QUANT_THREADS), QUANT_THREADS, 0, stream, (bf16_t *)w,
               ld, *s, first, k);
    else
        LAUNCH(fill_rows<float>, grid(s->n, QUANT_THREADS), QUANT_THREADS, 0, stream, (float *)w,
               ld, *s, first, k);
    return cuda_launched();
}

/* Device memory of one call: the 4-bit form, its scales as they were, the values. */
struct call_memory {
    cuda_quant4 q;
    char *p;
    float *absmax, *x;
};

static int call_open(call_memory *m, int64_t n, kn_quant type, bool nested)
{
    const size_t form = cuda_quant4_layout(&m->q, n, type, nested, NULL);
    const size_t scales = ((size_t)m->q.blocks * 4 + 255) / 256 * 256;

    if (int r = cuda_error(cudaMalloc((void **)&m->p, form + scales + (size_t)n * 4))) {
        (void)cudaGetLastError();
        return r;
    }
    cuda_quant4_layout(&m->q, n, type, nested, m->p);
    m->absmax = (float *)(m->p + form);
    m->x = (float *)(m->p + form + scales);
    return 0;
}

int cuda_quantize4(const kn_quantize4 *a)
{
    const size_t bytes = (size_t)(a->n + 1) / 2;
    call_memory m = {};
    int r = kn_check_quantize4(a);

    if (r)
        return r < 0 ? r : 0;
    r = call_open(&m, a->n, a->type, a->nested);
    if (r)
        return r;
    const cuda_source s = {m.x, KN_F32, KN_F32, a->n};
    const size_t blocks = (size_t)m.q.blocks, outer = (size_t)m.q.outer;
    r = cuda_error(cudaMemcpy(m.x, a->x, (size_t)a->n * 4, cudaMemcpyHostToDevice));
    if (!r)
        r = cuda_quant4_piece(0, &m.q, &s, 0, m.absmax);
    if (!r)
        r = cuda_quant4_end(0, &m.q, m.absmax, a->offset_in);
    if (!r)
        r = cuda_error(cudaMemcpy(a->packed, m.q.packed, bytes, cudaMemcpyDeviceToHost));
    if (!r)
        r = cuda_error(cudaMemcpy(a->absmax, a->nested ? m.absmax : m.q.absmax, blocks * 4,
                                  cudaMemcpyDeviceToHost));
    if (!r && a->nested) {
        cudaMemcpy(a->absmax_q, m.q.absmax_q, blocks, cudaMemcpyDeviceToHost);
        cudaMemcpy(a->nested_absmax, m.q.nested_absmax, outer * 4, cudaMemcpyDeviceToHost);
        r = cuda_error(cudaMemcpy(a->offset, m.q.offset, 4, cudaMemcpyDeviceToHost));
    }
    cudaFree(m.p);
    return r;
}

int cuda_dequantize4(const kn_dequantize4 *a)
{
    const size_t bytes = (size_t)(a->n + 1) / 2;
    call_memory m = {};
    int r = kn_check_dequantize4(a);

    if (r)
        return r < 0 ? r : 0;
    r = call_open(&m, a->n, a->type, a->absmax_q != NULL);
    if (r)
        return r;
    const size_t blocks = (size_t)m.q.blocks, outer = (size_t)m.q.outer;
    r = cuda_error(cudaMemcpy(m.q.packed, a->packed, bytes, cudaMemcpyHostToDevice));
    if (!r && a->absmax_q) {
        r = cuda_quant4_map(0, &m.q);
        cudaMemcpy(m.q.absmax_q, a->absmax_q, blocks, cudaMemcpyHostToDevice);
        cudaMemcpy(m.q.offset, &a->offset, 4, cudaMemcpyHostToDevice);
        if (!r)
            r = cuda_error(
                cudaMemcpy(m.q.nested_absmax, a->nested_absmax, outer * 4, cudaMemcpyHostToDevice));
    } else if (!r) {
        r = cuda_error(cudaMemcpy(m.q.absmax, a->absmax, blocks * 4, cudaMemcpyHostToDevice));
    }
    if (!r) {
        LAUNCH(unpack_codes, grid(a->n, QUANT_THREADS), QUANT_THREADS, 0, 0, m.x, m.q, a->dtype);
        r = cuda_launched();
    }
    if (!r)
        r = cuda_error(cudaMemcpy(a->y, m.x, (size_t)a->n * 4, cudaMemcpyDeviceToHost));
    cudaFree(m.p);
    return r;
}
