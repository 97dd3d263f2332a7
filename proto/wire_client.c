/* wire_client.c - the clients' half of wire.h. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/req.h>

#include "proto/limit.h"
#include "proto/wire.h"
#include "proto/wire_nng.h"

enum {
    RESEND_MS = 60000, /* longer than any held request; never infinite             */
    RECONNECT_MIN_MS = 50,
    RECONNECT_MAX_MS = 2000,
    WATCHDOG_MS = 1000,
    REDIAL_MS = 4000,   /* longer than nng ever waits between two attempts          */
    SILENCE_MS = 25000, /* longer than any request is held (service.md 4)           */
};

struct wire_client {
    nng_socket socket;
    nng_dialer dialer;
    char url[LIMIT_SOCKET_PATH + 16];
    _Atomic int pipes;
    _Atomic unsigned connections; /* so far                                              */
    _Atomic uint32_t pipe;        /* the newest                                            */
    _Atomic int calls;            /* not answered yet                                      */
    _Atomic int64_t heard_ms;     /* last answer, or since when there is something to hear */
    nng_aio *watchdog;
    _Atomic bool closing;
    int64_t alone_ms; /* since when there is no connection, or was dialled anew; the
                         watchdog's alone. 0: there is one */
};

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void on_client_pipe(nng_pipe pipe, nng_pipe_ev ev, void *arg)
{
    struct wire_client *c = arg;

    if (ev == NNG_PIPE_EV_ADD_POST) {
        atomic_store(&c->pipe, (uint32_t)nng_pipe_id(pipe));
        atomic_store(&c->heard_ms, now_ms());
        atomic_fetch_add(&c->connections, 1);
        atomic_fetch_add(&c->pipes, 1);
    } else if (ev == NNG_PIPE_EV_REM_POST)
        atomic_fetch_sub(&c->pipes, 1);
}

/* Every request is answered within 20 s, if only with "nothing new": a connection on
 * which nothing was heard for longer is dead, whatever the kernel says (seen: a
 * request lay unread in the socket of a server just started). Without it nng makes
 * a new one and asks again there. */
static void drop_silent(struct wire_client *c)
{
    if (atomic_load(&c->calls) > 0 && now_ms() - atomic_load(&c->heard_ms) > SILENCE_MS) {
        atomic_store(&c->heard_ms, now_ms());
        nng_pipe_close((nng_pipe){.id = atomic_load(&c->pipe)});
    }
}

/* nng 1.5.2's dialer may give up for good when the listener dies in the middle of the
 * first words (seen once in some hundred kills of a busy server: no socket is left
 * and none is ever made again). So whoever is alone for longer than any pause between
 * two attempts gets a new dialer. What was asked stays with the socket. */
static void on_watchdog(void *arg)
{
    struct wire_client *c = arg;

    if (nng_aio_result(c->watchdog) != 0 || atomic_load(&c->closing))
        return;
    if (atomic_load(&c->pipes) > 0) {
        c->alone_ms = 0;
        drop_silent(c);
    } else if (c->alone_ms == 0) {
        c->alone_ms = now_ms();
    } else if (now_ms() - c->alone_ms > REDIAL_MS) {
        nng_dialer_close(c->dialer);
        if (nng_dial(c->socket, c->url, &c->dialer, NNG_FLAG_NONBLOCK) != 0)
            c->dialer = (nng_dialer){0}; /* no memory: the next round tries again */
        c->alone_ms = now_ms();
    }
    if (!atomic_load(&c->closing))
        nng_sleep_aio(WATCHDOG_MS, c->watchdog);
}

static int client_open(struct wire_client *c, const char *url, int flags)
{
    int rv = nng_socket_set_ms(c->socket, NNG_OPT_RECONNMINT, RECONNECT_MIN_MS);

    if (rv == 0)
        rv = nng_socket_set_ms(c->socket, NNG_OPT_RECONNMAXT, RECONNECT_MAX_MS);
    if (rv == 0)
        rv = nng_socket_set_ms(c->socket, NNG_OPT_REQ_RESENDTIME, RESEND_MS);
    if (rv == 0)
        rv = nng_socket_set_size(c->socket, NNG_OPT_RECVMAXSZ, LIMIT_MSG_BYTES);
    if (rv == 0)
        rv = nng_pipe_notify(c->socket, NNG_PIPE_EV_ADD_POST, on_client_pipe, c);
    if (rv == 0)
        rv = nng_pipe_notify(c->socket, NNG_PIPE_EV_REM_POST, on_client_pipe, c);
    if (rv == 0)
        rv = nng_dial(c->socket, url, &c->dialer, flags & WIRE_WAIT ? NNG_FLAG_NONBLOCK : 0);
    if (rv == 0)
        rv = nng_aio_alloc(&c->watchdog, on_watchdog, c);
    if (rv == 0)
        nng_sleep_aio(WATCHDOG_MS, c->watchdog);
    return wire_err(rv);
}

int wire_dial(const char *url, int flags, struct wire_client **ret, struct err *err)
{
    const char *path = wire_ipc_path(url);
    struct wire_client *c;
    int r;

    if (!path || path[0] != '/')
        return err_set(err, -EINVAL, "%s: an address is ipc:///absolute/path.sock", url);
    if (strlen(path) > LIMIT_SOCKET_PATH)
        return err_set(err, -ENAMETOOLONG, "%s: longer than %d bytes", path, LIMIT_SOCKET_PATH);
    c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    snprintf(c->url, sizeof c->url, "%s", url);
    r = wire_err(nng_req0_open(&c->socket));
    if (r < 0) {
        free(c);
        return err_set(err, r, "cannot open a socket: %s", strerror(-r));
    }
    r = client_open(c, url, flags);
    if (r < 0) {
        wire_hangup(c);
        return err_set(err, r, "nobody answers at %s: %s", url, strerror(-r));
    }
    *ret = c;
    return 0;
}

void wire_hangup(struct wire_client *c)
{
    if (!c)
        return;
    atomic_store(&c->closing, true);
    if (c->watchdog) {
        nng_aio_stop(c->watchdog);
        nng_aio_free(c->watchdog);
    }
    nng_close(c->socket);
    free(c);
}

bool wire_connected(const struct wire_client *c)
{
    return atomic_load(&c->pipes) > 0;
}

unsigned wire_connections(const struct wire_client *c)
{
    return atomic_load(&c->connections);
}

enum call_state { CALL_IDLE, CALL_SEND, CALL_RECV, CALL_DONE };

struct wire_call {
    struct wire_client *client;
    nng_ctx ctx;
    nng_aio *aio;
    void (*done)(void *arg);
    void *arg;
    int64_t deadline_ms; /* < 0: none */

    pthread_mutex_t lock; /* below */
    pthread_cond_t finished;
    enum call_state state;
    bool closing;
    int r;
    nng_msg *reply;
};

static void call_timeout(struct wire_call *k)
{
    const int64_t left = k->deadline_ms - now_ms();

    nng_aio_set_timeout(k->aio, k->deadline_ms < 0 ? NNG_DURATION_INFINITE
                                : left > 0         ? (nng_duration)left
                                                   : NNG_DURATION_ZERO);
}

static void on_call(void *arg)
{
    struct wire_call *k = arg;
    const int rv = nng_aio_result(k->aio);
    bool receive_next = false, tell = false;

    pthread_mutex_lock(&k->lock);
    if (k->state == CALL_SEND && rv == 0 && !k->closing) {
        k->state = CALL_RECV;
        receive_next = true;
    } else {
        if (k->state == CALL_SEND && rv != 0) {
            nng_msg *msg = nng_aio_get_msg(k->aio);
            if (msg)
                nng_msg_free(msg);
        } else if (k->state == CALL_RECV && rv == 0) {
            k->reply = nng_aio_get_msg(k->aio);
        }
        nng_aio_set_msg(k->aio, NULL);
        k->r = wire_err(rv);
        k->state = CALL_DONE;
        atomic_fetch_sub(&k->client->calls, 1);
        atomic_store(&k->client->heard_ms, now_ms());
        tell = !k->closing;
        pthread_cond_broadcast(&k->finished);
    }
    pthread_mutex_unlock(&k->lock);
    if (receive_next) {
        call_timeout(k);
        nng_ctx_recv(k->ctx, k->aio);
    }
    if (tell && k->done)
        k->done(k->arg);
}

int wire_call_new(struct wire_client *c, void (*done)(void *arg), void *arg, struct wire_call **ret)
{
    struct wire_call *k = calloc(1, sizeof *k);
    int rv;

    if (!k)
        return -ENOMEM;
    k->client = c;
    k->done = done;
    k->arg = arg;
    rv = nng_aio_alloc(&k->aio, on_call, k);
    if (rv == 0) {
        rv = nng_ctx_open(&k->ctx, c->socket);
        if (rv != 0)
            nng_aio_free(k->aio);
    }
    if (rv != 0) {
        free(k);
        return wire_err(rv);
    }
    pthread_mutex_init(&k->lock, NULL);
    pthread_cond_init(&k->finished, NULL);
    *ret = k;
    return 0;
}

void wire_call_free(struct wire_call *k)
{
    if (!k)
        return;
    pthread_mutex_lock(&k->lock);
    k->closing = true;
    pthread_mutex_unlock(&k->lock);
    nng_ctx_close(k->ctx);
    nng_aio_stop(k->aio);
    nng_aio_free(k->aio);
    if (k->reply)
        nng_msg_free(k->reply);
    pthread_cond_destroy(&k->finished);
    pthread_mutex_destroy(&k->lock);
    free(k);
}

int wire_call_start(struct wire_call *k, const void *data, size_t bytes, int timeout_ms)
{
    nng_msg *msg;
    int rv;

    if (bytes > LIMIT_MSG_BYTES)
        return -EMSGSIZE; /* the server would only cut the connection */
    pthread_mutex_lock(&k->lock);
    if (k->state != CALL_IDLE) {
        pthread_mutex_unlock(&k->lock);
        return -EBUSY;
    }
    k->state = CALL_SEND;
    pthread_mutex_unlock(&k->lock);
    rv = nng_msg_alloc(&msg, 0);
    if (rv == 0) {
        rv = nng_msg_append(msg, data, bytes);
        if (rv != 0)
            nng_msg_free(msg);
    }
    if (rv != 0) {
        pthread_mutex_lock(&k->lock);
        k->state = CALL_IDLE;
        pthread_mutex_unlock(&k->lock);
        return wire_err(rv);
    }
    if (atomic_fetch_add(&k->client->calls, 1) == 0)
        atomic_store(&k->client->heard_ms, now_ms());
    k->deadline_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
    call_timeout(k);
    nng_aio_set_msg(k->aio, msg);
    nng_ctx_send(k->ctx, k->aio);
    return 0;
}

int wire_call_take(struct wire_call *k, uint8_t **ret, size_t *ret_bytes)
{
    nng_msg *msg;
    int r;

    pthread_mutex_lock(&k->lock);
    if (k->state != CALL_DONE) {
        r = k->state == CALL_IDLE ? -EINVAL : -EAGAIN;
        pthread_mutex_unlock(&k->lock);
        return r;
    }
    r = k->r;
    msg = k->reply;
    k->reply = NULL;
    k->state = CALL_IDLE;
    pthread_mutex_unlock(&k->lock);
    if (r == 0 && !msg)
        r = -EIO;
    if (r == 0) {
        const size_t n = nng_msg_len(msg);
        uint8_t *data = malloc(n + 1);
        if (data) {
            memcpy(data, nng_msg_body(msg), n);
            *ret = data;
            *ret_bytes = n;
        } else {
            r = -ENOMEM;
        }
    }
    if (msg)
        nng_msg_free(msg);
    return r;
}

int wire_call(struct wire_client *c, const void *data, size_t bytes, int timeout_ms, uint8_t **ret,
              size_t *ret_bytes)
{
    struct wire_call *k;
    int r = wire_call_new(c, NULL, NULL, &k);

    if (r < 0)
        return r;
    r = wire_call_start(k, data, bytes, timeout_ms);
    if (r == 0) {
        pthread_mutex_lock(&k->lock);
        while (k->state != CALL_DONE)
            pthread_cond_wait(&k->finished, &k->lock);
        pthread_mutex_unlock(&k->lock);
        r = wire_call_take(k, ret, ret_bytes);
    }
    wire_call_free(k);
    return r;
}
