/* refcache.c - see refcache.h. */
#include "worker/refcache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int refcache_init(struct refcache *c, const struct example *set, int64_t n)
{
    *c = (struct refcache){.set = set, .n = n};
    c->rows = calloc(n > 0 ? (size_t)n : 1, sizeof *c->rows);
    return c->rows != NULL ? 0 : -ENOMEM;
}

void refcache_fini(struct refcache *c)
{
    if (c == NULL || c->rows == NULL)
        return;
    for (int64_t i = 0; i < c->n; i++)
        free(c->rows[i]);
    free(c->rows);
    c->rows = NULL;
}

const float *refcache_get(const struct refcache *c, int64_t i)
{
    return c->rows[i];
}

/* Head rows of one example lie together, in the order they are kept in. */
static int keep(struct refcache *c, const struct batch *b, const struct head_out *out)
{
    int64_t h = 0;

    for (int i = 0; i < b->n_examples; i++) {
        const int64_t h0 = h;
        float **row = &c->rows[b->step_index[i]];

        while (h < b->n_head && b->head_example[h] == i)
            h++;
        *row = malloc((h > h0 ? (size_t)(h - h0) : 1) * sizeof **row);
        if (*row == NULL)
            return -ENOMEM;
        memcpy(*row, out->logp + h0, (size_t)(h - h0) * sizeof **row);
        c->misses++;
    }
    return 0;
}

int refcache_fill(struct refcache *c, struct engine *e, const uint32_t *idx, int n, int64_t budget,
                  struct head_out *out, struct err *err)
{
    const struct example **missing = malloc((n > 0 ? (size_t)n : 1) * sizeof *missing);
    int32_t *where = malloc((n > 0 ? (size_t)n : 1) * sizeof *where);
    struct batch *v = NULL;
    int n_missing = 0, n_batches = 0, r = -ENOMEM;

    if (missing == NULL || where == NULL)
        goto fail;
    for (int i = 0; i < n; i++) {
        if (c->rows[idx[i]] != NULL)
            continue;
        missing[n_missing] = &c->set[idx[i]];
        where[n_missing++] = (int32_t)idx[i];
    }
    r = batch_pack(missing, where, n_missing, budget, true, &v, &n_batches);
    for (int i = 0; r == 0 && i < n_batches; i++) {
        r = engine_forward(e, &v[i], NULL, false, 0, out, err);
        if (r == 0)
            r = keep(c, &v[i], out);
    }

fail:
    if (r == -ENOMEM)
        err_set(err, r, "out of memory while keeping the reference's log-probabilities");
    batch_free_all(v, n_batches);
    free(missing);
    free(where);
    return r;
}
