/* evaluate.c - see evaluate.h. */
#include "worker/evaluate.h"

#include "worker/deal.h"

static int micro_batch(struct trainer *t, struct deal *d, const struct batch *b,
                       const struct loss_opts *lo, struct err *err)
{
    int r = engine_forward(t->engine, b, t->adapter, false, 0, &t->head, err);

    for (int i = 0; i < b->n_examples; i++)
        d->ref[i] = lo->method == SPEC_DPO ? refcache_get(&t->ref_eval, b->step_index[i]) : NULL;
    if (r == 0)
        r = loss_batch(lo, b, &t->head, d->ref, NULL, d->local, err);
    if (r == 0)
        deal_put(d, b);
    return r;
}

int evaluate_run(struct trainer *t, int64_t n, double v[METRICS], struct err *err)
{
    const struct loss_opts lo = {.method = t->spec->method,
                                 .beta = t->spec->beta,
                                 .divisor = 1,
                                 .vocab = t->model->config.vocab};
    struct deal d;
    int r = deal_init(&d, t->data->eval, NULL, (int)n, t->rank, t->ranks, t->plan.token_budget, 0);

    if (r < 0)
        err_set(err, r, "out of memory while packing the evaluation set");
    if (r == 0 && lo.method == SPEC_DPO)
        r = refcache_fill(&t->ref_eval, t->engine, d.mine_idx, d.n_mine, t->plan.token_budget,
                          &t->head, err);
    for (int i = 0; r == 0 && i < d.n_batches; i++)
        r = micro_batch(t, &d, &d.batches[i], &lo, err);
    if (r == 0 && t->ranks > 1)
        r = coll_sum(t->coll, NULL, 0, d.slots, (size_t)n * LOSS_SLOTS, err);
    if (r == 0)
        metrics_mean(lo.method, d.slots, n, d.targets, v);
    deal_fini(&d);
    return r;
}
