/* coll_device.c - the sum over ranks where the gradient lies: in a device's memory.
 *
 * The same shards and the same order of additions as on the host (coll.c), so the
 * same bits: pieces go from device to device over NCCL, the addition is the
 * backend's gather. The doubles are few; everybody gets everybody's and adds. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limit.h"
#include "worker/coll_impl.h"

enum { COLS = 1024 }; /* floats of one row of a shard: a multiple of KN_LD */

struct coll_device {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    struct coll_nccl *nccl;
    uint32_t rank, ranks;
    int64_t timeout_ms;
    size_t nf, nd;  /* what the buffers below are for                               */
    size_t stride;  /* floats from one rank's shard to the next in `in`             */
    float *in;      /* device (ranks, stride): our shard as each rank brought it    */
    double *in_d;   /* device (ranks, nd)                                           */
    int32_t *start; /* device (rows + 1)                                            */
    int32_t *idx;   /* device (rows, ranks - 1): rows of `in` but rank 0's          */
    double *host_d; /* (ranks, nd)                                                  */
};

static void buffers_free(struct coll_device *v)
{
    v->ops->free(v->ctx, v->in);
    v->ops->free(v->ctx, v->in_d);
    v->ops->free(v->ctx, v->start);
    v->ops->free(v->ctx, v->idx);
    free(v->host_d);
    v->in = NULL;
    v->in_d = v->host_d = NULL;
    v->start = v->idx = NULL;
    v->nf = v->nd = 0;
}

/* Which rows of `in` make up a row of the shard, in rank order. */
static int index_load(struct coll_device *v, size_t rows)
{
    const size_t others = v->ranks - 1;
    int32_t *host = malloc((rows + 1 + rows * others) * sizeof *host), *idx = host + rows + 1;
    int r = 0;

    if (!host)
        return -ENOMEM;
    for (size_t i = 0; i <= rows; i++)
        host[i] = (int32_t)(i * others);
    for (size_t i = 0; i < rows; i++)
        for (size_t p = 0; p < others; p++)
            idx[i * others + p] = (int32_t)((p + 1) * (v->stride / COLS) + i);
    r = v->ops->copy(v->ctx, v->start, host, (rows + 1) * sizeof *host, KN_TO_DEVICE);
    if (r == 0)
        r = v->ops->copy(v->ctx, v->idx, idx, rows * others * sizeof *host, KN_TO_DEVICE);
    free(host);
    return r;
}

static int buffers_make(struct coll_device *v, size_t nf, size_t nd)
{
    const size_t longest = coll_shard_of(nf, v->ranks, 0).end;
    const size_t rows = (longest + COLS - 1) / COLS;
    int r;

    if (nf == v->nf && nd <= v->nd)
        return 0;
    buffers_free(v);
    v->stride = rows * COLS;
    if ((size_t)v->ranks * (rows + 1) > INT32_MAX)
        return -EINVAL;
    r = v->ops->alloc(v->ctx, v->ranks * v->stride * sizeof *v->in, (void **)&v->in);
    if (r == 0)
        r = v->ops->alloc(v->ctx, v->ranks * nd * sizeof *v->in_d, (void **)&v->in_d);
    if (r == 0)
        r = v->ops->alloc(v->ctx, (rows + 1) * sizeof *v->start, (void **)&v->start);
    if (r == 0)
        r = v->ops->alloc(v->ctx, (rows * v->ranks + 1) * sizeof *v->idx, (void **)&v->idx);
    v->host_d = malloc(v->ranks * nd * sizeof *v->host_d + 1);
    if (r == 0 && !v->host_d)
        r = -ENOMEM;
    if (r == 0)
        r = index_load(v, rows);
    if (r < 0)
        buffers_free(v);
    v->nf = r == 0 ? nf : 0;
    v->nd = r == 0 ? nd : 0;
    return r;
}

int coll_device_open(const struct coll_opts *o, const struct kn_ops *ops, struct kn_ctx *ctx,
                     struct coll_device **ret, struct err *err)
{
    struct coll_device *v = calloc(1, sizeof *v);
    int r;

    if (!v)
        return err_set(err, -ENOMEM, "no memory for a group of ranks");
    *v = (struct coll_device){
        .ops = ops, .ctx = ctx, .rank = o->rank, .ranks = o->ranks, .timeout_ms = o->timeout_ms};
    r = coll_nccl_open(o, ops, ctx, &v->nccl, err);
    if (r < 0) {
        free(v);
        return r;
    }
    *ret = v;
    return 0;
}

void coll_device_close(struct coll_device *v)
{
    if (!v)
        return;
    coll_nccl_close(v->nccl); /* first: what is queued must end */
    buffers_free(v);
    free(v);
}

/* y (rows of COLS, then one shorter row) += the other ranks' rows, in rank order. */
static int add_in_order(struct coll_device *v, float *y, size_t n)
{
    const int64_t rows = (int64_t)(n / COLS), tail = (int64_t)(n % COLS);
    const int64_t in_rows = (int64_t)(v->ranks * (v->stride / COLS));
    struct kn_gather g = {
        .y = {y, rows, COLS, COLS, KN_F32},
        .add = true,
        .x = {v->in, in_rows, COLS, COLS, KN_F32},
        .start = v->start,
        .idx = v->idx,
    };
    int r = rows > 0 ? v->ops->gather(v->ctx, &g) : 0;

    if (r == 0 && tail > 0) {
        g.y = (struct kn_mat){y + rows * COLS, 1, tail, COLS, KN_F32};
        g.x.cols = tail;
        g.start = v->start + rows;
        r = v->ops->gather(v->ctx, &g);
    }
    return r;
}

/* Pieces of the first exchange: our values of everybody's shard, everybody's of ours. */
static int exchange(struct coll_device *v, float *f, size_t nf, size_t nd, struct err *err)
{
    struct coll_piece send[2 * LIMIT_RANKS], recv[2 * LIMIT_RANKS];
    struct coll_move m = {send, recv, 0, 0, v->timeout_ms};
    const struct coll_shard mine = coll_shard_of(nf, v->ranks, v->rank);

    for (uint32_t p = 0; p < v->ranks; p++) {
        const struct coll_shard s = coll_shard_of(nf, v->ranks, p);
        if (p == v->rank)
            continue;
        coll_piece_add(send, &m.n_send, p, f + s.begin, (s.end - s.begin) * sizeof *f);
        coll_piece_add(send, &m.n_send, p, v->in_d + v->rank * nd, nd * sizeof *v->in_d);
        coll_piece_add(recv, &m.n_recv, p, v->in + p * v->stride,
                       (mine.end - mine.begin) * sizeof *f);
        coll_piece_add(recv, &m.n_recv, p, v->in_d + p * nd, nd * sizeof *v->in_d);
    }
    return coll_nccl_queue(v->nccl, &m, err);
}

static int spread(struct coll_device *v, float *f, size_t nf, struct err *err)
{
    struct coll_piece send[LIMIT_RANKS], recv[LIMIT_RANKS];
    struct coll_move m = {send, recv, 0, 0, v->timeout_ms};
    const struct coll_shard mine = coll_shard_of(nf, v->ranks, v->rank);

    for (uint32_t p = 0; p < v->ranks; p++) {
        const struct coll_shard s = coll_shard_of(nf, v->ranks, p);
        if (p == v->rank)
            continue;
        coll_piece_add(send, &m.n_send, p, f + mine.begin, (mine.end - mine.begin) * sizeof *f);
        coll_piece_add(recv, &m.n_recv, p, f + s.begin, (s.end - s.begin) * sizeof *f);
    }
    return coll_nccl_queue(v->nccl, &m, err);
}

static int device_failed(int r, struct err *err)
{
    return r < 0 ? err_set(err, r, "adding the ranks' gradients failed: %s", strerror(-r)) : 0;
}

/* Our own place in `in` and in_d; our shard then holds rank 0's values, to be added to. */
static int place_own(struct coll_device *v, const float *f, size_t n, const double *d, size_t nd)
{
    int r = v->ops->copy(v->ctx, v->in + v->rank * v->stride, f, n * sizeof *f, KN_ON_DEVICE);

    if (r == 0)
        r = v->ops->copy(v->ctx, v->in_d + v->rank * nd, d, nd * sizeof *d, KN_TO_DEVICE);
    return r;
}

static int take_doubles(struct coll_device *v, double *d, size_t nd)
{
    const int r = v->ops->copy(v->ctx, v->host_d, v->in_d, v->ranks * nd * sizeof *d, KN_TO_HOST);

    for (size_t i = 0; r == 0 && i < nd; i++) {
        double acc = v->host_d[i];
        for (uint32_t p = 1; p < v->ranks; p++)
            acc += v->host_d[p * nd + i];
        d[i] = acc;
    }
    return r;
}

int coll_device_sum(struct coll_device *v, float *f, size_t nf, double *d, size_t nd,
                    struct err *err)
{
    const struct coll_shard mine = coll_shard_of(nf, v->ranks, v->rank);
    const size_t n = mine.end - mine.begin;
    int r = buffers_make(v, nf, nd);

    if (r == 0)
        r = place_own(v, f + mine.begin, n, d, nd);
    if (r < 0)
        return device_failed(r, err);
    r = exchange(v, f, nf, nd, err);
    if (r < 0)
        return r;
    r = v->ops->copy(v->ctx, f + mine.begin, v->in, n * sizeof *f, KN_ON_DEVICE);
    if (r == 0)
        r = add_in_order(v, f + mine.begin, n);
    if (r < 0)
        return device_failed(r, err);
    r = spread(v, f, nf, err);
    if (r == 0)
        r = coll_nccl_wait(v->nccl, v->timeout_ms, err);
    return r < 0 ? r : device_failed(take_doubles(v, d, nd), err);
}
