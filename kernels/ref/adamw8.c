/* adamw8.c - AdamW with blocks of moments in 8 bits: Dettmers et al. 2022
 * (arXiv:2110.02861), as kernels.h says it. Float32 step by step, so that codes are equal
 * on all backends. */
#include "ref.h"

#include <float.h>
#include <math.h>

#include "../adamw8.h"
#include "../dynamic.h"

enum { SIGNED, UNSIGNED, MAPS };

struct maps {
    float map[MAPS][KN_DYNAMIC], tree[MAPS][KN_DYNAMIC];
};

/* The block's n moments in 8 bits; returns their scale. */
static float quantize(uint8_t *code, const float *x, int n, const float *tree)
{
    float largest = 0.0f;

    for (int i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    largest = fminf(largest, FLT_MAX);
    for (int i = 0; i < n; i++)
        code[i] = kn_dynamic_code(tree, largest > 0.0f ? x[i] / largest : 0.0f);
    return largest;
}

static void update(const struct kn_adamw8 *a, int64_t block, const struct kn_adamw8_rate *r,
                   const struct maps *maps)
{
    const struct kn_adamw8_block *b = &a->block[block];
    real *p = (real *)a->p + b->at, *m32 = NULL, *v32 = NULL;
    real *m_scale = (real *)a->m_scale + block, *v_scale = (real *)a->v_scale + block;
    const real *grad = (const real *)a->g + b->at;
    uint8_t *mc = a->m + b->at, *vc = a->v + b->at;
    float m[KN_ADAMW8_BLOCK], v[KN_ADAMW8_BLOCK];

    if (b->full >= 0) {
        m32 = (real *)a->m32 + b->full;
        v32 = (real *)a->v32 + b->full;
    }
    for (int i = 0; i < b->n; i++) {
        const float g = (float)grad[i] * r->clip;
        m[i] = m32 ? (float)m32[i] : maps->map[SIGNED][mc[i]] * (float)*m_scale;
        v[i] = v32 ? (float)v32[i] : maps->map[UNSIGNED][vc[i]] * (float)*v_scale;
        m[i] = r->beta1 * m[i] + r->rest1 * g;
        v[i] = r->beta2 * v[i] + r->rest2 * (g * g);
        const float step = m[i] / (sqrtf(v[i]) / r->root + r->eps);
        p[i] = (real)((float)p[i] * r->decay - r->rate * step);
        if (m32) {
            m32[i] = (real)m[i];
            v32[i] = (real)v[i];
        }
    }
    if (!m32) {
        *m_scale = (real)quantize(mc, m, b->n, maps->tree[SIGNED]);
        *v_scale = (real)quantize(vc, v, b->n, maps->tree[UNSIGNED]);
    }
}

int ref_adamw8(struct kn_ctx *ctx, const struct kn_adamw8 *a)
{
    struct maps maps;
    int r = kn_check_adamw8(a);

    (void)ctx;
    if (r == 0)
        r = kn_check_adamw8_blocks(a);
    if (r)
        return r < 0 ? r : 0;
    if (a->sweep->nonfinite)
        return 0;
    for (int u = 0; u < MAPS; u++) {
        kn_dynamic_map(maps.map[u], u == SIGNED);
        kn_dynamic_tree(maps.tree[u], maps.map[u], u == SIGNED);
    }
    const struct kn_adamw8_rate rate = kn_adamw8_rate_of(a->step, a->sweep->sum_sq);
    for (int64_t b = 0; b < a->n_blocks; b++)
        update(a, b, &rate, &maps);
    return 0;
}
