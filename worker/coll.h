/* coll.h - what the ranks of one gang do together.
 *
 * Implementations chosen by coll_open(): "gloo" (host buffers over TCP on
 * loopback), "local" (ranks are threads of one process; tests), and with one
 * rank nothing at all; "nccl" joins later. All ranks call the same operations in
 * the same order with the same counts.
 *
 * Failure is final: after the first error every later call returns the same
 * error at once; the rank closes and exits, the gang ends, a new attempt
 * resumes from the checkpoint. Not thread-safe; one thread per rank. */
#ifndef WORKER_COLL_H
#define WORKER_COLL_H

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"

struct coll;

/* Where ranks meet: a store of small values, relayed by the supervisor and the
 * daemon (service.md 19). get waits up to timeout_ms. Return 0 or -errno. */
struct coll_store {
    int (*put)(void *arg, const char *key, const void *value, size_t bytes);
    int (*get)(void *arg, const char *key, void *value, size_t cap, size_t *ret_bytes,
               int64_t timeout_ms);
    void *arg;
};

struct coll_opts {
    const char *backend; /* "gloo", "local"; ignored when ranks == 1                */
    uint32_t rank, ranks;
    const struct coll_store *store; /* gloo                                         */
    void *local;                    /* local: from coll_local_new()                 */
    int64_t timeout_ms;             /* each operation                               */
};

/* Returns 0, -ENOTSUP, -ETIMEDOUT, -ECONNRESET, -EIO. */
int coll_open(const struct coll_opts *o, struct coll **ret, struct err *err);
void coll_close(struct coll *c); /* never blocks on a peer; NULL is a no-op */

uint32_t coll_rank(const struct coll *c);
uint32_t coll_ranks(const struct coll *c);

/* f[i] and d[i] become their sums over ranks, added in rank order 0, 1, ...:
 * exchange of shards, addition, all-gather (numerics.md 7), so that every rank
 * holds the same bits, the same for every implementation. In place.
 * Returns 0, -ETIMEDOUT, -ECONNRESET (a peer is gone), -EIO. */
int coll_sum(struct coll *c, float *f, size_t nf, double *d, size_t nd, struct err *err);

/* buf of rank root replaces buf on the others. */
int coll_broadcast(struct coll *c, void *buf, size_t bytes, uint32_t root, struct err *err);

/* Threads of one process as ranks (tests). */
void *coll_local_new(uint32_t ranks);
void coll_local_free(void *local);

#endif
