/* weight.c - loading a frozen matrix: rounding, quantising, dequantising. */
#include "weight.h"

#include <stdlib.h>

static float round_to(float v, enum kn_dtype dtype)
{
    if (dtype == KN_BF16)
        return bf16_to_f32(bf16_from_f32(v));
    return dtype == KN_F16 ? f16_to_f32(f16_from_f32(v)) : v;
}

static double part_element(const struct kn_weight_part *p, int64_t i)
{
    if (p->dtype == KN_F16)
        return (double)f16_to_f32(((const uint16_t *)p->data)[i]);
    return ref_load(p->data, i, p->dtype);
}

/* Through 4 bits and back, in place, as the separate module would be stored. */
static int through_4bit(const struct kn_weight_desc *d, float *x, int64_t n)
{
    const int64_t blocks = (n + 63) / 64, outer = (blocks + 255) / 256;
    struct kn_quantize4 q = {.x = x, .n = n, .type = d->quant, .nested = d->double_quant};
    struct kn_dequantize4 back = {.y = x, .n = n, .type = d->quant, .dtype = d->load_dtype};
    int r = -ENOMEM;

    q.packed = malloc((size_t)(n + 1) / 2);
    q.absmax = malloc((size_t)blocks * sizeof(float));
    q.absmax_q = malloc((size_t)blocks);
    q.nested_absmax = malloc((size_t)outer * sizeof(float));
    q.offset = &back.offset;
    if (!q.packed || !q.absmax || !q.absmax_q || !q.nested_absmax)
        goto fail;
    r = ref_quantize4(&q);
    if (r)
        goto fail;
    back.packed = q.packed;
    back.absmax = q.absmax;
    if (d->double_quant) {
        back.absmax_q = q.absmax_q;
        back.nested_absmax = q.nested_absmax;
    }
    r = ref_dequantize4(&back);
fail:
    free(q.packed);
    free(q.absmax);
    free(q.absmax_q);
    free(q.nested_absmax);
    return r;
}

int ref_weight_part_values(const struct kn_weight_desc *d, int part, real *out)
{
    const struct kn_weight_part *p = &d->parts[part];
    const int64_t n = p->n * d->k;
    float *x;
    int r;

    if (d->quant == KN_QUANT_NONE) {
        for (int64_t i = 0; i < n; i++) {
            const double v = part_element(p, i);
            out[i] = d->load_dtype == KN_F32 ? (real)v : (real)round_to((float)v, d->load_dtype);
        }
        return 0;
    }
    x = malloc((size_t)n * sizeof *x);
    if (!x)
        return -ENOMEM;
    for (int64_t i = 0; i < n; i++)
        x[i] = round_to((float)part_element(p, i), d->load_dtype);
    r = through_4bit(d, x, n);
    for (int64_t i = 0; i < n && r == 0; i++)
        out[i] = (real)x[i];
    free(x);
    return r;
}

size_t ref_weight_bytes(const struct kn_weight_desc *d, enum kn_dtype compute)
{
    int64_t n = 0;

    (void)compute;
    for (int i = 0; i < d->n_parts; i++)
        n += d->parts[i].n;
    return sizeof(struct kn_weight) + (size_t)n * (size_t)d->k * sizeof(real);
}

int ref_weight_open(struct kn_ctx *ctx, const struct kn_weight_desc *d, struct kn_weight **ret)
{
    struct kn_weight *w;
    int64_t at = 0;
    int r = kn_check_weight(d);

    for (int i = 0; r == 0 && i < d->n_parts; i++)
        r = d->parts[i].data ? 0 : -EINVAL;
    if (r)
        return r;
    w = calloc(1, ref_weight_bytes(d, ref_compute(ctx)));
    if (!w)
        return -ENOMEM;
    w->k = d->k;
    w->n_parts = d->n_parts;
    w->compute = ref_compute(ctx);
    w->no_backward = d->no_backward;
    for (int i = 0; i < d->n_parts && r == 0; i++) {
        w->part_n[i] = d->parts[i].n;
        r = ref_weight_part_values(d, i, w->values + w->n * w->k);
        w->n += d->parts[i].n;
    }
    for (; r == 0 && at < w->n * w->k; at++)
        w->values[at] = (real)ref_round((double)w->values[at], w->compute);
    if (r) {
        free(w);
        return r;
    }
    *ret = w;
    return 0;
}

void ref_weight_close(struct kn_ctx *ctx, struct kn_weight *w)
{
    (void)ctx;
    free(w);
}
