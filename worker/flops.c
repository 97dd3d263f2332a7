/* flops.c - see flops.h. */
#include "worker/flops.h"

#include "worker/batch.h"

/* (query, key) pairs that attend within n positions of a sequence, window 0: none. */
static double area(double n, double window)
{
    return window > 0 && n > window ? window * (window + 1) / 2 + (n - window) * window
                                    : n * (n + 1) / 2;
}

void flops_count(const struct model_config *c, const struct dataset *d, int64_t params,
                 struct flops *ret)
{
    const double q = (double)(c->heads * c->head_dim), kv = (double)(c->kv_heads * c->head_dim);
    const double h = (double)c->hidden, layers = (double)c->layers, w = (double)c->sliding_window;
    const double linear = layers * h * (2 * q + 2 * kv + 3 * (double)c->intermediate);
    double tokens = 0, targets = 0, seen = 0;

    for (int64_t i = 0; i < d->n_train; i++) {
        const struct example *e = &d->train[i];
        const double p = e->n_prompt;
        tokens += (double)batch_example_tokens(e, true);
        targets += (double)(batch_example_targets(e, 0) + batch_example_targets(e, 1));
        seen += area(p + e->n_reply[0], w);
        if (e->n_reply[1] > 0)
            seen += area(p + e->n_reply[1], w) - area(p, w);
    }
    /* A product over t rows and n elements of a matrix: 2 t n; scores and their sum over values:
     * 4 q a pair, and backward 2.5 times that. */
    const double head = 2 * targets * h * (double)c->vocab, attention = 4 * seen * q * layers;
    ret->again = 2 * tokens * (linear + (double)params) + attention;
    ret->train = tokens * (4 * linear + 6 * (double)params) + 2 * head + 3.5 * attention;
    ret->reference = 2 * tokens * linear + head + attention;
}

static double epoch(const struct flops *f, int64_t recompute, int64_t layers)
{
    return f->train + f->again * (double)recompute / (double)(layers > 0 ? layers : 1);
}

double flops_step(const struct flops *f, const struct plan *p, int64_t recompute, int64_t layers)
{
    return epoch(f, recompute, layers) * (double)p->batch / (double)p->n_train;
}

double flops_run(const struct flops *f, const struct plan *p, int64_t recompute, int64_t layers)
{
    return epoch(f, recompute, layers) * p->epochs + f->reference * (p->epochs < 1 ? p->epochs : 1);
}
