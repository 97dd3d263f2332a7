/* refcache.h - log-probs of the reference (the base, adapter off), once per row, per
 * token, kept in memory for an attempt.
 *
 * A row's numbers do not depend on its micro-batch or rank (numerics.md 5), so
 * whoever needs a row computes it, and it is the same everywhere. */
#ifndef WORKER_REFCACHE_H
#define WORKER_REFCACHE_H

#include "worker/engine.h"

struct refcache {
    const struct example *set; /* borrowed                                           */
    int64_t n;
    float **rows;   /* (n) NULL: not computed yet; else one value per head row       */
    int64_t misses; /* rows computed                                                 */
};

int refcache_init(struct refcache *c, const struct example *set, int64_t n);
void refcache_fini(struct refcache *c); /* NULL is a no-op */

/* Computes what is missing of set[idx[0..n)], in micro-batches of `budget` tokens.
 * out is scratch with room for a micro-batch. */
int refcache_fill(struct refcache *c, struct engine *e, const uint32_t *idx, int n, int64_t budget,
                  struct head_out *out, struct err *err);

/* Of set[i]; NULL when it was never filled. */
const float *refcache_get(const struct refcache *c, int64_t i);

#endif
