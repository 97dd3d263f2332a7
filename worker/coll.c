/* coll.c - see coll.h. Sums by shards over any implementation that moves bytes. */
#include "worker/coll.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limit.h"
#include "worker/coll_impl.h"

struct coll {
    uint32_t rank, ranks;
    int64_t timeout_ms;
    const struct coll_impl *impl; /* NULL: one rank                               */
    void *self;
    int failed; /* the first error, returned ever after                           */
    struct err why;
    char *scratch; /* our shard as the other ranks brought it                     */
    size_t scratch_bytes;
    struct coll_opts opts; /* as given; store points to the copy beside it          */
    struct coll_store store;
    struct coll_device *device; /* NULL: not attached                              */
};

static size_t shard_len(struct coll_shard s)
{
    return s.end - s.begin;
}

static int coll_fail(struct coll *c, int r, struct err *err)
{
    c->failed = r;
    if (err)
        c->why = *err;
    return r;
}

static int coll_failed(const struct coll *c, struct err *err)
{
    return c->failed ? err_set(err, c->failed, "%s", c->why.text) : 0;
}

static int coll_reserve(struct coll *c, size_t bytes)
{
    if (bytes <= c->scratch_bytes)
        return 0;
    char *p = realloc(c->scratch, bytes);
    if (!p)
        return -ENOMEM;
    c->scratch = p;
    c->scratch_bytes = bytes;
    return 0;
}

int coll_open(const struct coll_opts *o, struct coll **ret, struct err *err)
{
    struct coll *c;
    int r;

    if (o->ranks < 1 || o->ranks > LIMIT_RANKS || o->rank >= o->ranks || o->timeout_ms <= 0)
        return err_set(err, -EINVAL, "rank %u of %u ranks is not possible (1 to %d ranks)", o->rank,
                       o->ranks, LIMIT_RANKS);
    c = calloc(1, sizeof *c);
    if (!c)
        return err_set(err, -ENOMEM, "no memory for a group of ranks");
    c->rank = o->rank;
    c->ranks = o->ranks;
    c->timeout_ms = o->timeout_ms;
    c->opts = *o;
    if (o->store) {
        c->store = *o->store;
        c->opts.store = &c->store;
    }
    if (o->ranks == 1)
        r = 0;
    else if (strcmp(o->backend, "local") == 0)
        r = coll_local_open(o, &c->impl, &c->self, err);
    else if (strcmp(o->backend, "gloo") == 0 || strcmp(o->backend, "nccl") == 0)
        r = coll_gloo_open(o, &c->impl, &c->self, err);
    else
        r = err_set(err, -ENOTSUP, "this build has no collectives called \"%s\" (gloo, nccl)",
                    o->backend);
    if (r < 0) {
        free(c);
        return r;
    }
    *ret = c;
    return 0;
}

void coll_close(struct coll *c)
{
    if (!c)
        return;
    coll_detach(c);
    if (c->impl)
        c->impl->close(c->self);
    free(c->scratch);
    free(c);
}

uint32_t coll_rank(const struct coll *c)
{
    return c->rank;
}

uint32_t coll_ranks(const struct coll *c)
{
    return c->ranks;
}

/* Everybody's values of everybody's shard to its owner; then our shard, added in
 * rank order. Incoming floats lie in scratch by rank, the doubles behind them. */
static int sum_reduce(struct coll *c, float *f, size_t nf, double *d, size_t nd, struct err *err)
{
    struct coll_piece send[2 * LIMIT_RANKS], recv[2 * LIMIT_RANKS];
    struct coll_move m = {send, recv, 0, 0, c->timeout_ms};
    const struct coll_shard mf = coll_shard_of(nf, c->ranks, c->rank),
                            md = coll_shard_of(nd, c->ranks, c->rank);
    const size_t lf = shard_len(mf), ld = shard_len(md);
    double *in_d;
    float *in_f;
    int r;

    r = coll_reserve(c, c->ranks * (ld * sizeof *d + lf * sizeof *f));
    if (r < 0)
        return err_set(err, r, "no memory for the sum over ranks");
    in_d = (double *)(void *)c->scratch; /* doubles first: aligned for both */
    in_f = (float *)(void *)(in_d + c->ranks * ld);

    for (uint32_t p = 0; p < c->ranks; p++) {
        const struct coll_shard pf = coll_shard_of(nf, c->ranks, p),
                                pd = coll_shard_of(nd, c->ranks, p);
        if (p == c->rank)
            continue;
        coll_piece_add(send, &m.n_send, p, f + pf.begin, shard_len(pf) * sizeof *f);
        coll_piece_add(send, &m.n_send, p, d + pd.begin, shard_len(pd) * sizeof *d);
        coll_piece_add(recv, &m.n_recv, p, in_f + p * lf, lf * sizeof *f);
        coll_piece_add(recv, &m.n_recv, p, in_d + p * ld, ld * sizeof *d);
    }
    r = c->impl->move(c->self, &m, err);
    if (r < 0)
        return r;

    if (lf > 0)
        memcpy(in_f + c->rank * lf, f + mf.begin, lf * sizeof *f);
    if (ld > 0)
        memcpy(in_d + c->rank * ld, d + md.begin, ld * sizeof *d);
    for (size_t i = 0; i < lf; i++) {
        float acc = in_f[i];
        for (uint32_t p = 1; p < c->ranks; p++)
            acc += in_f[p * lf + i];
        f[mf.begin + i] = acc;
    }
    for (size_t i = 0; i < ld; i++) {
        double acc = in_d[i];
        for (uint32_t p = 1; p < c->ranks; p++)
            acc += in_d[p * ld + i];
        d[md.begin + i] = acc;
    }
    return 0;
}

static int sum_gather(struct coll *c, float *f, size_t nf, double *d, size_t nd, struct err *err)
{
    struct coll_piece send[2 * LIMIT_RANKS], recv[2 * LIMIT_RANKS];
    struct coll_move m = {send, recv, 0, 0, c->timeout_ms};
    const struct coll_shard mf = coll_shard_of(nf, c->ranks, c->rank),
                            md = coll_shard_of(nd, c->ranks, c->rank);

    for (uint32_t p = 0; p < c->ranks; p++) {
        const struct coll_shard pf = coll_shard_of(nf, c->ranks, p),
                                pd = coll_shard_of(nd, c->ranks, p);
        if (p == c->rank)
            continue;
        coll_piece_add(send, &m.n_send, p, f + mf.begin, shard_len(mf) * sizeof *f);
        coll_piece_add(send, &m.n_send, p, d + md.begin, shard_len(md) * sizeof *d);
        coll_piece_add(recv, &m.n_recv, p, f + pf.begin, shard_len(pf) * sizeof *f);
        coll_piece_add(recv, &m.n_recv, p, d + pd.begin, shard_len(pd) * sizeof *d);
    }
    return c->impl->move(c->self, &m, err);
}

int coll_sum(struct coll *c, float *f, size_t nf, double *d, size_t nd, struct err *err)
{
    struct err why = {""};
    int r = coll_failed(c, err);

    if (r < 0)
        return r;
    if (!c->impl || (nf == 0 && nd == 0))
        return 0;
    r = sum_reduce(c, f, nf, d, nd, &why);
    if (r == 0)
        r = sum_gather(c, f, nf, d, nd, &why);
    if (r < 0) {
        coll_fail(c, r, &why);
        return coll_failed(c, err);
    }
    return 0;
}

int coll_broadcast(struct coll *c, void *buf, size_t bytes, uint32_t root, struct err *err)
{
    struct coll_piece send[LIMIT_RANKS], recv[1];
    struct coll_move m = {send, recv, 0, 0, c->timeout_ms};
    struct err why = {""};
    int r = coll_failed(c, err);

    if (r < 0)
        return r;
    if (root >= c->ranks)
        return err_set(err, -EINVAL, "no rank %u among %u", root, c->ranks);
    if (!c->impl || bytes == 0)
        return 0;
    for (uint32_t p = 0; p < c->ranks; p++)
        if (c->rank == root && p != root)
            coll_piece_add(send, &m.n_send, p, buf, bytes);
    if (c->rank != root)
        coll_piece_add(recv, &m.n_recv, root, buf, bytes);
    r = c->impl->move(c->self, &m, &why);
    if (r < 0) {
        coll_fail(c, r, &why);
        return coll_failed(c, err);
    }
    return 0;
}

int coll_attach(struct coll *c, const struct kn_ops *ops, struct kn_ctx *ctx, struct err *err)
{
    struct err why = {""};
    double here = 0;
    int r;

    if (c->ranks == 1 || strcmp(c->opts.backend, "nccl") != 0)
        return err_set(err, -ENOTSUP, "this group of ranks does not join devices");
    here = coll_nccl_here(ops, ctx) ? 1 : 0;
    r = coll_sum(c, NULL, 0, &here, 1, err);
    if (r < 0)
        return r;
    if (here < c->ranks)
        return err_set(err, -ENOTSUP, "NCCL (libnccl.so.2) is on the hosts of %.0f of %u ranks",
                       here, c->ranks);
    r = coll_device_open(&c->opts, ops, ctx, &c->device, &why);
    if (r < 0) {
        coll_fail(c, r, &why);
        return coll_failed(c, err);
    }
    return 0;
}

void coll_detach(struct coll *c)
{
    if (!c)
        return;
    coll_device_close(c->device);
    c->device = NULL;
}

bool coll_attached(const struct coll *c)
{
    return c && c->device;
}

int coll_sum_device(struct coll *c, float *f, size_t nf, double *d, size_t nd, struct err *err)
{
    struct err why = {""};
    int r = coll_failed(c, err);

    if (r < 0)
        return r;
    r = coll_device_sum(c->device, f, nf, d, nd, &why);
    if (r < 0) {
        coll_fail(c, r, &why);
        return coll_failed(c, err);
    }
    return 0;
}
