/* adamw8.c - AdamW with moments in 8 bits: the maps' tables, blocks dealt to threads. */
#include <math.h>
#include <stdlib.h>

#include "cpu.h"

enum { CHUNK = 64 }; /* blocks a thread takes at a time */

static void make_dynamic(struct cpu_dynamic *d, bool is_signed)
{
    float tree[KN_DYNAMIC];

    kn_dynamic_map(d->map, is_signed);
    kn_dynamic_tree(tree, d->map, is_signed);
    for (int s = 0; s < KN_DYNAMIC - 1; s++)
        d->above[s] = kn_dynamic_threshold(d->map[s], d->map[s + 1], s, is_signed);
    d->above[KN_DYNAMIC - 1] = INFINITY; /* there is no next one */
    for (int negative = 0; negative < 2; negative++) {
        for (int b = 0; b < CPU_BINS; b++) {
            /* The least: below 0 the one of the largest magnitude. */
            uint32_t u = (uint32_t)(b + CPU_BIN_LOW) << 16 | (negative ? 0x8000ffffu : 0);
            float x;
            if (b == 0 && !negative)
                u = 0;
            memcpy(&x, &u, sizeof x);
            d->bin[negative][b] = kn_dynamic_code(tree, x);
        }
    }
}

static int common(struct kn_ctx *ctx)
{
    if (ctx->adamw8)
        return 0;
    ctx->adamw8 = malloc(sizeof *ctx->adamw8);
    if (!ctx->adamw8)
        return -ENOMEM;
    make_dynamic(&ctx->adamw8->m, true);
    make_dynamic(&ctx->adamw8->v, false);
    return 0;
}

int cpu_adamw8(struct kn_ctx *ctx, const struct kn_adamw8 *a)
{
    const int64_t chunks = (a->n_blocks + CHUNK - 1) / CHUNK;
    int r = kn_check_adamw8(a);

    if (r == 0)
        r = kn_check_adamw8_blocks(a);
    if (r)
        return r < 0 ? r : 0;
    if (a->sweep->nonfinite)
        return 0;
    r = common(ctx);
    if (r)
        return r;
    ctx->adamw8->rate = kn_adamw8_rate_of(a->step, a->sweep->sum_sq);
#pragma omp parallel for schedule(static) num_threads(cpu_team(ctx, a->n * 32))
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t end = (c + 1) * CHUNK;
        ctx->vec->adamw8(a, ctx->adamw8, c * CHUNK, end < a->n_blocks ? end : a->n_blocks);
    }
    return 0;
}
