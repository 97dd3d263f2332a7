/* coll_nccl.c - pieces between devices over NCCL, queued on a context's stream.
 *
 * NCCL is opened at run time; the few of its names used here have had the same
 * ABI since 2.14, so no header of it is needed to build (tests compare the two).
 * The communicator is non-blocking: nothing here waits but nccl_wait, which polls
 * the stream, NCCL's asynchronous error, the supervisor's word and the clock. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/limit.h"
#include "worker/coll_impl.h"
#include "worker/nccl_abi.h"

#define NCCL_LIBRARY "libnccl.so.2"

enum { CLOSE_MS = 2000, SPIN_LOOKS = 200, LOOK_NS = 20000 };

struct nccl_api {
    int (*get_version)(int *);
    int (*get_unique_id)(struct nccl_id *);
    int (*comm_init_rank_config)(void **, int, struct nccl_id, int, struct nccl_config *);
    int (*comm_get_async_error)(void *, int *);
    int (*comm_finalize)(void *);
    int (*comm_destroy)(void *);
    int (*comm_abort)(void *);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*send)(const void *, size_t, int, int, void *, void *);
    int (*recv)(void *, size_t, int, int, void *, void *);
    const char *(*error_string)(int);
    const char *(*last_error)(void *); /* NULL: it does not say more                    */
};

struct coll_nccl {
    struct nccl_api api;
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    void *comm; /* NULL: aborted                                                    */
    bool (*lost)(void *arg);
    void *lost_arg;
};

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int load(struct coll_nccl *n, struct err *err)
{
    const struct {
        const char *name;
        void *to;
    } want[] = {
        {"ncclGetVersion", &n->api.get_version},
        {"ncclGetUniqueId", &n->api.get_unique_id},
        {"ncclCommInitRankConfig", &n->api.comm_init_rank_config},
        {"ncclCommGetAsyncError", &n->api.comm_get_async_error},
        {"ncclCommFinalize", &n->api.comm_finalize},
        {"ncclCommDestroy", &n->api.comm_destroy},
        {"ncclCommAbort", &n->api.comm_abort},
        {"ncclGroupStart", &n->api.group_start},
        {"ncclGroupEnd", &n->api.group_end},
        {"ncclSend", &n->api.send},
        {"ncclRecv", &n->api.recv},
        {"ncclGetErrorString", &n->api.error_string},
    };

    void *const more = kn_symbol(n->ops, NCCL_LIBRARY, "ncclGetLastError");

    /* All ranks are on this machine: nobody else may talk to NCCL's sockets. */
    (void)setenv("NCCL_SOCKET_IFNAME", "lo", 0);
    memcpy(&n->api.last_error, &more, sizeof more);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        void *const f = kn_symbol(n->ops, NCCL_LIBRARY, want[i].name);
        if (!f)
            return err_set(err, -ENOTSUP,
                           i == 0 ? "NCCL (libnccl.so.2) is not on this host"
                                  : "NCCL on this host has no %s: 2.14 or later is needed",
                           want[i].name);
        memcpy(want[i].to, &f, sizeof f); /* ISO C has no cast from data to function */
    }
    return 0;
}

/* NCCL's codes as errno, with a sentence. */
static int nccl_err(const struct coll_nccl *n, int code, struct err *err)
{
    const char *text = n->api.error_string(code);
    const char *more = n->api.last_error ? n->api.last_error(n->comm) : NULL;

    if (code == NCCL_REMOTE_ERROR)
        return err_set(err, -ECONNRESET, "a peer is gone (NCCL: %s)", text);
    return err_set(err, -EIO, "ranks cannot exchange data: NCCL: %s%s%.600s", text,
                   more && *more ? ": " : "", more ? more : "");
}

static void give_up(struct coll_nccl *n)
{
    if (n->comm)
        (void)n->api.comm_abort(n->comm);
    n->comm = NULL;
}

/* Pauses between looks: none at first, a collective of one step is short. */
static void pause_after(int looks)
{
    if (looks > SPIN_LOOKS)
        nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
}

/* Waits until done() says 1 or fails; else a peer is gone, NCCL failed, or time is up. */
static int nccl_until(struct coll_nccl *n, int (*done)(struct coll_nccl *n, int async),
                      int64_t timeout_ms, struct err *err)
{
    const int64_t deadline = now_ms() + timeout_ms;

    for (int looks = 0;; looks += looks < INT_MAX) {
        int async = NCCL_SUCCESS;
        int r = n->api.comm_get_async_error(n->comm, &async);
        if (r != NCCL_SUCCESS || (async != NCCL_SUCCESS && async != NCCL_IN_PROGRESS))
            return nccl_err(n, r != NCCL_SUCCESS ? r : async, err);
        r = done(n, async);
        if (r != 0)
            return r > 0 ? 0 : err_set(err, r, "the device failed: %s", strerror(-r));
        if (n->lost && n->lost(n->lost_arg))
            return err_set(err, -ECONNRESET, "a peer is gone (the supervisor says so)");
        if (now_ms() >= deadline)
            return err_set(err, -ETIMEDOUT, "the other ranks did not answer within %lld ms",
                           (long long)timeout_ms);
        pause_after(looks);
    }
}

static int is_ready(struct coll_nccl *n, int async)
{
    (void)n;
    return async == NCCL_SUCCESS;
}

static int is_done(struct coll_nccl *n, int async)
{
    return async == NCCL_SUCCESS ? n->ops->poll(n->ctx) : 0;
}

bool coll_nccl_here(const struct kn_ops *ops, struct kn_ctx *ctx)
{
    return ops->stream(ctx) && kn_symbol(ops, NCCL_LIBRARY, "ncclGetVersion");
}

/* The id is made in rank 0 (NCCL listens there) and relayed as one value. */
static int meet(struct coll_nccl *n, const struct coll_opts *o, struct nccl_id *id, struct err *err)
{
    size_t bytes = 0;
    int r;

    if (o->rank == 0) {
        r = n->api.get_unique_id(id);
        if (r != NCCL_SUCCESS)
            return nccl_err(n, r, err);
        r = o->store->put(o->store->arg, "nccl", id, sizeof *id);
    } else {
        r = o->store->get(o->store->arg, "nccl", id, sizeof *id, &bytes, o->timeout_ms);
        if (r == 0 && bytes != sizeof *id)
            r = -EBADMSG;
    }
    return r < 0 ? err_set(err, r, "the ranks could not meet: %s", strerror(-r)) : 0;
}

int coll_nccl_open(const struct coll_opts *o, const struct kn_ops *ops, struct kn_ctx *ctx,
                   struct coll_nccl **ret, struct err *err)
{
    struct nccl_config config = {.size = sizeof config,
                                 .magic = NCCL_CONFIG_MAGIC,
                                 .version = NCCL_CONFIG_VERSION,
                                 .blocking = 0};
    struct coll_nccl *n = calloc(1, sizeof *n);
    struct nccl_id id;
    int r;

    if (!n)
        return err_set(err, -ENOMEM, "no memory for a group of ranks");
    *n = (struct coll_nccl){.ops = ops, .ctx = ctx, .lost = o->lost, .lost_arg = o->lost_arg};
    r = load(n, err);
    if (r == 0)
        r = meet(n, o, &id, err);
    if (r == 0) {
        r = n->api.comm_init_rank_config(&n->comm, (int)o->ranks, id, (int)o->rank, &config);
        if (r != NCCL_SUCCESS && r != NCCL_IN_PROGRESS)
            r = nccl_err(n, r, err);
        else
            r = nccl_until(n, is_ready, o->timeout_ms, err);
    }
    if (r < 0) {
        give_up(n);
        free(n);
        return r;
    }
    *ret = n;
    return 0;
}

static int queue_pieces(struct coll_nccl *n, const struct coll_piece *v, int n_pieces, bool send)
{
    void *const stream = n->ops->stream(n->ctx);
    int r = NCCL_SUCCESS;

    for (int i = 0; i < n_pieces && (r == NCCL_SUCCESS || r == NCCL_IN_PROGRESS); i++)
        r = send ? n->api.send(v[i].data, v[i].bytes, NCCL_INT8, (int)v[i].peer, n->comm, stream)
                 : n->api.recv(v[i].data, v[i].bytes, NCCL_INT8, (int)v[i].peer, n->comm, stream);
    return r;
}

int coll_nccl_queue(struct coll_nccl *n, const struct coll_move *m, struct err *err)
{
    int r = n->api.group_start();

    if (r == NCCL_SUCCESS || r == NCCL_IN_PROGRESS)
        r = queue_pieces(n, m->send, m->n_send, true);
    if (r == NCCL_SUCCESS || r == NCCL_IN_PROGRESS)
        r = queue_pieces(n, m->recv, m->n_recv, false);
    const int end = n->api.group_end(); /* every start has its end, also after a failure */
    if (r == NCCL_SUCCESS || r == NCCL_IN_PROGRESS)
        r = end;
    if (r != NCCL_SUCCESS && r != NCCL_IN_PROGRESS)
        r = nccl_err(n, r, err);
    else /* not before NCCL has launched may the next thing be queued */
        r = nccl_until(n, is_ready, m->timeout_ms, err);
    if (r < 0)
        give_up(n);
    return r;
}

int coll_nccl_wait(struct coll_nccl *n, int64_t timeout_ms, struct err *err)
{
    const int r = nccl_until(n, is_done, timeout_ms, err);

    if (r < 0)
        give_up(n);
    return r;
}

/* A peer may still be reading what we sent last: a while for that, then no longer. */
void coll_nccl_close(struct coll_nccl *n)
{
    if (!n)
        return;
    if (n->comm) {
        const int r = n->api.comm_finalize(n->comm);
        if ((r == NCCL_SUCCESS || r == NCCL_IN_PROGRESS) &&
            nccl_until(n, is_ready, CLOSE_MS, NULL) == 0) {
            (void)n->api.comm_destroy(n->comm);
            n->comm = NULL;
        }
    }
    give_up(n);
    free(n);
}
