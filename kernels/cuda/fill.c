/* fill.c - see fill.h. Plain C beside the CUDA sources: the race checker of the simulation
 * watches those, and what it sees has to come from one thread. */
#include "fill.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HELPERS = 7, PIECE = 4096, PIECES_PER_THREAD = 2 };

struct fill {
    pthread_t threads[HELPERS];
    int n;
    pthread_mutex_t lock;
    pthread_cond_t begin, end;
    unsigned turn; /* of the copy that is under way                               */
    int busy;      /* helpers that have not finished it                           */
    bool stop;
    char *dst;
    const char *src;
    size_t bytes, piece;
    atomic_size_t next;
};

/* The pages of a mapped file are put into the page table in one call instead of by a fault
 * for every few; where the kernel does not know the call (before Linux 5.14) faults do it. */
static void populate(const char *p, size_t bytes)
{
#ifdef MADV_POPULATE_READ
    const uintptr_t page = 4096, from = (uintptr_t)p & ~(page - 1);

    (void)madvise((void *)from, (uintptr_t)p + bytes - from, MADV_POPULATE_READ);
#else
    (void)p;
    (void)bytes;
#endif
}

static void work(struct fill *f)
{
    for (;;) {
        const size_t at = atomic_fetch_add(&f->next, f->piece);
        if (at >= f->bytes)
            return;
        const size_t n = f->bytes - at < f->piece ? f->bytes - at : f->piece;
        populate(f->src + at, n);
        memcpy(f->dst + at, f->src + at, n);
    }
}

static void *helper(void *arg)
{
    struct fill *f = arg;
    unsigned seen = 0;

    pthread_mutex_lock(&f->lock);
    for (;;) {
        while (f->turn == seen && !f->stop)
            pthread_cond_wait(&f->begin, &f->lock);
        if (f->stop)
            break;
        seen = f->turn;
        pthread_mutex_unlock(&f->lock);
        work(f);
        pthread_mutex_lock(&f->lock);
        if (--f->busy == 0)
            pthread_cond_signal(&f->end);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

static int helpers_wanted(void)
{
    cpu_set_t set;
    const int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) - 1 : 0;

    return n < 0 ? 0 : n > HELPERS ? HELPERS : n;
}

int fill_open(struct fill **ret)
{
    struct fill *f = calloc(1, sizeof *f);
    sigset_t all, before;

    if (!f)
        return -ENOMEM;
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->begin, NULL);
    pthread_cond_init(&f->end, NULL);
    sigfillset(&all); /* signals are the program's, not its helpers' */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (const int want = helpers_wanted(); f->n < want; f->n++) {
        if (pthread_create(&f->threads[f->n], NULL, helper, f) != 0)
            break; /* fewer do it as well */
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    *ret = f;
    return 0;
}

void fill_close(struct fill *f)
{
    if (!f)
        return;
    pthread_mutex_lock(&f->lock);
    f->stop = true;
    pthread_cond_broadcast(&f->begin);
    pthread_mutex_unlock(&f->lock);
    for (int i = 0; i < f->n; i++)
        pthread_join(f->threads[i], NULL);
    pthread_cond_destroy(&f->end);
    pthread_cond_destroy(&f->begin);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

void fill_copy(struct fill *f, void *dst, const void *src, size_t bytes)
{
    const size_t shares = (size_t)(f->n + 1) * PIECES_PER_THREAD;

    f->dst = dst;
    f->src = src;
    f->bytes = bytes;
    f->piece = (bytes / shares + PIECE) / PIECE * PIECE;
    atomic_store(&f->next, 0);
    if (f->n == 0 || bytes <= PIECE) {
        work(f);
        return;
    }
    pthread_mutex_lock(&f->lock);
    f->busy = f->n;
    f->turn++;
    pthread_cond_broadcast(&f->begin);
    pthread_mutex_unlock(&f->lock);
    work(f);
    pthread_mutex_lock(&f->lock);
    while (f->busy > 0)
        pthread_cond_wait(&f->end, &f->lock);
    pthread_mutex_unlock(&f->lock);
}
