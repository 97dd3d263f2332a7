/* moments.c - see moments.h. */
#include "worker/moments.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dynamic.h"

enum { LEAST_8BIT = 4096 };

static int64_t blocks_of(int64_t elements)
{
    return (elements + KN_ADAMW8_BLOCK - 1) / KN_ADAMW8_BLOCK;
}

void moments_shape_add(struct moments_shape *s, int64_t elements)
{
    s->n += elements;
    if (s->optim != SPEC_ADAMW_8BIT)
        return;
    s->n_blocks += blocks_of(elements);
    s->n_float += elements < LEAST_8BIT ? elements : 0;
}

bool moments_shape_valid(const struct moments_shape *s)
{
    const int64_t most = INT64_MAX / 64; /* bytes of an image can be counted */

    if (s->n < 1 || s->n > most)
        return false;
    if (s->optim != SPEC_ADAMW_8BIT)
        return s->n_blocks == 0 && s->n_float == 0;
    return s->n_blocks >= blocks_of(s->n) && s->n_blocks <= s->n && s->n_float >= 0 &&
           s->n_float <= s->n;
}

bool moments_shape_equal(const struct moments_shape *a, const struct moments_shape *b)
{
    return a->optim == b->optim && a->n == b->n && a->n_blocks == b->n_blocks &&
           a->n_float == b->n_float;
}

int moments_parts(const struct moments_shape *s, struct moments_part ret[MOMENTS_PARTS])
{
    const bool eight = s->optim == SPEC_ADAMW_8BIT;
#define PART(label, type, count)                                                            \
    {                                                                                       \
        .name = #label, .dtype = type, .n = count, .field = offsetof(struct moments, label) \
    }
    const struct moments_part all[] = {
        PART(p, SAFETENSORS_F32, s->n),
        PART(m, SAFETENSORS_F32, eight ? 0 : s->n),
        PART(v, SAFETENSORS_F32, eight ? 0 : s->n),
        PART(m_scale, SAFETENSORS_F32, s->n_blocks),
        PART(v_scale, SAFETENSORS_F32, s->n_blocks),
        PART(m32, SAFETENSORS_F32, s->n_float),
        PART(v32, SAFETENSORS_F32, s->n_float),
        PART(m8, SAFETENSORS_U8, eight ? s->n : 0),
        PART(v8, SAFETENSORS_U8, eight ? s->n : 0),
    };
#undef PART
    size_t at = 0;
    int n = 0;

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].n == 0)
            continue;
        ret[n] = all[i];
        ret[n].at = at;
        ret[n].bytes = (size_t)all[i].n * safetensors_dtype_bytes(all[i].dtype);
        at += ret[n++].bytes;
    }
    return n;
}

size_t moments_image_bytes(const struct moments_shape *s)
{
    struct moments_part v[MOMENTS_PARTS];
    const int n = moments_parts(s, v);

    return v[n - 1].at + v[n - 1].bytes;
}

bool moments_image_valid(const struct moments_shape *s, const void *image)
{
    const float *scale = (const float *)image + s->n; /* behind p */

    for (int64_t i = 0; i < 2 * s->n_blocks; i++)
        if (!isfinite(scale[i]) || scale[i] < 0)
            return false;
    return true;
}

size_t moments_device_bytes(const struct moments_shape *s)
{
    return moments_image_bytes(s) - (size_t)s->n * sizeof(float) +
           (size_t)s->n_blocks * sizeof(struct kn_adamw8_block);
}

/* A shape without parameters has no parts. */
static int alloc(const struct kn_ops *ops, struct kn_ctx *ctx, int64_t n, size_t size, void *ret)
{
    return n == 0 ? 0 : ops->alloc(ctx, (size_t)n * size, ret);
}

static void blocks_make(const int64_t *tensors, int n_tensors, struct kn_adamw8_block *b)
{
    int64_t at = 0, full = 0;

    for (int i = 0; i < n_tensors; i++) {
        const bool whole = tensors[i] < LEAST_8BIT;
        for (int64_t left = tensors[i]; left > 0; b++) {
            const int32_t n = (int32_t)(left < KN_ADAMW8_BLOCK ? left : KN_ADAMW8_BLOCK);
            *b = (struct kn_adamw8_block){.at = at, .full = whole ? full : -1, .n = n};
            at += n;
            left -= n;
            full += whole ? n : 0;
        }
    }
}

/* What is not zero at the start: the table of blocks, and the codes that mean 0. */
static int fill_8bit(const struct kn_ops *ops, struct kn_ctx *ctx, const int64_t *tensors,
                     int n_tensors, struct moments *m)
{
    const size_t n = (size_t)m->shape.n, bytes = (size_t)m->shape.n_blocks * sizeof *m->block;
    struct kn_adamw8_block *block = malloc(bytes);
    uint8_t *zero = malloc(n);
    int r = block && zero ? 0 : -ENOMEM;

    if (r == 0) {
        blocks_make(tensors, n_tensors, block);
        memset(zero, KN_DYNAMIC_ZERO, n); /* the unsigned map's is 0 */
        r = ops->copy(ctx, m->block, block, bytes, KN_TO_DEVICE);
    }
    if (r == 0)
        r = ops->copy(ctx, m->m8, zero, n, KN_TO_DEVICE);
    if (r == 0)
        r = ops->sync(ctx);
    free(block);
    free(zero);
    return r;
}

int moments_init(const struct kn_ops *ops, struct kn_ctx *ctx, enum spec_optim optim, float *p,
                 const int64_t *tensors, int n_tensors, struct moments *ret)
{
    struct moments m = {.shape = {.optim = optim}, .p = p};
    struct moments_shape *s = &m.shape;
    int r;

    for (int i = 0; i < n_tensors; i++)
        moments_shape_add(s, tensors[i]);
    if (optim != SPEC_ADAMW_8BIT) {
        r = alloc(ops, ctx, s->n, sizeof *m.m, &m.m);
        if (r == 0)
            r = alloc(ops, ctx, s->n, sizeof *m.v, &m.v);
        *ret = m;
        return r;
    }
    if ((r = alloc(ops, ctx, s->n, 1, &m.m8)) == 0 && (r = alloc(ops, ctx, s->n, 1, &m.v8)) == 0 &&
        (r = alloc(ops, ctx, s->n_blocks, sizeof *m.m_scale, &m.m_scale)) == 0 &&
        (r = alloc(ops, ctx, s->n_blocks, sizeof *m.v_scale, &m.v_scale)) == 0 &&
        (r = alloc(ops, ctx, s->n_float, sizeof *m.m32, &m.m32)) == 0 &&
        (r = alloc(ops, ctx, s->n_float, sizeof *m.v32, &m.v32)) == 0 &&
        (r = alloc(ops, ctx, s->n_blocks, sizeof *m.block, &m.block)) == 0)
        r = fill_8bit(ops, ctx, tensors, n_tensors, &m);
    *ret = m;
    return r;
}

void moments_free(const struct kn_ops *ops, struct kn_ctx *ctx, struct moments *m)
{
    void *const all[] = {m->m,       m->v,   m->m8,  m->v8,   m->m_scale,
                         m->v_scale, m->m32, m->v32, m->block};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        ops->free(ctx, all[i]);
    *m = (struct moments){0};
}

int moments_update(const struct kn_ops *ops, struct kn_ctx *ctx, const struct moments *m,
                   const float *g, const struct kn_sweep *sweep, const struct kn_adamw_step *step)
{
    if (m->shape.optim != SPEC_ADAMW_8BIT)
        return ops->adamw(ctx, &(struct kn_adamw){.p = m->p,
                                                  .m = m->m,
                                                  .v = m->v,
                                                  .g = g,
                                                  .n = m->shape.n,
                                                  .sweep = sweep,
                                                  .step = step});
    return ops->adamw8(ctx, &(struct kn_adamw8){.p = m->p,
                                                .g = g,
                                                .m = m->m8,
                                                .v = m->v8,
                                                .m_scale = m->m_scale,
                                                .v_scale = m->v_scale,
                                                .m32 = m->m32,
                                                .v32 = m->v32,
                                                .block = m->block,
                                                .n = m->shape.n,
                                                .n_blocks = m->shape.n_blocks,
                                                .sweep = sweep,
                                                .step = step});
}

int moments_move(const struct kn_ops *ops, struct kn_ctx *ctx, const struct moments *m, void *image,
                 enum kn_dir dir)
{
    struct moments_part v[MOMENTS_PARTS];
    const int n = moments_parts(&m->shape, v);
    int r = 0;

    for (int i = 0; i < n && r == 0; i++) {
        char *host = (char *)image + v[i].at;
        void *device;
        memcpy(&device, (const char *)m + v[i].field, sizeof device);
        r = dir == KN_TO_HOST ? ops->copy(ctx, host, device, v[i].bytes, dir)
                              : ops->copy(ctx, device, host, v[i].bytes, dir);
    }
    if (r == 0)
        r = ops->sync(ctx);
    return r;
}
