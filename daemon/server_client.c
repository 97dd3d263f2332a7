/* server_client.c - what clients ask: changes go to the core, reads are answered from its
 * memory or from the disk. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "daemon/alignd.h"
#include "daemon/gpus.h"
#include "daemon/server_handlers.h"
#include "daemon/views.h"
#include "proto/sha256.h"

enum { JSON_BYTES = LIMIT_MSG_BYTES - 8192 };

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
    uint64_t job;
    bool answer;

    ev->client = handle;
    if (fill_request(a, q, m, &ev->req) < 0)
        server_error(a, handle, MSG_RETRY, "out of memory");
    else if (!q->recalled && core_recall_due(a->core, ev, &job, &answer))
        recalls_job(a, handle, job, answer ? &ev->req : NULL);
    else
        effects_step(a, ev);
}

static bool spec_like(const char *text)
{
    return text[0] == '{' && text[strlen(text) - 1] == '}';
}

/* The resolved spec with what `auto` comes to on this machine, to be freed; NULL: as it
 * is (also when it cannot be read: the worker will say so). */
static char *settle(const char *resolved, int type)
{
    json_t *o = json_loads(resolved, JSON_REJECT_DUPLICATES, NULL);
    json_t *values = json_object_get(o, "values");
    const char *device = json_string_value(json_object_get(values, "device_type"));
    const char *bf16 = json_string_value(json_object_get(values, "bf16"));
    char *text = NULL;

    if (device && !strcmp(device, "auto")) {
        json_object_set_new(values, "device_type", json_string(type == JOB_GPU ? "gpu" : "cpu"));
        if (bf16 && !strcmp(bf16, "auto"))
            json_object_set_new(values, "bf16", json_boolean(type == JOB_GPU));
        text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(17));
    }
    json_decref(o);
    return text;
}

void server_client_submit(struct alignd *a, uint64_t handle, struct msg *m)
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
    char *settled = NULL;

    if (type < 0 || s->devices < 1 || !*s->name || s->output_dir[0] != '/' ||
        !spec_like(s->user_spec) || !spec_like(s->resolved) || s->steps > INT64_MAX) {
        server_error(a, handle, MSG_INVALID,
                     "submit: name, specs (JSON objects), an absolute output_dir, devices >= 1 and "
                     "device_type auto, gpu or cpu are needed");
        return;
    }
    if (type == 0) {
        type = core_n_devices_of(a->core, JOB_GPU) ? JOB_GPU : JOB_CPU;
        settled = settle(s->resolved, type);
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
                                      .resolved_spec = settled ? settled : s->resolved,
                                      .user_bytes = strlen(s->user_spec)};
    ev.submit.resolved_bytes = strlen(ev.submit.resolved_spec);
    ev.submit.no_gpus = gpus_note(a);
    step(a, handle, m, &ev);
    made = effects_submitted(a);
    if (made && made->job.id != before_job)
        made->spec.overwrite = s->overwrite;
    free(settled);
}

void server_client_cancel(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_CANCEL};

    ev.cancel.job = m->cancel.job;
    ev.cancel.now = m->cancel.now;
    step(a, handle, m, &ev);
}

void server_client_resume(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct msg_resume *s = &m->resume;
    struct event ev = {.kind = EV_RESUME};
    const bool specs = *s->user_spec || *s->resolved;
    const struct job *j = core_job(a->core, s->job);
    char *settled = specs && j ? settle(s->resolved, j->type) : NULL;

    if ((specs && (!spec_like(s->user_spec) || !spec_like(s->resolved))) || s->steps > INT64_MAX) {
        server_error(a, handle, MSG_INVALID, "resume: both specs (JSON objects) or none");
        free(settled);
        return;
    }
    ev.resume.job = s->job;
    ev.resume.steps = (int64_t)s->steps;
    if (specs) {
        ev.resume.user_spec = s->user_spec;
        ev.resume.resolved_spec = settled ? settled : s->resolved;
        ev.resume.user_bytes = strlen(s->user_spec);
        ev.resume.resolved_bytes = strlen(ev.resume.resolved_spec);
    }
    step(a, handle, m, &ev);
    free(settled);
}

void server_client_hold(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = m->hold.on ? EV_HOLD : EV_RELEASE};

    ev.hold.job = m->hold.job;
    step(a, handle, m, &ev);
}

void server_client_drain(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_DRAIN};

    ev.drain.device = m->drain.device;
    ev.drain.on = m->drain.on;
    step(a, handle, m, &ev);
}

void server_client_stop_daemon(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct event ev = {.kind = EV_SHUTDOWN};

    step(a, handle, m, &ev);
}

/* ---- reads ---- */

void server_client_hello(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct request *q = server_request(a, handle);
    const struct msg_hello *h = &m->hello;
    char note[sizeof a->config->note] = "";
    struct msg w = {.type = MSG_T_welcome};

    if (h->v_min > MSG_CLIENT_V_MAX || h->v_max < MSG_CLIENT_V_MIN) {
        struct msg e = {.type = MSG_T_error};
        e.error.code = MSG_VERSION;
        e.error.text = "alignd and alignctl are too far apart; use those of one release";
        e.error.v_min = MSG_CLIENT_V_MIN;
        e.error.v_max = MSG_CLIENT_V_MAX;
        server_send_error(a, handle, &e);
        return;
    }
    if (strlen(a->config->note) < sizeof a->config->note - 1) /* not cut in a letter */
        snprintf(note, sizeof note, "%s", a->config->note);
    if (!note[0])
        snprintf(note, sizeof note, "%s", gpus_note(a));
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

static void send_json(struct alignd *a, uint64_t handle, struct buf *b, uint64_t next,
                      uint64_t hidden)
{
    struct msg m = {.type = MSG_T_json};

    if (b->r < 0) {
        server_error(a, handle, MSG_RETRY, "%s", strerror(-b->r));
    } else {
        m.json.text = b->data;
        m.json.next = next;
        m.json.hidden = hidden;
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

/* The jobs of `list` by id: those in memory and, of the ended ones, those on a page from
 * the store. */
struct listing {
    const struct core *core;
    const struct store_jobs *page; /* or NULL */
    size_t i, k;
};

/* NULL: no more; *ret_next: there are more after the page, from this id on. */
static const struct job *next_job(struct listing *l, uint64_t *ret_next)
{
    const struct job *live = core_job_at(l->core, l->i);
    const struct store_jobs *p = l->page;
    const struct job *old = p && l->k < p->n ? &p->v[l->k] : NULL;

    if (old && live && old->id == live->id) { /* what the core says is newer */
        l->k++;
        l->i++;
        return live;
    }
    if (old && (!live || old->id < live->id)) {
        l->k++;
        return old;
    }
    if (p && p->more && l->k == p->n) {
        *ret_next = p->v[p->n - 1].id;
        return NULL;
    }
    l->i++;
    return live;
}

static bool wanted(const struct alignd *a, uint64_t uid, const struct msg_list *l,
                   const struct job *j)
{
    return alignd_may(a, uid, j->uid) && (!l->mine || j->uid == uid) &&
           (!l->active || !job_is_over((enum job_state)j->state));
}

static bool is_hidden(const struct msg_list *l, const struct job *j)
{
    return job_is_over((enum job_state)j->state) && (uint64_t)j->ended_ms < l->ended_after_ms;
}

static uint64_t count_hidden(const struct alignd *a, uint64_t uid, const struct msg_list *l)
{
    uint64_t n = 0;

    for (size_t i = 0; l->ended_after_ms > 0 && i < core_n_jobs(a->core); i++) {
        const struct job *j = core_job_at(a->core, i);
        n += wanted(a, uid, l, j) && is_hidden(l, j);
    }
    return n;
}

void server_client_list(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct request *q = server_request(a, handle);
    const struct msg_list *l = &m->list;
    const bool all_users = !l->mine && alignd_may(a, q->uid, UINT64_MAX);
    struct listing list = {.core = a->core, .page = q->page};
    struct buf b = {.max = JSON_BYTES};
    uint64_t n = 0, next = 0, last = l->after, hidden = 0;
    const struct job *j;

    if (!l->active && !q->recalled && core_any_forgotten(a->core)) {
        recalls_list(a, handle, l, all_users ? -1 : (int64_t)q->uid);
        return;
    }
    if (l->after == 0)
        hidden = q->page ? q->page->hidden : count_hidden(a, q->uid, l);
    list.i = first_after(a->core, l->after);
    buf_str(&b, "[");
    while ((j = next_job(&list, &next))) {
        if (!wanted(a, q->uid, l, j) || is_hidden(l, j))
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
    send_json(a, handle, &b, next, hidden);
}

/* The job, if the asker may see it; else answers, or has the store asked first. */
static const struct job *visible(struct alignd *a, uint64_t handle, uint64_t id)
{
    const struct request *q = server_request(a, handle);
    const struct job *j = core_job(a->core, id);

    if (!j && core_forgotten(a->core, id) && !q->recalled)
        recalls_job(a, handle, id, NULL);
    else if (!j)
        server_error(a, handle, MSG_NOT_FOUND, "there is no job %" PRIu64, id);
    else if (!alignd_may(a, q->uid, j->uid))
        server_error(a, handle, MSG_REFUSED, "job %" PRIu64 " belongs to %s", id,
                     views_user(j->uid));
    else
        return j;
    return NULL;
}

void server_client_show(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct request *q = server_request(a, handle);
    struct buf b = {.max = LIMIT_SPEC_BYTES};
    uint64_t id = m->show.job;
    const struct job *j;

    if (id == 0 && core_any_forgotten(a->core) && !q->recalled) {
        recalls_newest(a, handle, (uint32_t)q->uid);
        return;
    }
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
    views_gpus(&b, a, j);
    views_host_memory(&b, a, j);
    reads_show(a, handle, id, &b);
}

void server_client_spec(struct alignd *a, uint64_t handle, struct msg *m)
{
    if (visible(a, handle, m->spec.job))
        reads_spec(a, handle, m->spec.job);
}

void server_client_devices(struct alignd *a, uint64_t handle, struct msg *m)
{
    struct buf b = {.max = JSON_BYTES};

    (void)m;
    views_devices(&b, a);
    send_json(a, handle, &b, 0, 0);
}

void server_client_metrics(struct alignd *a, uint64_t handle, struct msg *m)
{
    if (visible(a, handle, m->metrics.job))
        reads_rows(a, handle, &m->metrics);
}

void server_client_logs(struct alignd *a, uint64_t handle, struct msg *m)
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

void server_client_watch_job(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct held h = {.kind = HELD_JOB,
                           .request = handle,
                           .job = m->watch_job.job,
                           .since = m->watch_job.since,
                           .rev = m->watch_job.rev,
                           .sample = gpus_sample(a)};

    if (visible(a, handle, h.job))
        held_watch(a, &h);
}

void server_client_watch_queue(struct alignd *a, uint64_t handle, struct msg *m)
{
    const struct held h = {.kind = HELD_QUEUE,
                           .request = handle,
                           .uid = server_request(a, handle)->uid,
                           .rev = m->watch_queue.rev};

    held_watch(a, &h);
}

void server_client_watch_log(struct alignd *a, uint64_t handle, struct msg *m)
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
