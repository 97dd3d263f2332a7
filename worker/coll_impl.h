/* coll_impl.h - what an implementation of coll.h supplies: moving pieces.
 *
 * Sums, shards and the order of additions live once in coll.c, so that every
 * implementation gives the same bits. */
#ifndef WORKER_COLL_IMPL_H
#define WORKER_COLL_IMPL_H

#include "worker/coll.h"

#ifdef __cplusplus
extern "C" {
#endif

/* bytes > 0. The k-th piece sent to a peer is the k-th one received from us there. */
struct coll_piece {
    uint32_t peer;
    void *data;
    size_t bytes;
};

struct coll_move {
    const struct coll_piece *send, *recv;
    int n_send, n_recv;
    int64_t timeout_ms;
};

struct coll_impl {
    /* Returns when all pieces are received and ours may be overwritten: 0,
     * -ETIMEDOUT, -ECONNRESET, -EIO, -ENOMEM. Never called again after a failure. */
    int (*move)(void *self, const struct coll_move *m, struct err *err);
    void (*close)(void *self);
};

int coll_local_open(const struct coll_opts *o, const struct coll_impl **ret_impl, void **ret_self,
                    struct err *err);
int coll_gloo_open(const struct coll_opts *o, const struct coll_impl **ret_impl, void **ret_self,
                   struct err *err);

#ifdef __cplusplus
}
#endif

#endif
