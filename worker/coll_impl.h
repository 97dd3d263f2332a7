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

/* A shard [begin, end) of n elements: whole cache lines of floats, the last ones shorter. */
struct coll_shard {
    size_t begin, end;
};

static inline struct coll_shard coll_shard_of(size_t n, uint32_t ranks, uint32_t r)
{
    const size_t each = ((n + ranks - 1) / ranks + 15) / 16 * 16;
    const size_t begin = each * r < n ? each * r : n;
    struct coll_shard s;

    s.begin = begin;
    s.end = begin + each < n ? begin + each : n;
    return s;
}

static inline void coll_piece_add(struct coll_piece *v, int *n, uint32_t peer, void *data,
                                  size_t bytes)
{
    struct coll_piece p;

    if (bytes == 0)
        return;
    p.peer = peer;
    p.data = data;
    p.bytes = bytes;
    v[(*n)++] = p;
}

/* Device to device: moves are queued on ctx's stream in the order of the calls. After a
 * failure the communicator is aborted, so the stream comes to an end. */
struct coll_nccl;
int coll_nccl_open(const struct coll_opts *o, const struct kn_ops *ops, struct kn_ctx *ctx,
                   struct coll_nccl **ret, struct err *err);
int coll_nccl_queue(struct coll_nccl *n, const struct coll_move *m, struct err *err);
int coll_nccl_wait(struct coll_nccl *n, int64_t timeout_ms, struct err *err);
void coll_nccl_close(struct coll_nccl *n);
bool coll_nccl_here(const struct kn_ops *ops, struct kn_ctx *ctx);

/* Sums over it (coll_device.c); what coll_attach and coll_sum_device say. */
struct coll_device;
int coll_device_open(const struct coll_opts *o, const struct kn_ops *ops, struct kn_ctx *ctx,
                     struct coll_device **ret, struct err *err);
int coll_device_sum(struct coll_device *v, float *f, size_t nf, double *d, size_t nd,
                    struct err *err);
void coll_device_close(struct coll_device *v);

int coll_local_open(const struct coll_opts *o, const struct coll_impl **ret_impl, void **ret_self,
                    struct err *err);
int coll_gloo_open(const struct coll_opts *o, const struct coll_impl **ret_impl, void **ret_self,
                   struct err *err);

#ifdef __cplusplus
}
#endif

#endif
