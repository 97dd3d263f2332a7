/* sampler.c - see sampler.h. Fisher-Yates with counter-based draws. */
#include "worker/sampler.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "worker/rng.h"

int sampler_init(struct sampler *s, uint64_t seed, int64_t n, int64_t batch)
{
    *s = (struct sampler){.seed = seed, .n = n, .batch = batch, .epoch = -1};
    if (n <= 0 || n > UINT32_MAX || batch <= 0 || batch > INT32_MAX)
        return -EINVAL;
    s->perm = malloc((size_t)n * sizeof *s->perm);
    return s->perm != NULL ? 0 : -ENOMEM;
}

void sampler_fini(struct sampler *s)
{
    if (s == NULL)
        return;
    free(s->perm);
    s->perm = NULL;
}

int64_t sampler_steps_per_epoch(int64_t n, int64_t batch)
{
    return n / batch + (n % batch != 0);
}

static void shuffle(struct sampler *s, int64_t epoch)
{
    for (int64_t i = 0; i < s->n; i++)
        s->perm[i] = (uint32_t)i;
    for (int64_t i = s->n - 1; i > 0; i--) {
        const uint64_t j =
            rng_below(s->seed, RNG_SHUFFLE, (uint64_t)epoch, (uint64_t)i, (uint64_t)i + 1);
        const uint32_t t = s->perm[i];
        s->perm[i] = s->perm[j];
        s->perm[j] = t;
    }
    s->epoch = epoch;
}

void sampler_step(struct sampler *s, int64_t step, const uint32_t **ret, int *ret_n)
{
    const int64_t per_epoch = sampler_steps_per_epoch(s->n, s->batch);
    const int64_t epoch = step / per_epoch, first = step % per_epoch * s->batch;

    if (s->epoch != epoch)
        shuffle(s, epoch);
    *ret = s->perm + first;
    *ret_n = (int)(s->n - first < s->batch ? s->n - first : s->batch);
}

struct item {
    int64_t tokens;
    int32_t index;
};

static int longer_first(const void *a, const void *b)
{
    const struct item *x = a, *y = b;

    if (x->tokens != y->tokens)
        return x->tokens > y->tokens ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

int sampler_deal(const int64_t *tokens, int n, uint32_t ranks, int32_t *order, uint32_t *owner)
{
    struct item *v = malloc((n > 0 ? (size_t)n : 1) * sizeof *v);
    int64_t *load = calloc(ranks > 0 ? ranks : 1, sizeof *load);
    const bool ok = v != NULL && load != NULL;

    for (int i = 0; ok && i < n; i++)
        v[i] = (struct item){tokens[i], i};
    if (ok)
        qsort(v, (size_t)n, sizeof *v, longer_first);
    for (int i = 0; ok && i < n; i++) {
        uint32_t best = 0;
        for (uint32_t r = 1; r < ranks; r++)
            if (load[r] < load[best])
                best = r;
        load[best] += v[i].tokens;
        order[i] = v[i].index;
        owner[v[i].index] = best;
    }
    free(v);
    free(load);
    return ok ? 0 : -ENOMEM;
}
