/* server.c - frames to events, and what the core answers back to frames. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/alignd.h"
#include "daemon/server_handlers.h"
#include "daemon/views.h"
#include "proto/log.h"

enum {
    CONTEXTS = 4096,
    PER_PIPE = 8,
    PER_PIPE_WATCH = 64,
    RETRY_MS = 1000,
    TAKE_MAX = 256, /* requests handled before the loop looks at anything else */
};

/* ---- requests in hand ---- */

static uint64_t request_new(struct alignd *a, struct wire_req *w, enum alignd_socket socket)
{
    struct request *q;
    uint32_t i = a->free_request;

    if (i == 0) {
        struct request *v;
        const uint32_t n = a->n_requests ? 2 * a->n_requests : 64;
        v = realloc(a->requests, n * sizeof *v);
        if (!v)
            return 0;
        memset(v + a->n_requests, 0, (n - a->n_requests) * sizeof *v);
        for (uint32_t k = n; k > a->n_requests; k--) {
            v[k - 1].next_free = a->free_request;
            a->free_request = k;
        }
        a->requests = v;
        a->n_requests = n;
        i = a->free_request;
    }
    q = &a->requests[i - 1];
    a->free_request = q->next_free;
    q->wire = w;
    q->generation++;
    q->socket = socket;
    q->type = MSG_T_error;
    q->uid = UINT64_MAX;
    q->recalled = false;
    q->page = NULL;
    return (uint64_t)q->generation << 32 | i;
}

struct request *server_request(struct alignd *a, uint64_t handle)
{
    const uint32_t i = (uint32_t)handle;
    struct request *q = i > 0 && i <= a->n_requests ? &a->requests[i - 1] : NULL;

    return q && q->wire && q->generation == (uint32_t)(handle >> 32) ? q : NULL;
}

static struct wire_req *request_end(struct alignd *a, uint64_t handle)
{
    struct request *q = server_request(a, handle);
    struct wire_req *w;

    if (!q)
        return NULL;
    w = q->wire;
    q->wire = NULL;
    q->next_free = a->free_request;
    a->free_request = (uint32_t)handle;
    return w;
}

void server_send_frame(struct alignd *a, uint64_t handle, const void *data, size_t bytes)
{
    struct wire_req *w = request_end(a, handle);

    if (w)
        wire_reply(w, data, bytes);
}

void server_drop(struct alignd *a, uint64_t handle)
{
    struct wire_req *w = request_end(a, handle);

    if (w)
        wire_drop(w);
}

void server_send(struct alignd *a, uint64_t handle, const struct msg *m)
{
    struct err err = {""};
    uint8_t *data;
    size_t bytes;

    if (codec_encode(m, &data, &bytes, &err) < 0) {
        log_error("server_send", "type=%s error=\"%s\"", codec_name(m->type), err.text);
        if (m->type == MSG_T_error)
            server_drop(a, handle);
        else
            server_error(a, handle, MSG_INTERNAL, "%s", err.text);
        return;
    }
    server_send_frame(a, handle, data, bytes);
    free(data);
}

void server_send_error(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct request *q = server_request(a, handle);

    if (q && m->error.code != MSG_RETRY)
        log_debug("request_error", "type=%s uid=%" PRIu64 " code=%" PRIu64 " text=\"%s\"",
                  codec_name(q->type), q->uid, m->error.code, m->error.text);
    server_send(a, handle, m);
}

void server_error(struct alignd *a, uint64_t handle, enum msg_code code, const char *fmt, ...)
{
    char text[2048];
    struct msg m = {.type = MSG_T_error};
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    m.error.code = code;
    m.error.text = text;
    if (code == MSG_RETRY || code == MSG_BUSY)
        m.error.retry_ms = RETRY_MS;
    server_send_error(a, handle, &m);
}

/* ---- the core's answers ---- */

static const char *or_else(const char *text, const char *other)
{
    return text && *text ? text : other;
}

static void reply_error(struct alignd *a, const struct fx_reply *r)
{
    static const struct {
        enum event_code event;
        enum msg_code msg;
        const char *text;
    } map[] = {
        {EVENT_GAP, MSG_GAP, "reports are missing"},
        {EVENT_INVALID, MSG_INVALID, "the request makes no sense"},
        {EVENT_NOT_FOUND, MSG_NOT_FOUND, "not found"},
        {EVENT_NOT_ALLOWED, MSG_REFUSED, "it belongs to another user"},
        {EVENT_CONFLICT, MSG_CONFLICT, "this request id was used for something else"},
        {EVENT_IN_USE, MSG_REFUSED, "output_dir belongs to an unfinished job"},
        {EVENT_BAD_STATE, MSG_REFUSED, "not in this state of the job"},
        {EVENT_TOO_MANY, MSG_REFUSED, "a limit of alignd is reached"},
        {EVENT_RETRY, MSG_RETRY, "alignd cannot store anything now (disk full)"},
        {EVENT_STOPPING, MSG_RETRY, "alignd is stopping"},
        {EVENT_FENCED, MSG_FENCED, "this attempt is over, or the token is wrong"},
    };
    struct msg m = {.type = MSG_T_error};

    m.error.code = MSG_INTERNAL;
    m.error.text = "unknown outcome";
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++) {
        if (map[i].event == r->code) {
            m.error.code = map[i].msg;
            m.error.text = or_else(r->text, map[i].text);
        }
    }
    if (m.error.code == MSG_RETRY)
        m.error.retry_ms = RETRY_MS;
    m.error.expect = r->expect_n;
    server_send_error(a, r->client, &m);
}

void server_reply(struct alignd *a, const struct fx_reply *r)
{
    const struct request *q = server_request(a, r->client);
    const struct job *j = core_job(a->core, r->job);
    struct msg m = {.type = MSG_T_error};

    if (!q)
        return;
    if (r->code != EVENT_OK && r->code != EVENT_NOTHING) {
        reply_error(a, r);
        return;
    }
    m.type = codec_reply(q->type);
    switch (m.type) {
    case MSG_T_submitted:
        m.submitted.job = r->job;
        m.submitted.output_dir = j && j->output_dir ? j->output_dir : "";
        break;
    case MSG_T_done:
        m.done.job = r->job;
        m.done.state = j ? job_state_name((enum job_state)j->state) : "";
        m.done.text = or_else(r->text, "");
        break;
    case MSG_T_w_welcome:
        m.w_welcome.version = MSG_WORKER_V_MAX;
        m.w_welcome.store = store_uuid(a->store);
        m.w_welcome.next_n = r->expect_n;
        m.w_welcome.flags = r->directives;
        break;
    case MSG_T_w_ack:
        m.w_ack.next_n = r->expect_n;
        m.w_ack.flags = r->directives;
        break;
    case MSG_T_w_order:
        m.w_order.serial = m.w_order.flags = r->directives;
        m.w_order.text = or_else(r->text, "");
        break;
    case MSG_T_w_value:
        m.w_value.found = r->code == EVENT_OK;
        m.w_value.value = (struct msg_bin){r->value, r->bytes};
        break;
    case MSG_T_w_ok:
        break;
    default:
        m.type = MSG_T_error;
        m.error.code = MSG_INTERNAL;
        m.error.text = "no reply for this request";
    }
    server_send(a, r->client, &m);
}

/* ---- which message, from whom, where ---- */

static const struct {
    enum msg_type type;
    enum alignd_socket socket;
    void (*fn)(struct alignd *a, uint64_t handle, struct msg *m);
} handlers[] = {
    {MSG_T_hello, SOCKET_CONTROL, server_client_hello},
    {MSG_T_submit, SOCKET_CONTROL, server_client_submit},
    {MSG_T_list, SOCKET_CONTROL, server_client_list},
    {MSG_T_show, SOCKET_CONTROL, server_client_show},
    {MSG_T_spec, SOCKET_CONTROL, server_client_spec},
    {MSG_T_devices, SOCKET_CONTROL, server_client_devices},
    {MSG_T_cancel, SOCKET_CONTROL, server_client_cancel},
    {MSG_T_resume, SOCKET_CONTROL, server_client_resume},
    {MSG_T_hold, SOCKET_CONTROL, server_client_hold},
    {MSG_T_drain, SOCKET_CONTROL, server_client_drain},
    {MSG_T_stop_daemon, SOCKET_CONTROL, server_client_stop_daemon},
    {MSG_T_metrics, SOCKET_CONTROL, server_client_metrics},
    {MSG_T_logs, SOCKET_CONTROL, server_client_logs},
    {MSG_T_watch_job, SOCKET_WATCH, server_client_watch_job},
    {MSG_T_watch_queue, SOCKET_WATCH, server_client_watch_queue},
    {MSG_T_watch_log, SOCKET_WATCH, server_client_watch_log},
    {MSG_T_w_hello, SOCKET_WORKER, server_worker_hello},
    {MSG_T_w_report, SOCKET_WORKER, server_worker_report},
    {MSG_T_w_log, SOCKET_WORKER, server_worker_log},
    {MSG_T_w_directive, SOCKET_WORKER, server_worker_directive},
    {MSG_T_w_rdv_put, SOCKET_WORKER, server_worker_rdv_put},
    {MSG_T_w_rdv_get, SOCKET_WORKER, server_worker_rdv_get},
    {MSG_T_w_exit, SOCKET_WORKER, server_worker_exit},
};

static void version_error(struct alignd *a, uint64_t handle, enum alignd_socket socket,
                          const char *text)
{
    struct msg m = {.type = MSG_T_error};

    m.error.code = MSG_VERSION;
    m.error.text = text;
    m.error.v_min = socket == SOCKET_WORKER ? MSG_WORKER_V_MIN : MSG_CLIENT_V_MIN;
    m.error.v_max = socket == SOCKET_WORKER ? MSG_WORKER_V_MAX : MSG_CLIENT_V_MAX;
    server_send_error(a, handle, &m);
}

static void dispatch(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct request *q = server_request(a, handle);

    q->type = m->type;
    for (size_t i = 0; i < sizeof handlers / sizeof handlers[0]; i++) {
        if (handlers[i].type == m->type && handlers[i].socket == q->socket) {
            handlers[i].fn(a, handle, m);
            return;
        }
    }
    server_error(a, handle, MSG_INVALID, "%s is not a request of this socket", codec_name(m->type));
}

void server_again(struct alignd *a, uint64_t handle)
{
    const struct request *q = server_request(a, handle);
    struct err err = {""};
    struct msg *m = NULL;
    const void *data;
    size_t bytes;
    int r;

    if (!q)
        return;
    data = wire_data(q->wire, &bytes);
    r = codec_decode(data, bytes, &m, &err);
    if (r == -EPROTONOSUPPORT)
        version_error(a, handle, q->socket, err.text);
    else if (r == -ENOMEM)
        server_error(a, handle, MSG_RETRY, "out of memory");
    else if (r < 0)
        server_error(a, handle, MSG_INVALID, "%s", err.text);
    else
        dispatch(a, handle, m);
    codec_free(m);
}

static void handle_frame(struct alignd *a, struct wire_req *w, enum alignd_socket socket)
{
    const uint64_t handle = request_new(a, w, socket);
    struct request *q = server_request(a, handle);
    uint64_t uid, pid;

    if (!q) {
        wire_drop(w); /* no memory; the client asks again */
        return;
    }
    if (!wire_peer(w, &uid, &pid)) {
        server_error(a, handle, MSG_REFUSED, "the system does not say who you are");
        return;
    }
    q->uid = uid;
    if (!alignd_may(a, uid, geteuid())) { /* user mode: nobody else */
        server_error(a, handle, MSG_REFUSED, "this alignd belongs to %s", views_user(geteuid()));
        return;
    }
    server_again(a, handle);
}

static void on_arrived(uv_async_t *h)
{
    struct alignd *a = h->data;
    bool more = false;

    for (int s = 0; s < SOCKETS; s++) {
        struct wire_req *w = NULL;
        for (int n = 0; a->servers[s] && n < TAKE_MAX; n++) {
            w = wire_take(a->servers[s]);
            if (!w)
                break;
            handle_frame(a, w, (enum alignd_socket)s);
        }
        more = more || w;
    }
    held_sweep(a);
    if (more)
        uv_async_send(&a->arrived);
}

static void on_wake(void *arg) /* nng's threads */
{
    uv_async_send(&((struct alignd *)arg)->arrived);
}

/* ---- sockets ---- */

static int make_busy(struct alignd *a)
{
    struct msg m = {.type = MSG_T_error};

    m.error.code = MSG_BUSY;
    m.error.text = "too many requests in progress on this connection";
    m.error.retry_ms = 100;
    return codec_encode(&m, &a->busy, &a->busy_bytes, NULL);
}

int server_open(struct alignd *a, struct err *err)
{
    static const char *const names[SOCKETS] = {"control", "watch", "worker"};
    int r = make_busy(a);

    uv_async_init(a->loop, &a->arrived, on_arrived);
    a->arrived.data = a;
    for (int s = 0; s < SOCKETS && r == 0; s++) {
        const struct wire_listen o = {.url = a->urls[s],
                                      .mode = 0600,
                                      .contexts = CONTEXTS,
                                      .per_pipe = s == SOCKET_WATCH ? PER_PIPE_WATCH : PER_PIPE,
                                      .busy = a->busy,
                                      .busy_bytes = a->busy_bytes,
                                      .wake = on_wake,
                                      .arg = a};
        r = wire_listen(&o, &a->servers[s], err);
        if (r < 0)
            err_prefix(err, r, "the %s socket", names[s]);
    }
    return r;
}

void server_close(struct alignd *a)
{
    for (int s = 0; s < SOCKETS; s++) {
        wire_close(a->servers[s]);
        a->servers[s] = NULL;
    }
    free(a->busy);
    free(a->requests);
    a->busy = NULL;
    a->requests = NULL;
    a->n_requests = 0;
}
