/* link.c - see link.h. One thread beats and listens; the rank's own thread never waits
 * for it, except for a rendezvous value. */
#include "worker/link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { STEP_TIMES = 32, ERROR_BYTES = 1024, STEP_BEAT_MS = 20 };

enum down_kind { DOWN_FLAGS = 1, DOWN_VALUE, DOWN_PATIENCE };

/* Before each packet's data. Same build on both ends: spawn hands over the binary. */
struct up_head {
    uint32_t kind, phase;
    int64_t step, steps, step_ms;
    uint64_t bytes;
    char key[LINK_KEY_BYTES];
};

struct down_head {
    uint32_t kind;
    uint32_t flags;
    int64_t result, ms;
    uint64_t bytes;
    char key[LINK_KEY_BYTES];
};

struct link {
    int fd, wake; /* -1: a link to nobody                                         */
    pthread_t thread;
    bool started, signals;
    atomic_uint flags;
    atomic_llong beat_ms;

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool quit, lost, beat_now;
    int64_t beat_at; /* clock of the latest beat                                   */
    enum link_phase phase;
    int64_t step, steps;
    int64_t step_at;           /* clock of the latest step, 0: none yet         */
    int64_t times[STEP_TIMES]; /* of the latest steps                           */
    uint64_t n_times;
    char error[ERROR_BYTES];
    bool error_new;

    bool asking, answered; /* a rendezvous call and its answer                     */
    char key[LINK_KEY_BYTES];
    int result;
    int64_t patience_ms;
    size_t value_bytes;
    char value[LIMIT_RDV_BYTES];
};

/* Signals are a property of the process: whichever link asked for them sees them. */
static atomic_uint signal_flags;

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void wake(int fd)
{
    const uint64_t one = 1;

    (void)!write(fd, &one, sizeof one);
}

static int send_packet(int fd, const void *head, size_t head_bytes, const void *data, size_t bytes,
                       int flags)
{
    struct iovec v[2] = {{(void *)(uintptr_t)head, head_bytes}, {(void *)(uintptr_t)data, bytes}};
    const struct msghdr m = {.msg_iov = v, .msg_iovlen = bytes > 0 ? 2 : 1};
    ssize_t n;

    do
        n = sendmsg(fd, &m, flags | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* ---- rank side ---- */

static int compare_times(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static int64_t median_step(const struct link *l)
{
    int64_t v[STEP_TIMES];
    const size_t n = l->n_times < STEP_TIMES ? l->n_times : STEP_TIMES;

    if (n == 0)
        return 0;
    memcpy(v, l->times, n * sizeof v[0]);
    qsort(v, n, sizeof v[0], compare_times);
    return v[n / 2] > 0 ? v[n / 2] : 1;
}

/* Sends what is due. A full socket is no loss: the next beat says it again. */
static void link_beat(struct link *l)
{
    struct up_head h = {.kind = LINK_BEAT};
    char error[ERROR_BYTES];
    bool say;

    pthread_mutex_lock(&l->mutex);
    h.phase = l->phase;
    h.step = l->step;
    h.steps = l->steps;
    h.step_ms = median_step(l);
    say = l->error_new;
    memcpy(error, l->error, sizeof error);
    l->beat_now = false;
    l->beat_at = now_ms();
    pthread_mutex_unlock(&l->mutex);

    if (say) {
        struct up_head e = {.kind = LINK_ERROR, .bytes = strlen(error)};
        if (send_packet(l->fd, &e, sizeof e, error, e.bytes, MSG_DONTWAIT) == 0) {
            pthread_mutex_lock(&l->mutex);
            l->error_new = strcmp(error, l->error) != 0;
            pthread_mutex_unlock(&l->mutex);
        }
    }
    (void)send_packet(l->fd, &h, sizeof h, NULL, 0, MSG_DONTWAIT);
}

static void link_down(struct link *l, const struct down_head *h, const char *data)
{
    if (h->kind == DOWN_FLAGS) {
        atomic_fetch_or(&l->flags, h->flags & (LINK_CHECKPOINT | LINK_STOP | LINK_PEER));
        return;
    }
    pthread_mutex_lock(&l->mutex);
    if (h->kind == DOWN_PATIENCE) {
        l->patience_ms += h->ms;
    } else if (h->kind == DOWN_VALUE && l->asking && strcmp(h->key, l->key) == 0 &&
               h->bytes <= sizeof l->value) {
        memcpy(l->value, data, h->bytes);
        l->value_bytes = h->bytes;
        l->result = (int)h->result;
        l->answered = true;
    }
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
}

/* Reads everything there is. Returns false when the supervisor is gone. */
static bool link_listen(struct link *l)
{
    static _Thread_local char data[LIMIT_RDV_BYTES];
    struct down_head h;
    struct iovec v[2] = {{&h, sizeof h}, {data, sizeof data}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};

    for (;;) {
        const ssize_t n = recvmsg(l->fd, &m, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN;
        if (n == 0)
            return false;
        if ((size_t)n < sizeof h || h.bytes != (size_t)n - sizeof h)
            continue;
        h.key[sizeof h.key - 1] = '\0';
        link_down(l, &h, data);
    }
}

static void link_lost(struct link *l)
{
    pthread_mutex_lock(&l->mutex);
    l->lost = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
}

static void *link_main(void *arg)
{
    struct link *l = arg;
    int64_t due = 0;
    uint64_t count;
    bool quit = false;

    while (!quit) {
        struct pollfd v[2] = {{l->fd, POLLIN, 0}, {l->wake, POLLIN, 0}};
        const int64_t left = due - now_ms();
        (void)poll(v, 2, left > 0 ? (int)left : 0);
        if (v[1].revents)
            (void)!read(l->wake, &count, sizeof count);
        pthread_mutex_lock(&l->mutex);
        quit = l->quit;
        const bool beat = l->beat_now || quit || now_ms() >= due;
        pthread_mutex_unlock(&l->mutex);
        if (beat) {
            link_beat(l);
            due = now_ms() + atomic_load(&l->beat_ms);
        }
        if (v[0].revents && !link_listen(l)) {
            link_lost(l);
            return NULL;
        }
    }
    return NULL;
}

int link_open(int fd, struct link **ret)
{
    struct link *l = calloc(1, sizeof *l);
    pthread_condattr_t attr;
    sigset_t all, old;
    int r;

    if (!l) {
        if (fd >= 0)
            close(fd);
        return -ENOMEM;
    }
    l->fd = fd;
    l->wake = -1;
    atomic_store(&l->beat_ms, LINK_BEAT_MS);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&l->changed, &attr);
    pthread_condattr_destroy(&attr);
    if (fd >= 0) {
        l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r = l->wake < 0 ? -errno : 0;
        if (r < 0)
            goto fail;
        sigfillset(&all); /* signals go to the threads that train */
        pthread_sigmask(SIG_SETMASK, &all, &old);
        r = -pthread_create(&l->thread, NULL, link_main, l);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r < 0)
            goto fail;
        l->started = true;
    }
    *ret = l;
    return 0;

fail:
    link_close(l);
    return r;
}

void link_close(struct link *l)
{
    if (!l)
        return;
    if (l->started) {
        pthread_mutex_lock(&l->mutex);
        l->quit = true;
        pthread_mutex_unlock(&l->mutex);
        wake(l->wake);
        pthread_join(l->thread, NULL);
    }
    if (l->signals) {
        signal(SIGTERM, SIG_DFL);
        signal(SIGUSR1, SIG_DFL);
        signal(SIGUSR2, SIG_DFL);
    }
    if (l->wake >= 0)
        close(l->wake);
    if (l->fd >= 0)
        close(l->fd);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->mutex);
    free(l);
}

void link_beat_every(struct link *l, int64_t ms)
{
    atomic_store(&l->beat_ms, ms);
    if (l->fd < 0)
        return;
    pthread_mutex_lock(&l->mutex);
    l->beat_now = true;
    pthread_mutex_unlock(&l->mutex);
    wake(l->wake);
}

static void on_signal(int number)
{
    (void)number;
    atomic_fetch_or(&signal_flags, LINK_STOP);
}

void link_signals(struct link *l)
{
    const struct sigaction stop = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    atomic_store(&signal_flags, 0);
    l->signals = true;
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGUSR1, &stop, NULL);
    sigaction(SIGUSR2, &stop, NULL);
}

unsigned link_flags(const struct link *l)
{
    return atomic_load(&l->flags) | (l->signals ? atomic_load(&signal_flags) : 0);
}

void link_clear(struct link *l, unsigned flags)
{
    atomic_fetch_and(&l->flags, ~flags);
    if (l->signals)
        atomic_fetch_and(&signal_flags, ~flags);
}

void link_progress(struct link *l, enum link_phase phase, int64_t step, int64_t steps)
{
    bool now;

    if (l->fd < 0)
        return;
    pthread_mutex_lock(&l->mutex);
    const int64_t t = now_ms();
    if (phase == LINK_TRAINING && l->phase == LINK_TRAINING && step == l->step + 1 && l->step_at)
        l->times[l->n_times++ % STEP_TIMES] = t - l->step_at;
    l->step_at = phase == LINK_TRAINING ? t : 0;
    /* A step is news, with its row in the spool; steps of a millisecond are not each. */
    now = phase != l->phase || steps != l->steps ||
          (step != l->step && t - l->beat_at >= STEP_BEAT_MS);
    l->phase = phase;
    l->step = step;
    l->steps = steps;
    l->beat_now |= now;
    pthread_mutex_unlock(&l->mutex);
    if (now)
        wake(l->wake);
}

void link_error(struct link *l, const char *sentence)
{
    if (l->fd < 0)
        return;
    pthread_mutex_lock(&l->mutex);
    snprintf(l->error, sizeof l->error, "%s", sentence);
    l->error_new = true;
    l->beat_now = true;
    pthread_mutex_unlock(&l->mutex);
    wake(l->wake);
}

/* One question and its answer, which may come much later. Mutex held. */
static int link_ask(struct link *l, const struct up_head *h, const void *data, size_t bytes,
                    int64_t timeout_ms)
{
    int64_t deadline = now_ms() + timeout_ms;
    struct timespec t;
    int r;

    l->asking = true;
    l->answered = false;
    l->patience_ms = 0;
    memcpy(l->key, h->key, sizeof l->key);
    pthread_mutex_unlock(&l->mutex);
    r = send_packet(l->fd, h, sizeof *h, data, bytes, 0);
    pthread_mutex_lock(&l->mutex);
    while (r == 0 && !l->answered) {
        deadline += l->patience_ms;
        l->patience_ms = 0;
        if (l->lost)
            r = -ECANCELED;
        else if (now_ms() >= deadline)
            r = -ETIMEDOUT;
        if (r < 0)
            break;
        t.tv_sec = deadline / 1000;
        t.tv_nsec = deadline % 1000 * 1000000;
        (void)pthread_cond_timedwait(&l->changed, &l->mutex, &t);
    }
    l->asking = false;
    if (r < 0)
        return r == -EPIPE ? -ECANCELED : r;
    return l->result;
}

static int store_put(void *arg, const char *key, const void *value, size_t bytes)
{
    struct link *l = arg;
    struct up_head h = {.kind = LINK_PUT, .bytes = bytes};
    int r;

    if (l->fd < 0)
        return 0;
    if (bytes > LIMIT_RDV_BYTES || strlen(key) >= sizeof h.key)
        return -EMSGSIZE;
    memcpy(h.key, key, strlen(key));
    pthread_mutex_lock(&l->mutex);
    r = link_ask(l, &h, value, bytes, INT32_MAX);
    pthread_mutex_unlock(&l->mutex);
    return r;
}

static int store_get(void *arg, const char *key, void *value, size_t cap, size_t *ret_bytes,
                     int64_t timeout_ms)
{
    struct link *l = arg;
    struct up_head h = {.kind = LINK_GET};
    int r;

    if (l->fd < 0)
        return -ECANCELED;
    if (strlen(key) >= sizeof h.key)
        return -EMSGSIZE;
    memcpy(h.key, key, strlen(key));
    pthread_mutex_lock(&l->mutex);
    r = link_ask(l, &h, NULL, 0, timeout_ms);
    if (r == 0 && l->value_bytes > cap)
        r = -EMSGSIZE;
    if (r == 0) {
        memcpy(value, l->value, l->value_bytes);
        *ret_bytes = l->value_bytes;
    }
    pthread_mutex_unlock(&l->mutex);
    return r;
}

struct coll_store link_store(struct link *l)
{
    return (struct coll_store){store_put, store_get, l};
}

/* ---- supervisor's side ---- */

int link_pair(int ret_fds[2])
{
    const int bytes = 512 << 10; /* several of the largest packets */

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_fds) < 0)
        return -errno;
    for (int i = 0; i < 2; i++)
        (void)setsockopt(ret_fds[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    return 0;
}

int link_recv(int fd, struct link_packet *ret)
{
    struct up_head h;
    struct iovec v[2] = {{&h, sizeof h}, {ret->data, sizeof ret->data - 1}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
    ssize_t n;

    do
        n = recvmsg(fd, &m, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n == 0 || (n < 0 && errno == ECONNRESET))
        return -EPIPE;
    if (n < 0)
        return errno == EAGAIN ? 0 : -errno;
    if ((size_t)n < sizeof h || h.bytes != (size_t)n - sizeof h || (m.msg_flags & MSG_TRUNC) ||
        h.kind < LINK_BEAT || h.kind > LINK_GET || h.phase > LINK_DONE || h.step < 0 || h.steps < 0)
        return -EBADMSG;
    ret->kind = (enum link_kind)h.kind;
    ret->phase = (enum link_phase)h.phase;
    ret->step = h.step;
    ret->steps = h.steps;
    ret->step_ms = h.step_ms > 0 ? h.step_ms : 0;
    h.key[sizeof h.key - 1] = '\0';
    memcpy(ret->key, h.key, sizeof ret->key);
    ret->bytes = h.bytes;
    ret->data[h.bytes] = '\0';
    return 1;
}

int link_send_flags(int fd, unsigned flags)
{
    const struct down_head h = {.kind = DOWN_FLAGS, .flags = flags};

    return send_packet(fd, &h, sizeof h, NULL, 0, MSG_DONTWAIT);
}

int link_send_value(int fd, const char *key, int result, const void *value, size_t bytes)
{
    struct down_head h = {.kind = DOWN_VALUE, .result = result, .bytes = bytes};

    if (bytes > LIMIT_RDV_BYTES || strlen(key) >= sizeof h.key)
        return -EMSGSIZE;
    memcpy(h.key, key, strlen(key));
    return send_packet(fd, &h, sizeof h, value, bytes, MSG_DONTWAIT);
}

int link_send_patience(int fd, int64_t ms)
{
    const struct down_head h = {.kind = DOWN_PATIENCE, .ms = ms};

    return send_packet(fd, &h, sizeof h, NULL, 0, MSG_DONTWAIT);
}
