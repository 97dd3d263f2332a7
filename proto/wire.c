/* wire.c - the server's half of wire.h. Only wire*.c know nng (1.5.2 and later 1.x). */
#include "proto/wire.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>

#include "proto/limit.h"
#include "proto/wire_nng.h"

enum {
    SEND_TIMEOUT_MS = 5000, /* a peer that does not read (service.md 3)  */
    CONTEXTS_FIRST = 8,     /* contexts are added as they are needed     */
    UNSENT_BYTES = 1 << 20, /* replies that wait for one peer to read    */
};

int wire_err(int rv)
{
    if (rv == 0)
        return 0;
    if (rv & NNG_ESYSERR)
        return -(rv & ~NNG_ESYSERR);
    switch (rv) {
    case NNG_ENOMEM:
        return -ENOMEM;
    case NNG_ETIMEDOUT:
        return -ETIMEDOUT;
    case NNG_ECONNREFUSED:
    case NNG_ECONNRESET:
    case NNG_ECONNABORTED:
    case NNG_ECONNSHUT:
        return -ECONNREFUSED;
    case NNG_ENOENT:
        return -ENOENT;
    case NNG_EPERM:
        return -EACCES;
    case NNG_EADDRINUSE:
        return -EADDRINUSE;
    case NNG_EADDRINVAL:
    case NNG_ENOTSUP:
    case NNG_EINVAL:
        return -EINVAL;
    case NNG_EMSGSIZE:
        return -EMSGSIZE;
    case NNG_ECLOSED:
    case NNG_ECANCELED:
        return -ECANCELED;
    case NNG_ENOSPC:
    case NNG_ENOFILES:
        return -EMFILE;
    default:
        return -EIO;
    }
}

/* ---- server ---- */

enum req_state { REQ_RECV, REQ_QUEUED, REQ_TAKEN, REQ_SENDING, REQ_DEAD };

struct wire_req {
    struct wire_server *server;
    nng_ctx ctx;
    nng_aio *aio;
    nng_msg *msg; /* QUEUED, TAKEN */
    enum req_state state;
    bool counted;  /* in its pipe's in_progress */
    size_t unsent; /* bytes of its reply, in its pipe's unsent */
    bool has_peer;
    uint32_t pipe;
    uint64_t uid, pid;
    _Atomic bool gone;
    struct wire_req *next; /* in the queue */
};

struct pipe_entry {
    uint32_t id;
    bool has_peer;
    uint64_t uid, pid;
    unsigned in_progress;
    size_t unsent;
};

struct wire_server {
    nng_socket socket;
    nng_listener listener;
    struct wire_listen o;
    char url[LIMIT_SOCKET_PATH + 16];
    dev_t dev;
    ino_t ino;
    _Atomic unsigned arrived; /* connections so far                    */
    int probe;                /* a connection of our own; -1: none     */
    unsigned probe_arrived;   /* `arrived` when it was made            */

    pthread_mutex_t lock; /* everything below; never held while calling nng */
    bool closing;
    struct wire_req **reqs; /* o.contexts of them at most, so the array never moves */
    unsigned n_reqs, idle;
    struct pipe_entry *pipes;
    unsigned n_pipes, cap_pipes;
    struct wire_req *head, *tail;
};

static struct pipe_entry *pipe_find(struct wire_server *s, uint32_t id)
{
    for (unsigned i = 0; i < s->n_pipes; i++)
        if (s->pipes[i].id == id)
            return &s->pipes[i];
    return NULL;
}

static void pipe_uncount(struct wire_server *s, struct wire_req *r)
{
    struct pipe_entry *p = r->counted ? pipe_find(s, r->pipe) : NULL;

    if (p && p->in_progress > 0)
        p->in_progress--;
    if (p)
        p->unsent -= r->unsent < p->unsent ? r->unsent : p->unsent;
    r->counted = false;
    r->unsent = 0;
}

/* ADD_PRE comes before the pipe's first message, ADD_POST may come after it. */
static void on_pipe(nng_pipe pipe, nng_pipe_ev ev, void *arg)
{
    struct wire_server *s = arg;
    const uint32_t id = (uint32_t)nng_pipe_id(pipe);
    struct pipe_entry e = {.id = id};
    bool wake = false, refuse = false;

    if (ev == NNG_PIPE_EV_ADD_PRE)
        e.has_peer = nng_pipe_get_uint64(pipe, NNG_OPT_IPC_PEER_UID, &e.uid) == 0 &&
                     nng_pipe_get_uint64(pipe, NNG_OPT_IPC_PEER_PID, &e.pid) == 0;
    if (ev == NNG_PIPE_EV_ADD_PRE)
        atomic_fetch_add(&s->arrived, 1);
    pthread_mutex_lock(&s->lock);
    if (ev == NNG_PIPE_EV_ADD_PRE) {
        if (s->n_pipes == s->cap_pipes) {
            const unsigned cap = s->cap_pipes ? s->cap_pipes * 2 : 16;
            struct pipe_entry *v = realloc(s->pipes, cap * sizeof *v);
            if (v) {
                s->pipes = v;
                s->cap_pipes = cap;
            } else {
                refuse = true;
            }
        }
        if (!refuse)
            s->pipes[s->n_pipes++] = e;
    } else if (ev == NNG_PIPE_EV_REM_POST) {
        struct pipe_entry *p = pipe_find(s, id);
        if (p)
            *p = s->pipes[--s->n_pipes];
        for (unsigned i = 0; i < s->n_reqs; i++) {
            struct wire_req *r = s->reqs[i];
            if (r->pipe == id && (r->state == REQ_QUEUED || r->state == REQ_TAKEN)) {
                atomic_store(&r->gone, true);
                wake = true;
            }
        }
    }
    wake = wake && !s->closing;
    pthread_mutex_unlock(&s->lock);
    if (refuse)
        nng_pipe_close(pipe);
    if (wake)
        s->o.wake(s->o.arg);
}

static void receive(struct wire_req *r)
{
    nng_aio_set_timeout(r->aio, NNG_DURATION_INFINITE);
    nng_ctx_recv(r->ctx, r->aio);
}

static void send_frame(struct wire_req *r, nng_msg *msg, const void *data, size_t bytes)
{
    nng_msg_clear(msg);
    if (nng_msg_append(msg, data, bytes) != 0) {
        /* no memory: the client will ask again */
        nng_msg_free(msg);
        pthread_mutex_lock(&r->server->lock);
        pipe_uncount(r->server, r);
        r->state = REQ_RECV;
        r->server->idle++;
        pthread_mutex_unlock(&r->server->lock);
        receive(r);
        return;
    }
    nng_aio_set_timeout(r->aio, SEND_TIMEOUT_MS);
    nng_aio_set_msg(r->aio, msg);
    nng_ctx_send(r->ctx, r->aio);
}

static void on_aio(void *arg);

/* One context more, listening. Called without the lock by whoever raised n_reqs'
 * reservation; only fails for want of memory or descriptors, which is survivable. */
static int add_context(struct wire_server *s)
{
    struct wire_req *r = calloc(1, sizeof *r);
    int rv;

    if (!r)
        return -ENOMEM;
    r->server = s;
    rv = nng_aio_alloc(&r->aio, on_aio, r);
    if (rv == 0) {
        rv = nng_ctx_open(&r->ctx, s->socket);
        if (rv != 0)
            nng_aio_free(r->aio);
    }
    if (rv != 0) {
        free(r);
        return wire_err(rv);
    }
    pthread_mutex_lock(&s->lock);
    if (s->closing || s->n_reqs == s->o.contexts) {
        pthread_mutex_unlock(&s->lock);
        nng_ctx_close(r->ctx);
        nng_aio_free(r->aio);
        free(r);
        return -ECANCELED;
    }
    s->reqs[s->n_reqs++] = r;
    s->idle++;
    pthread_mutex_unlock(&s->lock);
    receive(r);
    return 0;
}

/* A request arrived. Returns what to do outside the lock. */
enum arrival { ARRIVED_QUEUED, ARRIVED_BUSY, ARRIVED_DEAD };

static enum arrival arrive(struct wire_server *s, struct wire_req *r, nng_msg *msg, bool *ret_wake)
{
    struct pipe_entry *p;

    r->pipe = (uint32_t)nng_pipe_id(nng_msg_get_pipe(msg));
    p = pipe_find(s, r->pipe);
    *ret_wake = false;
    if (!p)
        return ARRIVED_DEAD; /* its pipe was removed already */
    s->idle--;
    r->has_peer = p->has_peer;
    r->uid = p->uid;
    r->pid = p->pid;
    atomic_store(&r->gone, false);
    if (p->in_progress >= s->o.per_pipe) {
        r->state = REQ_SENDING;
        r->counted = false;
        return ARRIVED_BUSY;
    }
    p->in_progress++;
    r->counted = true;
    r->msg = msg;
    r->state = REQ_QUEUED;
    r->next = NULL;
    if (s->tail)
        s->tail->next = r;
    else
        s->head = r;
    s->tail = r;
    *ret_wake = true;
    return ARRIVED_QUEUED;
}

static void on_received(struct wire_req *r)
{
    struct wire_server *s = r->server;
    nng_msg *msg = nng_aio_get_msg(r->aio);
    enum arrival what;
    bool wake, grow;

    pthread_mutex_lock(&s->lock);
    if (s->closing) {
        r->state = REQ_DEAD;
        pthread_mutex_unlock(&s->lock);
        nng_msg_free(msg);
        return;
    }
    what = arrive(s, r, msg, &wake);
    grow = s->idle == 0 && s->n_reqs < s->o.contexts;
    pthread_mutex_unlock(&s->lock);
    if (what == ARRIVED_BUSY) {
        send_frame(r, msg, s->o.busy, s->o.busy_bytes);
    } else if (what == ARRIVED_DEAD) {
        nng_msg_free(msg);
        receive(r);
    }
    if (wake)
        s->o.wake(s->o.arg);
    if (grow)
        (void)add_context(s);
}

static void on_sent(struct wire_req *r, int rv)
{
    struct wire_server *s = r->server;
    bool closing;

    if (rv != 0) {
        nng_msg *msg = nng_aio_get_msg(r->aio);
        if (msg)
            nng_msg_free(msg);
        nng_aio_set_msg(r->aio, NULL);
    }
    pthread_mutex_lock(&s->lock);
    pipe_uncount(s, r);
    closing = s->closing;
    r->state = closing ? REQ_DEAD : REQ_RECV;
    if (!closing)
        s->idle++;
    pthread_mutex_unlock(&s->lock);
    if (closing)
        return;
    if (rv == NNG_ETIMEDOUT)
        nng_pipe_close((nng_pipe){.id = r->pipe});
    receive(r);
}

static void on_aio(void *arg)
{
    struct wire_req *r = arg;
    const int rv = nng_aio_result(r->aio);
    enum req_state state;
    bool closing;

    pthread_mutex_lock(&r->server->lock);
    state = r->state;
    closing = r->server->closing;
    pthread_mutex_unlock(&r->server->lock);
    if (state == REQ_SENDING)
        on_sent(r, rv);
    else if (rv == 0)
        on_received(r);
    else if (!closing && rv != NNG_ECLOSED && rv != NNG_ECANCELED)
        receive(r);
}

const char *wire_ipc_path(const char *url)
{
    return strncmp(url, "ipc://", 6) == 0 ? url + 6 : NULL;
}

static int start_listener(struct wire_server *s)
{
    struct stat st;
    int rv = nng_listener_create(&s->listener, s->socket, s->url);

    if (rv != 0)
        return wire_err(rv);
    rv = nng_listener_set_int(s->listener, NNG_OPT_IPC_PERMISSIONS, (int)s->o.mode);
    if (rv == 0)
        rv = nng_listener_start(s->listener, 0);
    if (rv != 0) {
        nng_listener_close(s->listener);
        return wire_err(rv);
    }
    if (wire_ipc_path(s->url) && stat(wire_ipc_path(s->url), &st) == 0) {
        s->dev = st.st_dev;
        s->ino = st.st_ino;
    }
    return 0;
}

static void server_free(struct wire_server *s)
{
    for (unsigned i = 0; i < s->n_reqs; i++) {
        struct wire_req *r = s->reqs[i];
        nng_aio_stop(r->aio);
        nng_aio_free(r->aio);
        if (r->msg)
            nng_msg_free(r->msg);
        free(r);
    }
    pthread_mutex_destroy(&s->lock);
    free(s->reqs);
    free(s->pipes);
    free(s);
}

static int server_open(struct wire_server *s)
{
    int r = wire_err(nng_rep0_open(&s->socket));

    if (r < 0)
        return r;
    r = wire_err(nng_socket_set_size(s->socket, NNG_OPT_RECVMAXSZ, LIMIT_MSG_BYTES));
    if (r == 0)
        r = wire_err(nng_pipe_notify(s->socket, NNG_PIPE_EV_ADD_PRE, on_pipe, s));
    if (r == 0)
        r = wire_err(nng_pipe_notify(s->socket, NNG_PIPE_EV_REM_POST, on_pipe, s));
    if (r == 0)
        r = start_listener(s);
    for (unsigned i = 0; i < CONTEXTS_FIRST && i < s->o.contexts && r == 0; i++)
        r = add_context(s);
    if (r < 0) {
        pthread_mutex_lock(&s->lock);
        s->closing = true;
        pthread_mutex_unlock(&s->lock);
        nng_close(s->socket);
    }
    return r;
}

int wire_listen(const struct wire_listen *o, struct wire_server **ret, struct err *err)
{
    const char *path = wire_ipc_path(o->url);
    struct wire_server *s;
    int r;

    if (path && strlen(path) > LIMIT_SOCKET_PATH)
        return err_set(err, -ENAMETOOLONG,
                       "the socket's path has %zu bytes, the system allows %d: %s", strlen(path),
                       LIMIT_SOCKET_PATH, path);
    s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    s->o = *o;
    s->probe = -1;
    s->reqs = calloc(o->contexts, sizeof(struct wire_req *));
    if (!s->reqs) {
        free(s);
        return -ENOMEM;
    }
    snprintf(s->url, sizeof s->url, "%s", o->url);
    pthread_mutex_init(&s->lock, NULL);
    r = server_open(s);
    if (r < 0) {
        server_free(s);
        return err_set(err, r, "cannot listen on %s: %s", o->url, strerror(-r));
    }
    *ret = s;
    return 0;
}

/* ---- the listener's health ---- */

static void probe_end(struct wire_server *s)
{
    if (s->probe >= 0)
        close(s->probe);
    s->probe = -1;
}

/* A connection of our own, with the words of a requester. It stays open until the next
 * look, so that it cannot do what it looks for. */
static void probe_begin(struct wire_server *s, const char *path)
{
    static const unsigned char hello[] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    s->probe_arrived = atomic_load(&s->arrived);
    s->probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    memcpy(a.sun_path, path, strlen(path) + 1);
    if (s->probe >= 0 && (connect(s->probe, (struct sockaddr *)&a, sizeof a) < 0 ||
                          send(s->probe, hello, sizeof hello, MSG_NOSIGNAL) != sizeof hello))
        probe_end(s); /* a full backlog, no descriptors: the next look tries again */
}

static int bind_again(struct wire_server *s)
{
    probe_end(s);
    nng_listener_close(s->listener);
    return start_listener(s);
}

/* nng 1.5.2 stops to accept for good when a peer has gone before it is greeted: EPIPE becomes
 * "closed", which its accept loop takes for the listener's own end. The kernel goes on
 * to accept, and nng to greet, connections that nobody ever sees. */
int wire_check(struct wire_server *s)
{
    const char *path = wire_ipc_path(s->url);
    struct stat st;
    bool deaf;
    int r;

    if (!path)
        return 0;
    if (stat(path, &st) < 0 || st.st_dev != s->dev || st.st_ino != s->ino) {
        r = bind_again(s);
        return r < 0 ? r : 1;
    }
    deaf = s->probe >= 0 && atomic_load(&s->arrived) == s->probe_arrived;
    probe_end(s);
    if (deaf) {
        r = bind_again(s);
        return r < 0 ? r : 2;
    }
    probe_begin(s, path);
    return 0;
}

void wire_close(struct wire_server *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_mutex_unlock(&s->lock);
    probe_end(s);
    nng_close(s->socket);
    server_free(s);
}

struct wire_req *wire_take(struct wire_server *s)
{
    struct wire_req *r;

    pthread_mutex_lock(&s->lock);
    r = s->head;
    if (r) {
        s->head = r->next;
        if (!s->head)
            s->tail = NULL;
        r->next = NULL;
        r->state = REQ_TAKEN;
    }
    pthread_mutex_unlock(&s->lock);
    return r;
}

const void *wire_data(const struct wire_req *r, size_t *ret_bytes)
{
    *ret_bytes = nng_msg_len(r->msg);
    return nng_msg_body(r->msg);
}

bool wire_peer(const struct wire_req *r, uint64_t *ret_uid, uint64_t *ret_pid)
{
    *ret_uid = r->uid;
    *ret_pid = r->pid;
    return r->has_peer;
}

uint32_t wire_pipe(const struct wire_req *r)
{
    return r->pipe;
}

bool wire_gone(const struct wire_req *r)
{
    return atomic_load(&r->gone);
}

void wire_reply(struct wire_req *r, const void *data, size_t bytes)
{
    struct wire_server *s = r->server;
    struct pipe_entry *p;
    nng_msg *msg;

    pthread_mutex_lock(&s->lock);
    msg = r->msg;
    r->msg = NULL;
    r->state = REQ_SENDING;
    p = r->counted ? pipe_find(s, r->pipe) : NULL;
    if (p && p->unsent > 0 && p->unsent + bytes > UNSENT_BYTES) {
        data = s->o.busy;
        bytes = s->o.busy_bytes;
    }
    if (p)
        p->unsent += r->unsent = bytes;
    pthread_mutex_unlock(&s->lock);
    send_frame(r, msg, data, bytes);
}

void wire_drop(struct wire_req *r)
{
    struct wire_server *s = r->server;
    nng_msg *msg;

    pthread_mutex_lock(&s->lock);
    msg = r->msg;
    r->msg = NULL;
    pipe_uncount(s, r);
    r->state = REQ_RECV;
    s->idle++;
    pthread_mutex_unlock(&s->lock);
    nng_msg_free(msg);
    receive(r); /* makes nng forget the request */
}
