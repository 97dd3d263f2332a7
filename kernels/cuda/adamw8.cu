/* adamw8.cu - AdamW over blocks whose moments lie in 8 bits: a warp each. 42 M
 * parameters: 420 MB read and 252 MB written.
 *
 * A lane has elements 4 lane + e and 128 + 4 lane + e of its block: floats go 16 bytes
 * an access, codes 4. The codes are searched for in shared memory (kernels/dynamic.h).
 * Each operation is rounded by itself, never fused: the bits of `ref`. */
#include "cuda.cuh"

#include <float.h>

#include "../adamw8.h"
#include "../dynamic.h"

enum {
    ADAMW8_THREADS = KN_DYNAMIC,
    ADAMW8_WARPS = ADAMW8_THREADS / 32,
    ADAMW8_PER_SM = 4, /* thread blocks that fit: each makes the tables, then has many blocks */
    PIECES = KN_ADAMW8_BLOCK / 128
};

/* Up to four floats; 0 beyond. */
__device__ static inline vec4 take4(const float *p, int have, bool whole)
{
    vec4 x = {};

    if (have == 4)
        return load4(p, whole);
    for (int e = 0; e < 4; e++)
        x.v[e] = e < have ? p[e] : 0.0f;
    return x;
}

__device__ static inline void give4(float *p, const vec4 &x, int have, bool whole)
{
    if (have == 4) {
        store4(p, x, whole);
        return;
    }
    for (int e = 0; e < 4; e++) {
        if (e < have)
            p[e] = x.v[e];
    }
}

/* Up to four codes, the first in the low byte. */
__device__ static inline uint32_t take_codes(const uint8_t *p, int have, bool whole)
{
    uint32_t u = 0;

    if (have == 4 && whole)
        return *(const uint32_t *)p;
    for (int e = 0; e < 4; e++) {
        if (e < have)
            u |= (uint32_t)p[e] << 8 * e;
    }
    return u;
}

__device__ static inline void give_codes(uint8_t *p, uint32_t u, int have, bool whole)
{
    if (have == 4 && whole) {
        *(uint32_t *)p = u;
        return;
    }
    for (int e = 0; e < 4; e++) {
        if (e < have)
            p[e] = (uint8_t)(u >> 8 * e);
    }
}

/* One parameter: p, m and v become the new ones. */
__device__ static inline void adamw8_one(float &p, float &m, float &v, float g,
                                         const kn_adamw8_rate &r)
{
    g = __fmul_rn(g, r.clip);
    m = __fadd_rn(__fmul_rn(r.beta1, m), __fmul_rn(r.rest1, g));
    v = __fadd_rn(__fmul_rn(r.beta2, v), __fmul_rn(r.rest2, __fmul_rn(g, g)));
    const float below = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), r.root), r.eps);
    p = __fsub_rn(__fmul_rn(p, r.decay), __fmul_rn(r.rate, __fdiv_rn(m, below)));
}

__device__ static inline uint32_t encode4(const vec4 &x, float scale, const float *tree)
{
    uint32_t u = 0;

#pragma unroll
    for (int e = 0; e < 4; e++) {
        const float unit = scale > 0.0f ? __fdiv_rn(x.v[e], scale) : 0.0f;
        u |= (uint32_t)kn_dynamic_code(tree, unit) << 8 * e;
    }
    return u;
}

__device__ static inline float largest4(float most, const vec4 &x)
{
#pragma unroll
    for (int e = 0; e < 4; e++)
        most = fmaxf(most, fabsf(x.v[e]));
    return most;
}

/* `whole`: all the buffers begin at 16 bytes. */
__global__ void __launch_bounds__(ADAMW8_THREADS) adamw8_update(kn_adamw8 a, bool whole)
{
    SHARED(float, map, [2][KN_DYNAMIC]);
    SHARED(float, tree, [2][KN_DYNAMIC]);
    SHARED(kn_adamw8_rate, rate, [1]);
    const int t = threadIdx.x, lane = t & 31;

    if (a.sweep->nonfinite)
        return;
    for (int u = 0; u < 2; u++)
        map[u][t] = kn_dynamic_entry(t, u == 0);
    if (t == 0)
        rate[0] = kn_adamw8_rate_of(a.step, a.sweep->sum_sq);
    __syncthreads();
    if (t > 0) {
        const int s = kn_dynamic_node(t);
        for (int u = 0; u < 2; u++)
            tree[u][t] = kn_dynamic_threshold(map[u][s], map[u][s + 1], s, u == 0);
    }
    __syncthreads();

    const kn_adamw8_rate r = rate[0];
    for (int64_t b = (int64_t)blockIdx.x * ADAMW8_WARPS + t / 32; b < a.n_blocks;
         b += (int64_t)gridDim.x * ADAMW8_WARPS) {
        const kn_adamw8_block k = a.block[b];
        const bool full = k.full >= 0, wide = whole && k.at % 4 == 0 && (!full || k.full % 4 == 0);
        const float m_scale = full ? 0.0f : a.m_scale[b], v_scale = full ? 0.0f : a.v_scale[b];
        vec4 m[PIECES], v[PIECES];
        float m_most = 0.0f, v_most = 0.0f;

#pragma unroll
        for (int j = 0; j < PIECES; j++) {
            const int i = j * 128 + lane * 4, have = min(max(k.n - i, 0), 4);
            const vec4 g = take4(a.g + k.at + i, have, wide);
            vec4 p = take4(a.p + k.at + i, have, wide);
            if (full) {
                m[j] = take4(a.m32 + k.full + i, have, wide);
                v[j] = take4(a.v32 + k.full + i, have, wide);
            } else {
                const uint32_t mc = take_codes(a.m + k.at + i, have, wide);
                const uint32_t vc = take_codes(a.v + k.at + i, have, wide);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    m[j].v[e] = __fmul_rn(map[0][mc >> 8 * e & 255], m_scale);
                    v[j].v[e] = __fmul_rn(map[1][vc >> 8 * e & 255], v_scale);
                }
            }
#pragma unroll
            for (int e = 0; e < 4; e++) {
                adamw8_one(p.v[e], m[j].v[e], v[j].v[e], g.v[e], r);
                if (e >= have)
                    m[j].v[e] = v[j].v[e] = 0.0f;
            }
            give4(a.p + k.at + i, p, have, wide);
            m_most = largest4(m_most, m[j]);
            v_most = largest4(v_most, v[j]);
            if (full) {
                give4(a.m32 + k.full + i, m[j], have, wide);
                give4(a.v32 + k.full + i, v[j], have, wide);
            }
        }
        if (full)
            continue;
        m_most = fminf(warp_max(m_most), FLT_MAX);
        v_most = fminf(warp_max(v_most), FLT_MAX);
#pragma unroll
        for (int j = 0; j < PIECES; j++) {
            const int i = j * 128 + lane * 4, have = min(max(k.n - i, 0), 4);
            give_codes(a.m + k.at + i, encode4(m[j], m_most, tree[0]), have, wide);
            give_codes(a.v + k.at + i, encode4(v[j], v_most, tree[1]), have, wide);
        }
        if (lane == 0) {
            a.m_scale[b] = m_most;
            a.v_scale[b] = v_most;
        }
    }
}

int cuda_adamw8(kn_ctx *ctx, const kn_adamw8 *a)
{
    int r = kn_check_adamw8(a);
    const int64_t blocks = (a->n_blocks + ADAMW8_WARPS - 1) / ADAMW8_WARPS;
    int sms = 1;
    uintptr_t bits = 0;

    if (r)
        return r < 0 ? r : 0;
    for (const void *p :
         std::initializer_list<const void *>{a->p, a->g, a->m, a->v, a->m32, a->v32})
        bits |= (uintptr_t)p;
    r = cuda_error(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, ctx->device));
    if (r)
        return r;
    const int64_t most = (int64_t)sms * ADAMW8_PER_SM;
    LAUNCH(adamw8_update, (unsigned)(blocks < most ? blocks : most), ADAMW8_THREADS, 0, ctx->stream,
           *a, bits % 16 == 0);
    return cuda_launched();
}
