/* coll.h - what the ranks of one gang do together.
 *
 * Implementations chosen by coll_open(): "gloo" (host buffers over TCP on
 * loopback), "nccl" (the same for what lies on the host, and coll_attach joins the
 * ranks' devices), "local" (ranks are threads of one process; tests), and with one
 * rank nothing at all. All ranks call the same operations in the same order with
 * the same counts.
 *
 * Failure is final: after the first error every later call returns the same
 * error at once; the rank closes and exits, the gang ends, a new attempt
 * resumes from the checkpoint. Not thread-safe; one thread per rank. */
#ifndef WORKER_COLL_H
#define WORKER_COLL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
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
    const char *backend; /* "gloo", "nccl", "local"; ignored when ranks == 1        */
    uint32_t rank, ranks;
    const struct coll_store *store; /* gloo, nccl; what it points to is copied      */
    void *local;                    /* local: from coll_local_new()                 */
    int64_t timeout_ms;             /* each operation                               */
    /* nccl: says that a peer has ended, which NCCL between GPUs of one machine does not
     * notice. Asked while waiting; NULL: nobody knows.                             */
    bool (*lost)(void *arg);
    void *lost_arg;
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

/* ---- device to device ---- */

/* Joins the ranks' devices, so that gradients need not pass through their hosts; ctx is
 * open on this rank's device and outlives the attachment. All ranks together, and all get
 * the same answer: -ENOTSUP, which breaks nothing: backend is not "nccl", one rank, ops has
 * no stream, or a rank's host has no NCCL; else as coll_open. */
int coll_attach(struct coll *c, const struct kn_ops *ops, struct kn_ctx *ctx, struct err *err);
void coll_detach(struct coll *c); /* before ctx closes; at most 2 s; NULL is a no-op */
bool coll_attached(const struct coll *c);

/* coll_sum with f in device memory (256-byte aligned) and d on the host: the same bits.
 * Waits until it is done. Attached ranks only. */
int coll_sum_device(struct coll *c, float *f, size_t nf, double *d, size_t nd, struct err *err);

/* Threads of one process as ranks (tests). */
void *coll_local_new(uint32_t ranks);
void coll_local_free(void *local);

#endif
