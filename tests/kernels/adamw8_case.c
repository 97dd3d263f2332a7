/* adamw8_case.c - a state of kn_adamw8 and its steps. */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adamw8_case.h"

/* Bytes that begin `odd` elements behind where memory does. */
static void *room(struct kit *k, int64_t n, size_t size)
{
    return (char *)kit_alloc(k, (size_t)(n + k->odd) * size) + (size_t)k->odd * size;
}

void adamw8_case_make(struct adamw8_case *s, struct kit *k, const int64_t *tensors,
                      size_t n_tensors, int64_t least)
{
    struct kn_adamw8_block *host;
    int64_t blocks = 0;

    memset(s, 0, sizeof *s);
    s->k = k;
    for (size_t i = 0; i < n_tensors; i++) {
        s->a.n_blocks += (tensors[i] + KN_ADAMW8_BLOCK - 1) / KN_ADAMW8_BLOCK;
    }
    host = calloc((size_t)s->a.n_blocks + 1, sizeof *host);
    assert_non_null(host);
    for (size_t i = 0; i < n_tensors; i++) {
        for (int64_t at = 0; at < tensors[i]; at += KN_ADAMW8_BLOCK) {
            const int64_t left = tensors[i] - at;
            struct kn_adamw8_block *b = &host[blocks++];
            b->at = s->a.n;
            b->n = (int32_t)(left < KN_ADAMW8_BLOCK ? left : KN_ADAMW8_BLOCK);
            b->full = tensors[i] < least ? s->n32 : -1;
            s->a.n += b->n;
            s->n32 += tensors[i] < least ? b->n : 0;
        }
    }
    s->block = kit_alloc(k, (size_t)blocks * sizeof *host);
    kit_put(k, s->block, host, (size_t)blocks * sizeof *host);
    free(host);
    s->step = kit_alloc(k, sizeof *s->step);
    s->sweep = kit_alloc(k, sizeof *s->sweep);
    s->g = room(k, s->a.n, sizeof(float));
    s->a.p = room(k, s->a.n, sizeof(float));
    s->a.m = room(k, s->a.n, 1);
    s->a.v = room(k, s->a.n, 1);
    s->a.m_scale = room(k, blocks, sizeof(float));
    s->a.v_scale = room(k, blocks, sizeof(float));
    if (s->n32 > 0) {
        s->a.m32 = room(k, s->n32, sizeof(float));
        s->a.v32 = room(k, s->n32, sizeof(float));
    }
    s->a.g = s->g;
    s->a.block = s->block;
    s->a.sweep = s->sweep;
    s->a.step = s->step;
    uint8_t *codes = malloc((size_t)s->a.n + 1);
    assert_non_null(codes);
    memset(codes, KN_DYNAMIC_ZERO, (size_t)s->a.n);
    kit_put(k, s->a.m, codes, (size_t)s->a.n);
    free(codes);
}

void adamw8_case_same(const struct adamw8_case *x, const struct adamw8_case *y)
{
    const size_t n = (size_t)x->a.n, blocks = (size_t)x->a.n_blocks, full = (size_t)x->n32;

    kit_same("p", x->k, x->a.p, y->k, y->a.p, n * 4);
    kit_same("m", x->k, x->a.m, y->k, y->a.m, n);
    kit_same("v", x->k, x->a.v, y->k, y->a.v, n);
    kit_same("m_scale", x->k, x->a.m_scale, y->k, y->a.m_scale, blocks * 4);
    kit_same("v_scale", x->k, x->a.v_scale, y->k, y->a.v_scale, blocks * 4);
    kit_same("m32", x->k, x->a.m32, y->k, y->a.m32, full * 4);
    kit_same("v32", x->k, x->a.v32, y->k, y->a.v32, full * 4);
}

void adamw8_case_step(const struct adamw8_case *s, const struct kn_adamw_step *step,
                      const struct kn_sweep *sweep)
{
    kit_put(s->k, s->step, step, sizeof *step);
    kit_put(s->k, s->sweep, sweep, sizeof *sweep);
    assert_int_equal(s->k->ops->adamw8(s->k->ctx, &s->a), 0);
    assert_int_equal(s->k->ops->sync(s->k->ctx), 0);
}

struct kn_sweep adamw8_case_sweep(const float *g, int64_t n)
{
    struct kn_sweep s = {0};

    for (int64_t i = 0; i < n; i++) {
        s.sum_sq += (double)g[i] * (double)g[i];
        s.nonfinite += !isfinite(g[i]);
    }
    return s;
}

int adamw8_case_nearest(const float *map, float x, bool is_signed)
{
    int code = 0;

    for (int s = 0; s < 255; s++) {
        const float middle = (map[s] + map[s + 1]) * 0.5f;
        if (x > middle || (x == middle && s % 2 == 1))
            code = s + 1;
    }
    return is_signed && x < 0.0f && code == KN_DYNAMIC_ZERO ? code - 1 : code;
}
