/* coll_local.c - ranks as threads of one process: it defines the semantics. */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/limit.h"
#include "worker/coll_impl.h"

struct local {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t ranks, waiting;
    uint64_t round; /* barriers passed                                             */
    bool broken;    /* a rank left: nobody waits for it                            */
    const struct coll_move *moves[LIMIT_RANKS];
};

struct member {
    struct local *group;
    uint32_t rank;
};

static struct timespec deadline_in(int64_t ms)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += ms % 1000 * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

/* All ranks, or an error. Called with the mutex held. */
static int local_barrier(struct local *g, const struct timespec *deadline)
{
    const uint64_t round = g->round;

    if (++g->waiting == g->ranks) {
        g->waiting = 0;
        g->round++;
        pthread_cond_broadcast(&g->changed);
        return 0;
    }
    while (g->round == round) {
        if (g->broken)
            return -ECONNRESET;
        if (pthread_cond_timedwait(&g->changed, &g->mutex, deadline) == ETIMEDOUT &&
            g->round == round) {
            g->broken = true; /* failure is final, for everybody */
            pthread_cond_broadcast(&g->changed);
            return -ETIMEDOUT;
        }
    }
    return 0;
}

/* The k-th piece of `from` for us, or NULL. */
static const struct coll_piece *piece_for(const struct coll_move *from, uint32_t rank, int k)
{
    for (int i = 0; i < from->n_send; i++)
        if (from->send[i].peer == rank && k-- == 0)
            return &from->send[i];
    return NULL;
}

static int local_copy(struct local *g, uint32_t rank, const struct coll_move *m)
{
    int taken[LIMIT_RANKS] = {0};

    for (int i = 0; i < m->n_recv; i++) {
        const uint32_t peer = m->recv[i].peer;
        const struct coll_piece *p = piece_for(g->moves[peer], rank, taken[peer]++);
        if (!p || p->bytes != m->recv[i].bytes)
            return -EIO;
        memcpy(m->recv[i].data, p->data, p->bytes);
    }
    return 0;
}

static int local_move(void *self, const struct coll_move *m, struct err *err)
{
    struct member *me = self;
    struct local *g = me->group;
    const struct timespec deadline = deadline_in(m->timeout_ms);
    int r;

    pthread_mutex_lock(&g->mutex);
    g->moves[me->rank] = m;
    r = g->broken ? -ECONNRESET : local_barrier(g, &deadline);
    if (r == 0) {
        pthread_mutex_unlock(&g->mutex); /* everybody copies at once */
        r = local_copy(g, me->rank, m);
        pthread_mutex_lock(&g->mutex);
        if (r == 0)
            r = local_barrier(g, &deadline);
    }
    if (r < 0) {
        g->broken = true;
        pthread_cond_broadcast(&g->changed);
    }
    pthread_mutex_unlock(&g->mutex);
    if (r == -ECONNRESET)
        err_set(err, r, "a peer is gone");
    else if (r == -ETIMEDOUT)
        err_set(err, r, "the other ranks did not arrive within %lld ms", (long long)m->timeout_ms);
    else if (r < 0)
        err_set(err, r, "ranks disagree about what they exchange");
    return r;
}

static void local_close(void *self)
{
    struct member *me = self;
    struct local *g = me->group;

    pthread_mutex_lock(&g->mutex);
    g->broken = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->mutex);
    free(me);
}

int coll_local_open(const struct coll_opts *o, const struct coll_impl **ret_impl, void **ret_self,
                    struct err *err)
{
    static const struct coll_impl impl = {local_move, local_close};
    struct local *g = o->local;
    struct member *me;

    if (!g || g->ranks != o->ranks)
        return err_set(err, -EINVAL, "local ranks need a group of coll_local_new(%u)", o->ranks);
    me = malloc(sizeof *me);
    if (!me)
        return err_set(err, -ENOMEM, "no memory for a group of ranks");
    *me = (struct member){g, o->rank};
    *ret_impl = &impl;
    *ret_self = me;
    return 0;
}

void *coll_local_new(uint32_t ranks)
{
    struct local *g;
    pthread_condattr_t attr;

    if (ranks < 1 || ranks > LIMIT_RANKS)
        return NULL;
    g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->ranks = ranks;
    pthread_mutex_init(&g->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&g->changed, &attr);
    pthread_condattr_destroy(&attr);
    return g;
}

void coll_local_free(void *local)
{
    struct local *g = local;

    if (!g)
        return;
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->mutex);
    free(g);
}
