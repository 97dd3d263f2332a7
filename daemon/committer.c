/* committer.c - see committer.h. */
#include "daemon/committer.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum stage { STAGE_IDLE, STAGE_ASKED, STAGE_WORKING, STAGE_DONE };

struct committer {
    struct store *store;
    void (*done)(void *arg);
    void *arg;
    pthread_t thread;
    pthread_mutex_t lock; /* everything below */
    pthread_cond_t asked;
    enum stage stage;
    bool closing;
    const struct effects *fx;
    const struct store_log *logs;
    size_t n_logs;
    bool tidy;
    struct store_keep keep;
    struct store_tidied tidied;
    int r;
    struct err err;
};

static void *work(void *arg)
{
    struct committer *c = arg;

    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (c->stage != STAGE_ASKED && !c->closing)
            pthread_cond_wait(&c->asked, &c->lock);
        if (c->stage != STAGE_ASKED)
            break;
        c->stage = STAGE_WORKING;
        pthread_mutex_unlock(&c->lock);
        struct err err = {""};
        const int r = c->tidy ? store_tidy(c->store, &c->keep, &c->tidied, &err)
                              : store_commit(c->store, c->fx, c->logs, c->n_logs, &err);
        pthread_mutex_lock(&c->lock);
        c->r = r;
        c->err = err;
        c->stage = STAGE_DONE;
        pthread_mutex_unlock(&c->lock);
        c->done(c->arg);
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

int committer_open(struct store *s, void (*done)(void *arg), void *arg, struct committer **ret)
{
    struct committer *c = calloc(1, sizeof *c);
    int r;

    if (!c)
        return -ENOMEM;
    c->store = s;
    c->done = done;
    c->arg = arg;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->asked, NULL);
    r = pthread_create(&c->thread, NULL, work, c);
    if (r != 0) {
        free(c);
        return -r;
    }
    *ret = c;
    return 0;
}

void committer_close(struct committer *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_cond_signal(&c->asked);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    pthread_cond_destroy(&c->asked);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

int committer_start(struct committer *c, const struct effects *fx, const struct store_log *logs,
                    size_t n_logs)
{
    int r = 0;

    pthread_mutex_lock(&c->lock);
    if (c->stage != STAGE_IDLE) {
        r = -EBUSY;
    } else {
        c->fx = fx;
        c->logs = logs;
        c->n_logs = n_logs;
        c->tidy = false;
        c->stage = STAGE_ASKED;
        pthread_cond_signal(&c->asked);
    }
    pthread_mutex_unlock(&c->lock);
    return r;
}

int committer_start_tidy(struct committer *c, const struct store_keep *keep)
{
    int r = 0;

    pthread_mutex_lock(&c->lock);
    if (c->stage != STAGE_IDLE) {
        r = -EBUSY;
    } else {
        c->keep = *keep;
        c->tidy = true;
        c->stage = STAGE_ASKED;
        pthread_cond_signal(&c->asked);
    }
    pthread_mutex_unlock(&c->lock);
    return r;
}

const struct store_tidied *committer_tidied(const struct committer *c)
{
    return &c->tidied;
}

bool committer_busy(const struct committer *c)
{
    struct committer *m = (struct committer *)c;
    bool busy;

    pthread_mutex_lock(&m->lock);
    busy = m->stage != STAGE_IDLE;
    pthread_mutex_unlock(&m->lock);
    return busy;
}

int committer_take(struct committer *c, int *ret_r, struct err *err)
{
    int r = 0;

    pthread_mutex_lock(&c->lock);
    if (c->stage == STAGE_IDLE) {
        r = 1;
    } else if (c->stage != STAGE_DONE) {
        r = -EAGAIN;
    } else {
        *ret_r = c->r;
        *err = c->err;
        c->stage = STAGE_IDLE;
    }
    pthread_mutex_unlock(&c->lock);
    return r;
}
