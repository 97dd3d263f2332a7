/* deal.c - see deal.h. */
#include "worker/deal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/sampler.h"

void deal_fini(struct deal *d)
{
    batch_free_all(d->batches, d->n_batches);
    free(d->tokens);
    free(d->mine);
    free(d->mine_idx);
    free(d->ref);
    free(d->local);
    free(d->slots);
    *d = (struct deal){0};
}

/* Fills mine, mine_idx and at (their places among the n). */
static int share(struct deal *d, const struct example *v, const uint32_t *idx, uint32_t rank,
                 uint32_t ranks, int32_t *order, uint32_t *owner, int32_t *at)
{
    int r;

    for (int i = 0; i < d->n; i++) {
        const struct example *e = &v[idx != NULL ? idx[i] : (uint32_t)i];
        d->tokens[i] = batch_example_tokens(e, true);
        d->targets[0] += batch_example_targets(e, 0);
        d->targets[1] += batch_example_targets(e, 1);
    }
    r = sampler_deal(d->tokens, d->n, ranks, order, owner);
    for (int i = 0; r == 0 && i < d->n; i++) {
        const int32_t k = order[i];
        const uint32_t j = idx != NULL ? idx[k] : (uint32_t)k;
        if (owner[k] != rank)
            continue;
        d->mine[d->n_mine] = &v[j];
        d->mine_idx[d->n_mine] = j;
        at[d->n_mine++] = k;
    }
    return r;
}

int deal_init(struct deal *d, const struct example *v, const uint32_t *idx, int n, uint32_t rank,
              uint32_t ranks, int64_t budget, int extra)
{
    const size_t k = n > 0 ? (size_t)n : 1;
    int32_t *order = malloc(k * sizeof *order), *at = malloc(k * sizeof *at);
    uint32_t *owner = malloc(k * sizeof *owner);
    int r = -ENOMEM;

    *d = (struct deal){.n = n};
    d->tokens = malloc(k * sizeof *d->tokens);
    d->mine = malloc(k * sizeof *d->mine);
    d->mine_idx = malloc(k * sizeof *d->mine_idx);
    d->ref = malloc(k * sizeof *d->ref);
    d->local = malloc(k * LOSS_SLOTS * sizeof *d->local);
    d->slots = calloc(k * LOSS_SLOTS + (size_t)extra, sizeof *d->slots);
    if (!order || !at || !owner || !d->tokens || !d->mine || !d->mine_idx || !d->ref || !d->local ||
        !d->slots)
        goto fail;
    r = share(d, v, idx, rank, ranks, order, owner, at);
    if (r == 0)
        r = batch_pack(d->mine, at, d->n_mine, budget, true, &d->batches, &d->n_batches);

fail:
    free(order);
    free(owner);
    free(at);
    return r;
}

void deal_put(struct deal *d, const struct batch *b)
{
    for (int i = 0; i < b->n_examples; i++)
        memcpy(d->slots + (size_t)b->step_index[i] * LOSS_SLOTS, d->local + (size_t)i * LOSS_SLOTS,
               LOSS_SLOTS * sizeof *d->slots);
}
