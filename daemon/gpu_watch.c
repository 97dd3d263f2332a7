/* gpu_watch.c - see gpu_watch.h. */
#include "daemon/gpu_watch.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { EVENT_WAIT_MS = 1000, NO_EVENTS_MS = 10000, STOP_S = 3 };

struct gpu_watch {
    struct gpu_watch_opts opts;
    pthread_mutex_t lock;
    pthread_cond_t moved; /* stop, or no longer STARTING                              */
    pthread_t sampler, events;
    bool has_sampler, has_events, stop;
    struct nvml *nvml; /* the sampler opens it; events uses it from then on           */
    enum gpu_watch_state state;
    int64_t call_ms; /* since when the sampler is in the driver; 0: it is not         */
    bool opened;
    uint64_t sample;
    struct gpu_watch_gpu *fresh, *taken, *making; /* NVML_GPUS_MAX each               */
    size_t n_fresh;
    struct nvml_gpu *raw; /* the sampler's                                            */
    struct nvml_event ring[GPU_WATCH_EVENTS];
    size_t n_ring;
    bool no_events;
    char why[512], driver[80];
};

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static struct timespec from_now(int ms)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_sec += ms / 1000;
    t.tv_nsec += (long)(ms % 1000) * 1000000;
    if (t.tv_nsec >= 1000000000) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000;
    }
    return t;
}

/* With the lock: waits until stopped or for so long. */
static void nap(struct gpu_watch *w, int ms)
{
    const struct timespec until = from_now(ms);

    while (!w->stop && pthread_cond_timedwait(&w->moved, &w->lock, &until) == 0)
        ;
}

static void set_state(struct gpu_watch *w, enum gpu_watch_state s)
{
    w->state = s;
    pthread_cond_broadcast(&w->moved);
}

/* Not once it was stopped: a thread that comes back late finds no owner. */
static void wake(struct gpu_watch *w)
{
    pthread_mutex_lock(&w->lock);
    if (!w->stop)
        w->opts.wake(w->opts.arg);
    pthread_mutex_unlock(&w->lock);
}

/* ---- the sampler ---- */

static bool open_nvml(struct gpu_watch *w)
{
    struct nvml *n = NULL;
    struct err err = {""};
    int r;

    pthread_mutex_lock(&w->lock);
    w->call_ms = now_ms();
    pthread_mutex_unlock(&w->lock);
    r = nvml_open(&n, &err);
    pthread_mutex_lock(&w->lock);
    w->call_ms = 0;
    if (r == 0) {
        w->nvml = n;
        w->opened = true;
        memcpy(w->driver, nvml_driver(n), strnlen(nvml_driver(n), sizeof w->driver - 1) + 1);
    } else {
        memcpy(w->why, err.text, strnlen(err.text, sizeof w->why - 1) + 1);
        w->why[sizeof w->why - 1] = 0;
        set_state(w, r == -ENOENT ? GPU_WATCH_ABSENT : GPU_WATCH_REFUSED);
    }
    pthread_mutex_unlock(&w->lock);
    return r == 0;
}

static void sample(struct gpu_watch *w)
{
    struct gpu_watch_gpu *swap;
    struct err err = {""};
    size_t n = 0;
    int r;

    pthread_mutex_lock(&w->lock);
    w->call_ms = now_ms();
    pthread_mutex_unlock(&w->lock);
    r = nvml_sample(w->nvml, w->raw, NVML_GPUS_MAX, &n, &err);
    for (size_t i = 0; i < n; i++) {
        struct gpu_watch_gpu *g = &w->making[i];
        memset(g, 0, sizeof *g);
        g->g = w->raw[i];
        for (uint32_t k = 0; k < g->g.n_processes; k++)
            (void)process_look((pid_t)g->g.process[k].pid, &g->process[k]);
    }
    pthread_mutex_lock(&w->lock);
    w->call_ms = 0;
    if (r == 0) {
        swap = w->fresh;
        w->fresh = w->making;
        w->making = swap;
        w->n_fresh = n;
        w->sample++;
        set_state(w, GPU_WATCH_OK);
    } else {
        memcpy(w->why, err.text, strnlen(err.text, sizeof w->why - 1) + 1);
        set_state(w, GPU_WATCH_REFUSED);
    }
    pthread_mutex_unlock(&w->lock);
    wake(w);
}

static void *run_events(void *arg);

static void start_events(struct gpu_watch *w)
{
    pthread_mutex_lock(&w->lock);
    if (!w->has_events && !w->stop)
        w->has_events = pthread_create(&w->events, NULL, run_events, w) == 0;
    pthread_mutex_unlock(&w->lock);
}

static void *run_sampler(void *arg)
{
    struct gpu_watch *w = arg;
    bool on = true, absent = false;

    while (on && !absent) {
        if (w->nvml || open_nvml(w)) {
            start_events(w);
            sample(w);
        } else {
            wake(w);
        }
        pthread_mutex_lock(&w->lock);
        absent = w->state == GPU_WATCH_ABSENT;
        if (!absent)
            nap(w, w->state == GPU_WATCH_OK ? w->opts.period_ms : w->opts.retry_ms);
        on = !w->stop;
        pthread_mutex_unlock(&w->lock);
    }
    return NULL;
}

/* ---- events ---- */

static void *run_events(void *arg)
{
    struct gpu_watch *w = arg;
    bool on = true;

    while (on) {
        struct nvml_event e;
        const int r = nvml_wait(w->nvml, EVENT_WAIT_MS, &e);
        pthread_mutex_lock(&w->lock);
        w->no_events = r == -ENOTSUP;
        if (r == 1 && w->n_ring < GPU_WATCH_EVENTS)
            w->ring[w->n_ring++] = e;
        else if (r < 0)
            nap(w, r == -ENOTSUP ? NO_EVENTS_MS : EVENT_WAIT_MS);
        on = !w->stop;
        pthread_mutex_unlock(&w->lock);
        if (r == 1)
            wake(w);
    }
    return NULL;
}

/* ---- the owner's side ---- */

static void release(struct gpu_watch *w)
{
    nvml_close(w->nvml);
    free(w->fresh);
    free(w->taken);
    free(w->making);
    free(w->raw);
    pthread_cond_destroy(&w->moved);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

int gpu_watch_start(const struct gpu_watch_opts *opts, struct gpu_watch **ret)
{
    struct gpu_watch *w = calloc(1, sizeof *w);
    pthread_condattr_t attr;
    sigset_t all, was;
    int r;

    if (!w)
        return -ENOMEM;
    w->opts = *opts;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->moved, &attr);
    pthread_condattr_destroy(&attr);
    w->fresh = calloc(NVML_GPUS_MAX, sizeof *w->fresh);
    w->taken = calloc(NVML_GPUS_MAX, sizeof *w->taken);
    w->making = calloc(NVML_GPUS_MAX, sizeof *w->making);
    w->raw = calloc(NVML_GPUS_MAX, sizeof *w->raw);
    r = w->fresh && w->taken && w->making && w->raw ? 0 : -ENOMEM;
    if (r == 0) { /* signals are the loop's, and no thread of this one's */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &was);
        r = -pthread_create(&w->sampler, NULL, run_sampler, w);
        pthread_sigmask(SIG_SETMASK, &was, NULL);
    }
    if (r < 0) {
        release(w);
        return r;
    }
    w->has_sampler = true;
    *ret = w;
    return 0;
}

void gpu_watch_await(struct gpu_watch *w, int ms)
{
    const struct timespec until = from_now(ms);
    int r = 0;

    pthread_mutex_lock(&w->lock);
    while (w->state == GPU_WATCH_STARTING && r == 0)
        r = pthread_cond_timedwait(&w->moved, &w->lock, &until);
    pthread_mutex_unlock(&w->lock);
}

void gpu_watch_take(struct gpu_watch *w, struct gpu_watch_news *ret)
{
    pthread_mutex_lock(&w->lock);
    const int64_t in_ms = w->call_ms ? now_ms() - w->call_ms : 0;
    const bool hangs = in_ms > (w->opened && w->sample ? w->opts.hang_ms : w->opts.open_ms);
    memcpy(w->taken, w->fresh, w->n_fresh * sizeof *w->taken);
    ret->state = hangs ? GPU_WATCH_HANGS : w->state;
    ret->sample = w->sample;
    ret->gpus = w->taken;
    ret->n_gpus = w->n_fresh;
    memcpy(ret->events, w->ring, w->n_ring * sizeof w->ring[0]);
    ret->n_events = w->n_ring;
    w->n_ring = 0;
    ret->no_events = w->no_events;
    memcpy(ret->why, w->why, sizeof ret->why);
    memcpy(ret->driver, w->driver, sizeof ret->driver);
    pthread_mutex_unlock(&w->lock);
}

/* (Not pthread_clockjoin_np: the thread sanitizer does not know it.) */
static bool joined(pthread_t t, const struct timespec *until)
{
    if (pthread_timedjoin_np(t, NULL, until) == 0)
        return true;
    (void)pthread_detach(t); /* nobody will ask for it again */
    return false;
}

int gpu_watch_stop(struct gpu_watch *w)
{
    struct timespec until;
    bool all = true;

    if (!w)
        return 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += STOP_S;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->moved);
    pthread_mutex_unlock(&w->lock);
    if (w->has_sampler)
        all = joined(w->sampler, &until);
    if (w->has_events)
        all = joined(w->events, &until) && all;
    if (!all)
        return 1; /* they may come back from the driver at any time */
    release(w);
    return 0;
}
