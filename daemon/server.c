/* server.c - frames to events, and what the core answers back to frames. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/alignd.h"
#include "daemon/views.h"
#include "proto/log.h"
#include "proto/sha256.h"

enum {
    CONTEXTS = 4096,
    PER_PIPE = 8,
    PER_PIPE_WATCH = 64,
    JSON_BYTES = LIMIT_MSG_BYTES - 8192,
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

static void send_error(struct alignd *a, uint64_t handle, struct msg *m)
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
    send_error(a, handle, &m);
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
    send_error(a, r->client, &m);
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

/* ---- changes ---- */

/* `key` is the first field of every change of a client. */
#define CHECK_KEY(name) _Static_assert(offsetof(struct msg_##name, key) == 0, "key comes first")
CHECK_KEY(submit);
CHECK_KEY(cancel);
CHECK_KEY(resume);
CHECK_KEY(hold);
CHECK_KEY(drain);
CHECK_KEY(stop_daemon);

static int fill_request(const struct alignd *a, const struct request *q, struct msg *m,
                        struct event_request *ret)
{
    struct msg_key *key = &m->cancel.key;
    const struct msg_key was = *key;
    uint8_t *data;
    size_t bytes;
    int r;

    memset(key, 0, sizeof *key);
    r = codec_encode(m, &data, &bytes, NULL);
    *key = was;
    if (r < 0)
        return r;
    *ret = (struct event_request){.uid = (uint32_t)q->uid,
                                  .is_operator = alignd_may(a, q->uid, UINT64_MAX)};
    memcpy(ret->id, was.b, sizeof ret->id);
    sha256_of(data, bytes, ret->digest);
    free(data);
    return 0;
}

static void step(struct alignd *a, uint64_t handle, struct msg *m, struct event *ev)
{
    const struct request *q = server_request(a, handle);

    ev->client = handle;
    if (fill_request(a, q, m, &ev->req) < 0)
        server_error(a, handle, MSG_RETRY, "out of memory");
    else
        effects_step(a, ev);
}

static bool spec_like(const char *text)
{
    return text[0] == '{' && text[strlen(text) - 1] == '}';
}

static void on_submit(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_submit *s = &m->submit;
    struct event ev = {.kind = EV_SUBMIT};
    const struct effect *before = effects_submitted(a);
    struct effect *made;
    int type = !strcmp(s->device_type, "gpu")    ? JOB_GPU
               : !strcmp(s->device_type, "cpu")  ? JOB_CPU
               : !strcmp(s->device_type, "auto") ? 0
                                                 : -1;
    const uint64_t before_job = before ? before->job.id : 0;

    if (type < 0 || s->devices < 1 || !*s->name || s->output_dir[0] != '/' ||
        !spec_like(s->user_spec) || !spec_like(s->resolved) || s->steps > INT64_MAX) {
        server_error(a, handle, MSG_INVALID,
                     "submit: name, specs (JSON objects), an absolute output_dir, devices >= 1 and "
                     "device_type auto, gpu or cpu are needed");
        return;
    }
    ev.submit = (struct event_submit){.name = s->name,
                                      .method = s->method,
                                      .output_dir = s->output_dir,
                                      .devices = (uint32_t)s->devices,
                                      .type = (uint8_t)type,
                                      .priority = s->priority,
                                      .steps = (int64_t)s->steps,
                                      .held = s->hold,
                                      .user_spec = s->user_spec,
                                      .resolved_spec = s->resolved,
                                      .user_bytes = strlen(s->user_spec),
                                      .resolved_bytes = strlen(s->resolved)};
    step(a, handle, m, &ev);
    made = effects_submitted(a);
    if (made && made->job.id != before_job)
        made->spec.overwrite = s->overwrite;
}

static void on_cancel(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_CANCEL};

    ev.cancel.job = m->cancel.job;
    ev.cancel.now = m->cancel.now;
    step(a, handle, m, &ev);
}

static void on_resume(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_resume *s = &m->resume;
    struct event ev = {.kind = EV_RESUME};
    const bool specs = *s->user_spec || *s->resolved;

    if ((specs && (!spec_like(s->user_spec) || !spec_like(s->resolved))) || s->steps > INT64_MAX) {
        server_error(a, handle, MSG_INVALID, "resume: both specs (JSON objects) or none");
        return;
    }
    ev.resume.job = s->job;
    ev.resume.steps = (int64_t)s->steps;
    if (specs) {
        ev.resume.user_spec = s->user_spec;
        ev.resume.resolved_spec = s->resolved;
        ev.resume.user_bytes = strlen(s->user_spec);
        ev.resume.resolved_bytes = strlen(s->resolved);
    }
    step(a, handle, m, &ev);
}

static void on_hold(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = m->hold.on ? EV_HOLD : EV_RELEASE};

    ev.hold.job = m->hold.job;
    step(a, handle, m, &ev);
}

static void on_drain(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_DRAIN};

    ev.drain.device = m->drain.device;
    ev.drain.on = m->drain.on;
    step(a, handle, m, &ev);
}

static void on_stop_daemon(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_SHUTDOWN};

    step(a, handle, m, &ev);
}

/* ---- reads ---- */

static void on_hello(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct request *q = server_request(a, handle);
    const struct msg_hello *h = &m->hello;
    char note[256] = "";
    struct msg w = {.type = MSG_T_welcome};

    if (h->v_min > MSG_CLIENT_V_MAX || h->v_max < MSG_CLIENT_V_MIN) {
        struct msg e = {.type = MSG_T_error};
        e.error.code = MSG_VERSION;
        e.error.text = "alignd and alignctl are too far apart; use those of one release";
        e.error.v_min = MSG_CLIENT_V_MIN;
        e.error.v_max = MSG_CLIENT_V_MAX;
        send_error(a, handle, &e);
        return;
    }
    if (a->gpus_seen > 0)
        snprintf(note, sizeof note, "This build trains on the CPU only; %d GPU%s seen, not used",
                 a->gpus_seen, a->gpus_seen == 1 ? "" : "s");
    w.welcome =
        (struct msg_welcome){.version = h->v_max < MSG_CLIENT_V_MAX ? h->v_max : MSG_CLIENT_V_MAX,
                             .v_min = MSG_CLIENT_V_MIN,
                             .v_max = MSG_CLIENT_V_MAX,
                             .store = store_uuid(a->store),
                             .watch_url = a->urls[SOCKET_WATCH],
                             .worker_url = a->urls[SOCKET_WORKER],
                             .uid = q->uid,
                             .pid = (uint64_t)getpid(),
                             .build = ALIGND_VERSION,
                             .note = note};
    server_send(a, handle, &w);
}

static void send_json(struct alignd *a, uint64_t handle, struct buf *b, uint64_t next)
{
    struct msg m = {.type = MSG_T_json};

    if (b->r < 0) {
        server_error(a, handle, MSG_RETRY, "%s", strerror(-b->r));
    } else {
        m.json.text = b->data;
        m.json.next = next;
        effects_reply_later(a, handle, &m);
    }
    buf_free(b);
}

static size_t first_after(const struct core *c, uint64_t id)
{
    size_t lo = 0, hi = core_n_jobs(c);

    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (core_job_at(c, mid)->id <= id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static void on_list(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct request *q = server_request(a, handle);
    const struct msg_list *l = &m->list;
    struct buf b = {.max = JSON_BYTES};
    uint64_t n = 0, next = 0, last = 0;

    buf_str(&b, "[");
    for (size_t i = first_after(a->core, l->after); i < core_n_jobs(a->core); i++) {
        const struct job *j = core_job_at(a->core, i);
        if (!alignd_may(a, q->uid, j->uid) || (l->mine && j->uid != q->uid) ||
            (l->active && job_is_over((enum job_state)j->state)))
            continue;
        if (b.bytes > JSON_BYTES - 32768 || (l->max > 0 && n == l->max)) {
            next = last;
            break;
        }
        buf_str(&b, n++ ? "," : "");
        views_job(&b, a->core, j, false);
        last = j->id;
    }
    buf_str(&b, "]");
    send_json(a, handle, &b, next);
}

/* The job, if the asker may see it; else answers. */
static const struct job *visible(struct alignd *a, uint64_t handle, uint64_t id)
{
    const struct request *q = server_request(a, handle);
    const struct job *j = core_job(a->core, id);

    if (!j)
        server_error(a, handle, MSG_NOT_FOUND, "there is no job %" PRIu64, id);
    else if (!alignd_may(a, q->uid, j->uid))
        server_error(a, handle, MSG_REFUSED, "job %" PRIu64 " belongs to %s", id,
                     views_user(j->uid));
    else
        return j;
    return NULL;
}

static void on_show(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct request *q = server_request(a, handle);
    struct buf b = {.max = LIMIT_SPEC_BYTES};
    uint64_t id = m->show.job;
    const struct job *j;

    for (size_t i = core_n_jobs(a->core); id == 0 && i-- > 0;)
        if (core_job_at(a->core, i)->uid == q->uid)
            id = core_job_at(a->core, i)->id;
    if (id == 0) {
        server_error(a, handle, MSG_NOT_FOUND, "you have no job");
        return;
    }
    j = visible(a, handle, id);
    if (!j)
        return;
    views_job(&b, a->core, j, true);
    views_progress(&b, j);
    reads_show(a, handle, id, &b);
}

static void on_spec(struct alignd *a, uint64_t handle, struct msg *m)
{
    if (visible(a, handle, m->spec.job))
        reads_spec(a, handle, m->spec.job);
}

static void on_devices(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct buf b = {.max = JSON_BYTES};

    (void)m;
    views_devices(&b, a->core, "");
    send_json(a, handle, &b, 0);
}

static void on_metrics(struct alignd *a, uint64_t handle, struct msg *m)
{
    if (visible(a, handle, m->metrics.job))
        reads_rows(a, handle, &m->metrics);
}

static void on_logs(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_logs *l = &m->logs;
    const struct job *j = visible(a, handle, l->job);
    uint64_t attempt;

    if (!j)
        return;
    attempt = l->attempt ? l->attempt : j->attempt;
    if (attempt > j->attempt) {
        server_error(a, handle, MSG_NOT_FOUND, "job %" PRIu64 " has no attempt %" PRIu64, l->job,
                     attempt);
        return;
    }
    reads_log(a, handle, l->job, (uint32_t)attempt, (uint32_t)l->rank, l->offset, l->max,
              !gangs_log(a, l->job, (uint32_t)attempt, (uint32_t)l->rank));
}

static void on_watch_job(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct held h = {.kind = HELD_JOB,
                           .request = handle,
                           .job = m->watch_job.job,
                           .since = m->watch_job.since,
                           .rev = m->watch_job.rev};

    if (visible(a, handle, h.job))
        held_watch(a, &h);
}

static void on_watch_queue(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct held h = {.kind = HELD_QUEUE,
                           .request = handle,
                           .uid = server_request(a, handle)->uid,
                           .rev = m->watch_queue.rev};

    held_watch(a, &h);
}

static void on_watch_log(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_watch_log *l = &m->watch_log;
    const struct job *j = visible(a, handle, l->job);
    const struct held h = {.kind = HELD_LOG,
                           .request = handle,
                           .job = l->job,
                           .attempt = (uint32_t)l->attempt,
                           .rank = (uint32_t)l->rank,
                           .offset = l->offset,
                           .ask_newest = l->attempt == 0};

    if (!j)
        return;
    if (l->attempt > j->attempt)
        server_error(a, handle, MSG_NOT_FOUND, "job %" PRIu64 " has no attempt %" PRIu64, l->job,
                     l->attempt);
    else
        held_watch(a, &h);
}

/* ---- workers ---- */

/* Every w_ message begins with job, attempt, token (MSG_WHO). */
static void speaker(const struct alignd *a, const struct msg *m, struct event_worker *ret)
{
    const struct msg_w_rdv_get *who = &m->w_rdv_get;
    struct msg_token want;
    uint8_t differs = 0;

    alignd_token(a, who->job, (uint32_t)who->attempt, &want);
    for (size_t i = 0; i < sizeof want.b; i++) /* in constant time */
        differs |= want.b[i] ^ who->token.b[i];
    *ret = (struct event_worker){.job = who->job,
                                 .attempt = (uint32_t)who->attempt,
                                 .token_ok = differs == 0 && who->attempt <= UINT32_MAX};
}

static void on_w_hello(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_HELLO, .client = handle};

    if (m->w_hello.v_min > MSG_WORKER_V_MAX || m->w_hello.v_max < MSG_WORKER_V_MIN) {
        struct msg e = {.type = MSG_T_error};
        e.error.code = MSG_VERSION;
        e.error.text = "alignd does not speak this worker's version";
        e.error.v_min = MSG_WORKER_V_MIN;
        e.error.v_max = MSG_WORKER_V_MAX;
        send_error(a, handle, &e);
        return;
    }
    speaker(a, m, &ev.worker);
    ev.hello.build = m->w_hello.build;
    log_info("gang_hello", "job=%" PRIu64 " attempt=%" PRIu64 " pid=%" PRIu64 " build=%s",
             m->w_hello.job, m->w_hello.attempt, m->w_hello.pid, m->w_hello.build);
    effects_step(a, &ev);
}

static double loss_of(const struct msg_row *r)
{
    if (r->kind == MSG_ROW_TRAIN)
        for (uint32_t i = 0; i < r->n_values; i++)
            if (!strcmp(r->names[i], "loss"))
                return r->values[i];
    return __builtin_nan("");
}

static void on_w_report(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_w_report *w = &m->w_report;
    struct event ev = {.kind = EV_REPORT, .client = handle};
    struct event_row *rows = calloc(w->rows.n + 1, sizeof *rows);
    char *packed = NULL, *p;
    size_t bytes = 0;

    for (size_t i = 0; i < w->rows.n; i++)
        bytes += row_packed_bytes(&w->rows.v[i]);
    p = packed = malloc(bytes + 1);
    if (!rows || !packed) {
        server_error(a, handle, MSG_RETRY, "out of memory");
    } else {
        for (size_t i = 0; i < w->rows.n; i++) {
            const struct msg_row *r = &w->rows.v[i];
            row_pack(r, p);
            rows[i] = (struct event_row){.kind = (uint8_t)r->kind,
                                         .step = r->step,
                                         .wall_ms = r->wall_ms,
                                         .loss = loss_of(r),
                                         .vals = p,
                                         .bytes = row_packed_bytes(r)};
            p += rows[i].bytes;
        }
        speaker(a, m, &ev.worker);
        ev.report = (struct event_report){.rows_attempt = (uint32_t)w->rows_attempt,
                                          .first_n = w->first_n,
                                          .n = (uint32_t)w->rows.n,
                                          .rows = rows,
                                          .phase = (uint8_t)w->phase,
                                          .step = w->step,
                                          .steps = w->steps};
        effects_step(a, &ev);
    }
    free(rows);
    free(packed);
}

static void on_w_log(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_w_log *w = &m->w_log;
    struct msg ack = {.type = MSG_T_w_log_ack};
    struct event_worker who;
    struct gangs_log *end;

    speaker(a, m, &who);
    end = who.token_ok && w->rank < LIMIT_RANKS &&
                  core_gang(a->core, who.job, who.attempt, &(struct core_gang){0})
              ? gangs_log(a, who.job, who.attempt, (uint32_t)w->rank)
              : NULL;
    if (!end) {
        server_error(a, handle, MSG_FENCED, "this attempt is over, or the token is wrong");
        return;
    }
    if (a->store_full) {
        server_error(a, handle, MSG_RETRY, "alignd cannot store anything now (disk full)");
        return;
    }
    if (w->offset <= end->end && w->offset + w->bytes.bytes > end->end) {
        const size_t skip = (size_t)(end->end - w->offset);
        if (effects_log(a, who.job, who.attempt, (uint32_t)w->rank, end->end,
                        (const char *)w->bytes.data + skip, w->bytes.bytes - skip) < 0) {
            server_error(a, handle, MSG_RETRY, "out of memory");
            return;
        }
        end->end = w->offset + w->bytes.bytes;
    }
    ack.w_log_ack.offset = end->end;
    effects_reply_later(a, handle, &ack);
}

static void on_w_directive(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_POLL, .client = handle};

    speaker(a, m, &ev.worker);
    ev.poll.seen = (unsigned)m->w_directive.seen;
    server_request(a, handle)->seen = m->w_directive.seen;
    effects_step(a, &ev);
}

static void on_w_rdv_put(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_RDV_PUT, .client = handle};

    speaker(a, m, &ev.worker);
    ev.rdv.key = m->w_rdv_put.name;
    ev.rdv.value = m->w_rdv_put.value.data;
    ev.rdv.bytes = m->w_rdv_put.value.bytes;
    effects_step(a, &ev);
}

static void on_w_rdv_get(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_RDV_GET, .client = handle};

    speaker(a, m, &ev.worker);
    ev.rdv.key = m->w_rdv_get.name;
    effects_step(a, &ev);
}

static void on_w_exit(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_w_exit *w = &m->w_exit;
    struct event ev = {.kind = EV_EXIT_RECORD, .client = handle};
    struct exit_record x;
    struct err err = {""};

    speaker(a, m, &ev.worker);
    if (exit_record_parse(w->record, strlen(w->record), w->job, (uint32_t)w->attempt, &x, &err) <
        0) {
        server_error(a, handle, MSG_INVALID, "%s", err.text);
        return;
    }
    ev.exit_record = x.exit;
    effects_step(a, &ev);
}

/* ---- which message, from whom, where ---- */

static const struct {
    enum msg_type type;
    enum alignd_socket socket;
    void (*fn)(struct alignd *a, uint64_t handle, struct msg *m);
} handlers[] = {
    {MSG_T_hello, SOCKET_CONTROL, on_hello},
    {MSG_T_submit, SOCKET_CONTROL, on_submit},
    {MSG_T_list, SOCKET_CONTROL, on_list},
    {MSG_T_show, SOCKET_CONTROL, on_show},
    {MSG_T_spec, SOCKET_CONTROL, on_spec},
    {MSG_T_devices, SOCKET_CONTROL, on_devices},
    {MSG_T_cancel, SOCKET_CONTROL, on_cancel},
    {MSG_T_resume, SOCKET_CONTROL, on_resume},
    {MSG_T_hold, SOCKET_CONTROL, on_hold},
    {MSG_T_drain, SOCKET_CONTROL, on_drain},
    {MSG_T_stop_daemon, SOCKET_CONTROL, on_stop_daemon},
    {MSG_T_metrics, SOCKET_CONTROL, on_metrics},
    {MSG_T_logs, SOCKET_CONTROL, on_logs},
    {MSG_T_watch_job, SOCKET_WATCH, on_watch_job},
    {MSG_T_watch_queue, SOCKET_WATCH, on_watch_queue},
    {MSG_T_watch_log, SOCKET_WATCH, on_watch_log},
    {MSG_T_w_hello, SOCKET_WORKER, on_w_hello},
    {MSG_T_w_report, SOCKET_WORKER, on_w_report},
    {MSG_T_w_log, SOCKET_WORKER, on_w_log},
    {MSG_T_w_directive, SOCKET_WORKER, on_w_directive},
    {MSG_T_w_rdv_put, SOCKET_WORKER, on_w_rdv_put},
    {MSG_T_w_rdv_get, SOCKET_WORKER, on_w_rdv_get},
    {MSG_T_w_exit, SOCKET_WORKER, on_w_exit},
};

static void version_error(struct alignd *a, uint64_t handle, enum alignd_socket socket,
                          const char *text)
{
    struct msg m = {.type = MSG_T_error};

    m.error.code = MSG_VERSION;
    m.error.text = text;
    m.error.v_min = socket == SOCKET_WORKER ? MSG_WORKER_V_MIN : MSG_CLIENT_V_MIN;
    m.error.v_max = socket == SOCKET_WORKER ? MSG_WORKER_V_MAX : MSG_CLIENT_V_MAX;
    send_error(a, handle, &m);
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

static void handle_frame(struct alignd *a, struct wire_req *w, enum alignd_socket socket)
{
    const uint64_t handle = request_new(a, w, socket);
    struct request *q = server_request(a, handle);
    struct err err = {""};
    struct msg *m = NULL;
    uint64_t uid, pid;
    const void *data;
    size_t bytes;
    int r;

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
    data = wire_data(w, &bytes);
    r = codec_decode(data, bytes, &m, &err);
    if (r == -EPROTONOSUPPORT)
        version_error(a, handle, socket, err.text);
    else if (r == -ENOMEM)
        server_error(a, handle, MSG_RETRY, "out of memory");
    else if (r < 0)
        server_error(a, handle, MSG_INVALID, "%s", err.text);
    else
        dispatch(a, handle, m);
    codec_free(m);
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
