/* vec.h - vectors of float for the files that are built once per instruction set.
 *
 * VW lanes; every operation has fixed lane semantics and multiply-adds are
 * written out (fused where the set has them, never contracted by the compiler),
 * so that bits depend on the instruction set's name alone. Element i of a row is
 * always in lane i % VW: a row's sums never depend on where the row lies. */
#ifndef KERNELS_CPU_VEC_H
#define KERNELS_CPU_VEC_H

#include <immintrin.h>

#include "cpu.h"

#if defined(__AVX512F__)
enum { VW = 16 };
#define VNAME(stem) stem##_avx512
#elif defined(__AVX2__)
enum { VW = 8 };
#define VNAME(stem) stem##_avx2
#else
enum { VW = 4 };
#define VNAME(stem) stem##_sse2
#endif

#define VINLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VW * 4)));
typedef int32_t vi __attribute__((vector_size(VW * 4)));
typedef uint32_t vu __attribute__((vector_size(VW * 4)));
typedef uint16_t vh __attribute__((vector_size(VW * 2)));
typedef uint64_t vq __attribute__((vector_size(VW * 4)));

VINLINE vf vf_set(float x)
{
    return x - (vf){0};
}

VINLINE vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

VINLINE void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

#if defined(__AVX512F__)

VINLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* Low halves of the 64-bit lanes, multiplied to 64 bits. */
VINLINE vq vq_mul(vq a, vq b)
{
    return (vq)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}
/* The second operand where either is NaN. */
VINLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
VINLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
VINLINE vf vf_sqrt(vf a)
{
    return _mm512_sqrt_ps(a);
}
/* The first n lanes, 0 elsewhere; nothing beyond is touched. */
VINLINE vf vf_load_n(const float *p, int64_t n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
VINLINE void vf_store_n(float *p, vf v, int64_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), v);
}

/* a[0], b[0], a[1], b[1], ... of the lower or the upper halves. */
VINLINE vf vf_lower(vf a, vf b)
{
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
VINLINE vf vf_upper(vf a, vf b)
{
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
}

#elif defined(__AVX2__)

VINLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
VINLINE vq vq_mul(vq a, vq b)
{
    return (vq)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
VINLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
VINLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
VINLINE vf vf_sqrt(vf a)
{
    return _mm256_sqrt_ps(a);
}
VINLINE __m256i vec_mask(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VINLINE vf vf_load_n(const float *p, int64_t n)
{
    return _mm256_maskload_ps(p, vec_mask(n));
}
VINLINE void vf_store_n(float *p, vf v, int64_t n)
{
    _mm256_maskstore_ps(p, vec_mask(n), v);
}

VINLINE vf vf_lower(vf a, vf b)
{
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
VINLINE vf vf_upper(vf a, vf b)
{
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

#else

VINLINE vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
VINLINE vq vq_mul(vq a, vq b)
{
    return (vq)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
VINLINE vf vf_max(vf a, vf b)
{
    return _mm_max_ps(a, b);
}
VINLINE vf vf_min(vf a, vf b)
{
    return _mm_min_ps(a, b);
}
VINLINE vf vf_sqrt(vf a)
{
    return _mm_sqrt_ps(a);
}
VINLINE vf vf_load_n(const float *p, int64_t n)
{
    vf v = {0};
    memcpy(&v, p, (size_t)n * 4);
    return v;
}
VINLINE void vf_store_n(float *p, vf v, int64_t n)
{
    memcpy(p, &v, (size_t)n * 4);
}

VINLINE vf vf_lower(vf a, vf b)
{
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
VINLINE vf vf_upper(vf a, vf b)
{
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

#endif

VINLINE vf vf_select(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* 0, 1, ... VW - 1 */
VINLINE vi vi_lanes(void)
{
    vi v;
    for (int i = 0; i < VW; i++)
        v[i] = i;
    return v;
}

/* Pairwise, halves first: the same tree wherever it is called. */
VINLINE float vf_sum(vf v)
{
    float x[VW];

    vf_store(x, v);
    for (int n = VW / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; i++)
            x[i] += x[i + n];
    }
    return x[0];
}

VINLINE float vf_largest(vf v)
{
    float x[VW];

    vf_store(x, v);
    for (int n = VW / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; i++)
            x[i] = x[i] > x[i + n] ? x[i] : x[i + n];
    }
    return x[0];
}

/* bf16 in memory, float in registers; the rounding of bf16_from_f32. */
VINLINE vf vf_widen(vh h)
{
    return (vf)(__builtin_convertvector(h, vu) << 16);
}

VINLINE vh vf_narrow(vf v)
{
    const vu u = (vu)v;
    const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const vu quiet = (u >> 16) | 0x40u;
    const vu nan = (vu)((u & 0x7fffffffu) > 0x7f800000u);

    return __builtin_convertvector((nan & quiet) | (~nan & rounded), vh);
}

/* Elements [i, i + n) of a row, n <= VW; 0 beyond. */
VINLINE vf vf_get(const void *p, int64_t i, int64_t n, enum kn_dtype dtype)
{
    vh h = {0};

    if (dtype == KN_F32) {
        const float *f = (const float *)p + i;
        return n >= VW ? vf_load(f) : vf_load_n(f, n);
    }
    if (n >= VW)
        memcpy(&h, (const bf16 *)p + i, sizeof h);
    else
        memcpy(&h, (const bf16 *)p + i, (size_t)n * 2);
    return vf_widen(h);
}

VINLINE void vf_put(void *p, int64_t i, int64_t n, enum kn_dtype dtype, vf v)
{
    vh h;

    if (dtype == KN_F32) {
        float *f = (float *)p + i;
        if (n >= VW)
            vf_store(f, v);
        else
            vf_store_n(f, v, n);
        return;
    }
    h = vf_narrow(v);
    memcpy((bf16 *)p + i, &h, n >= VW ? sizeof h : (size_t)n * 2);
}

VINLINE void *vec_row(const struct kn_mat *m, int64_t r)
{
    return (char *)m->p + (size_t)(r * m->ld) * (m->dtype == KN_BF16 ? 2 : 4);
}

/* exp(x), off by at most 1 unit of the last place where multiply-adds are fused,
 * 1.2 where not (tests/kernels/test_exp.c goes over all of its range).
 * x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two pieces (Cody & Waite 1980); e^r
 * = 1 + r + r^2 q(r), q of degree 4 fitted to the least largest relative error on
 * that interval (Lawson's reweighting), 3e-9; 2^n in two factors, so that every
 * float comes out. Below -87.33 the result is 0 (no subnormals), above 88.73
 * infinity, of NaN NaN. */
VINLINE vf vf_exp(vf x)
{
    const vf magic = vf_set(12582912.0f); /* 1.5 * 2^23: rounds to an integer */
    const vi none = x < vf_set(-87.3365448f);
    const vf c = vf_min(vf_set(89.0f), vf_max(vf_set(-88.0f), x));
    const vf t = vf_fma(c, vf_set(1.44269504f), magic);
    const vf nf = t - magic;
    const vi n = (vi)t - (vi)magic, half = n >> 1;
    vf r = vf_fma(nf, vf_set(-0.693359375f), c), y;

    r = vf_fma(nf, vf_set(2.12194440e-4f), r);
    y = vf_fma(r, vf_set(0.0013814586f), vf_set(0.00836871658f));
    y = vf_fma(y, r, vf_set(0.041668389f));
    y = vf_fma(y, r, vf_set(0.166665211f));
    y = vf_fma(y, r, vf_set(0.49999994f));
    y = vf_fma(y, r, vf_set(1.0f));
    y = vf_fma(y, r, vf_set(1.0f));
    y *= (vf)((half + 127) << 23);
    y *= (vf)((n - half + 127) << 23);
    return vf_select(none, (vf){0}, y);
}

/* 1 / (1 + e^-x) */
VINLINE vf vf_sigmoid(vf x)
{
    return vf_set(1.0f) / (vf_set(1.0f) + vf_exp((vf){0} - x));
}

void VNAME(vec_mm)(const struct cpu_mm *m);
void VNAME(vec_tile)(const struct cpu_tile *t);
void VNAME(vec_widen)(const struct cpu_widen *w);
void VNAME(vec_rmsnorm_fwd)(const struct kn_rmsnorm_fwd *a, int64_t r0, int64_t r1);
void VNAME(vec_rmsnorm_bwd)(const struct kn_rmsnorm_bwd *a, int64_t r0, int64_t r1);
void VNAME(vec_rope)(const struct kn_rope *a, int64_t r0, int64_t r1);
void VNAME(vec_swiglu_fwd)(const struct kn_swiglu_fwd *a, int64_t r0, int64_t r1);
void VNAME(vec_swiglu_bwd)(const struct kn_swiglu_bwd *a, int64_t r0, int64_t r1);
void VNAME(vec_gather)(const struct kn_gather *a, int64_t r0, int64_t r1);
void VNAME(vec_logprob)(const struct kn_logprob *a, int64_t r0, int64_t r1);
void VNAME(vec_sweep)(const float *g, int64_t n, struct kn_sweep *ret);
void VNAME(vec_adamw)(const struct kn_adamw *a, float clip, int64_t i0, int64_t i1);
void VNAME(vec_adamw8)(const struct kn_adamw8 *a, const struct cpu_adamw8 *c, int64_t b0,
                       int64_t b1);
size_t VNAME(vec_attn_fwd_bytes)(const struct kn_attn_shape *s);
void VNAME(vec_attn_fwd)(const struct kn_attn_fwd *a, int seq, int kv_head, void *scratch);
size_t VNAME(vec_attn_bwd_bytes)(const struct kn_attn_shape *s);
void VNAME(vec_attn_bwd)(const struct kn_attn_bwd *a, int seq, int kv_head, void *scratch);

#endif
