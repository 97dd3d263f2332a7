/* weight.c - loading a frozen matrix: the values ref defines, packed for both
 * directions. 4-bit weights are dequantised here, once. */
#include <omp.h>
#include <stdlib.h>

#include "cpu.h"

size_t cpu_weight_bytes(const struct kn_weight_desc *d, enum kn_dtype compute)
{
    size_t bytes = sizeof(struct kn_weight);
    int64_t n = 0;

    for (int i = 0; i < d->n_parts; i++)
        n += d->parts[i].n;
    bytes += cpu_packed_bytes(n, d->k, compute);
    return d->no_backward ? bytes : bytes + cpu_packed_bytes(d->k, n, compute);
}

void cpu_weight_close(struct kn_ctx *ctx, struct kn_weight *w)
{
    if (!w)
        return;
    cpu_packed_close(ctx, &w->forward);
    cpu_packed_close(ctx, &w->backward);
    free(w);
}

int cpu_weight_open(struct kn_ctx *ctx, const struct kn_weight_desc *d, struct kn_weight **ret)
{
    struct kn_weight *w = NULL;
    float *values = NULL;
    int64_t n = 0, at = 0;
    int r = kn_check_weight(d);

    for (int i = 0; r == 0 && i < d->n_parts; i++) {
        r = d->parts[i].data ? 0 : -EINVAL;
        n += d->parts[i].n;
    }
    if (r)
        return r;
    r = -ENOMEM;
    w = calloc(1, sizeof *w);
    values = malloc((size_t)n * (size_t)d->k * sizeof *values);
    if (!w || !values)
        goto fail;
    w->n = n;
    w->k = d->k;
    w->n_parts = d->n_parts;
    w->no_backward = d->no_backward;
    for (int i = 0; i < d->n_parts; i++) {
        w->part_n[i] = d->parts[i].n;
        r = ref_weight_part_values(d, i, values + at * d->k);
        if (r)
            goto fail;
        at += d->parts[i].n;
    }
    if (ctx->compute == KN_BF16) { /* in place: the narrower never overtakes */
        for (int64_t i = 0; i < n * d->k; i++) {
            const bf16 v = bf16_from_f32(values[i]);
            memcpy((char *)values + i * 2, &v, sizeof v);
        }
    }
    r = cpu_packed_open(ctx, &w->forward, values, n, d->k, true);
    if (r == 0 && !d->no_backward)
        r = cpu_packed_open(ctx, &w->backward, values, d->k, n, false);
    if (r)
        goto fail;
    free(values);
    *ret = w;
    return 0;
fail:
    free(values);
    cpu_weight_close(ctx, w);
    return r;
}
