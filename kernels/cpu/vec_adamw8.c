/* vec_adamw8.c - AdamW over blocks whose moments lie in 8 bits. Every operation is one
 * of IEEE 754, so that the bits do not depend on the instruction set. */
#include <float.h>
#include <math.h>

#include "vec.h"

enum { BLOCK = KN_ADAMW8_BLOCK };

static void decode(float *x, const uint8_t *code, int64_t n, const struct cpu_dynamic *d,
                   float scale)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = d->map[code[i]] * scale;
}

/* x in [-1, 1]; what is beyond counts as the end. */
VINLINE uint8_t code_of(const struct cpu_dynamic *d, float x)
{
    uint32_t u;
    int bin;

    memcpy(&u, &x, sizeof u);
    bin = (int)(u >> 16 & 0x7fff);
    bin = bin < CPU_BIN_LOW ? CPU_BIN_LOW : bin;
    bin = bin > CPU_BIN_HIGH ? CPU_BIN_HIGH : bin;
    bin = d->bin[u >> 31][bin - CPU_BIN_LOW];
    return (uint8_t)(bin + (x > d->above[bin]));
}

/* The scale of x (BLOCK, zeros beyond n); its codes. */
static float encode(uint8_t *code, const float *x, int64_t n, const struct cpu_dynamic *d)
{
    vf largest = {0};
    float unit[BLOCK], scale;

    for (int64_t i = 0; i < n; i += VW) {
        const vf v = vf_load(x + i);
        largest = vf_max(largest, vf_max(v, (vf){0} - v));
    }
    scale = fminf(vf_largest(largest), FLT_MAX);
    for (int64_t i = 0; i < n; i += VW)
        vf_store(unit + i, vf_load(x + i) / vf_set(scale > 0.0f ? scale : 1.0f));
    for (int64_t i = 0; i < n; i++)
        code[i] = code_of(d, unit[i]);
    return scale;
}

static void one_block(const struct kn_adamw8 *a, const struct cpu_adamw8 *c, int64_t block)
{
    const struct kn_adamw8_block *b = &a->block[block];
    const struct kn_adamw8_rate *s = &c->rate;
    const vf clip = vf_set(s->clip), decay = vf_set(s->decay), b1 = vf_set(s->beta1);
    const vf b2 = vf_set(s->beta2), c1 = vf_set(s->rest1), c2 = vf_set(s->rest2);
    const vf rate = vf_set(s->rate), root = vf_set(s->root), eps = vf_set(s->eps);
    float own[2][BLOCK], *mp = own[0], *vp = own[1];

    if (b->full >= 0) {
        mp = a->m32 + b->full;
        vp = a->v32 + b->full;
    } else {
        decode(mp, a->m + b->at, b->n, &c->m, a->m_scale[block]);
        decode(vp, a->v + b->at, b->n, &c->v, a->v_scale[block]);
    }
    for (int64_t i = 0; i < b->n; i += VW) {
        const int64_t n = b->n - i;
        const vf g = vf_get(a->g + b->at, i, n, KN_F32) * clip;
        const vf m = b1 * vf_get(mp, i, n, KN_F32) + c1 * g;
        const vf v = b2 * vf_get(vp, i, n, KN_F32) + c2 * (g * g);
        const vf p = vf_get(a->p + b->at, i, n, KN_F32) * decay;

        vf_put(a->p + b->at, i, n, KN_F32, p - rate * (m / (vf_sqrt(v) / root + eps)));
        vf_put(mp, i, b->full >= 0 ? n : VW, KN_F32, m);
        vf_put(vp, i, b->full >= 0 ? n : VW, KN_F32, v);
    }
    if (b->full < 0) {
        a->m_scale[block] = encode(a->m + b->at, mp, b->n, &c->m);
        a->v_scale[block] = encode(a->v + b->at, vp, b->n, &c->v);
    }
}

void VNAME(vec_adamw8)(const struct kn_adamw8 *a, const struct cpu_adamw8 *c, int64_t b0,
                       int64_t b1)
{
    for (int64_t b = b0; b < b1; b++)
        one_block(a, c, b);
}
