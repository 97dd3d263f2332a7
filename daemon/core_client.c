/* core_client.c - what clients ask for: submit, cancel, resume, hold, drain, stop. */
#include "daemon/core_state.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- answers ------------------------------------------------------------- */

static void reply(const struct event *ev, struct effects *fx, enum event_code code, uint64_t job,
                  const char *text, bool now)
{
    struct effect *e = event_add(fx, FX_REPLY);

    e->now = now;
    e->reply = (struct fx_reply){
        .client = ev->client, .code = code, .job = job, .text = event_text(fx, text)};
}

/* Answers for good: whoever asks again with this id hears the same, also when it
 * was a refusal. (A refused submit whose resent copy is accepted later would make
 * a job that nobody knows of.) */
static void answer(struct core *c, const struct event *ev, struct effects *fx, enum event_code code,
                   uint64_t job, const char *text)
{
    struct fx_request row = {.uid = ev->req.uid,
                             .code = (int32_t)code,
                             .job = job,
                             .age_s = c->meta.age_s,
                             .text = text};

    memcpy(row.id, ev->req.id, EVENT_ID_BYTES);
    memcpy(row.digest, ev->req.digest, EVENT_DIGEST_BYTES);
    if (request_put(&c->requests, &row) < 0)
        c->failed = true;
    row.text = event_text(fx, text);
    event_add(fx, FX_REQUEST)->request = row;
    reply(ev, fx, code, job, text, false);
}

/* Has it been answered already, or can it not be taken now? */
static bool settled(const struct core *c, const struct event *ev, struct effects *fx)
{
    const struct fx_request *r = request_find(&c->requests, ev->req.uid, ev->req.id);

    if (r && memcmp(r->digest, ev->req.digest, EVENT_DIGEST_BYTES) == 0)
        reply(ev, fx, (enum event_code)r->code, r->job, r->text, false);
    else if (r)
        reply(ev, fx, EVENT_CONFLICT, r->job, "this request id was used for something else", false);
    else if (c->store_full)
        reply(ev, fx, EVENT_RETRY, 0, "no disk space for alignd's database", true);
    else if (c->stopping)
        reply(ev, fx, EVENT_STOPPING, 0, "alignd is shutting down", true);
    else if (c->requests.n >= CORE_REQUESTS_MAX)
        reply(ev, fx, EVENT_RETRY, 0, "too many requests are remembered", true);
    else
        return false;
    return true;
}

/* The job, if it exists and is the asker's; else NULL and answered. */
static struct core_node *theirs(struct core *c, const struct event *ev, struct effects *fx,
                                uint64_t job)
{
    struct core_node *n = core_find(c, job);
    char text[128];

    if (!n) {
        (void)snprintf(text, sizeof(text), "there is no job %llu", (unsigned long long)job);
        answer(c, ev, fx, EVENT_NOT_FOUND, job, text);
        return NULL;
    }
    if (n->job.uid != ev->req.uid && !ev->req.is_operator) {
        (void)snprintf(text, sizeof(text), "job %llu belongs to another user",
                       (unsigned long long)job);
        answer(c, ev, fx, EVENT_NOT_ALLOWED, job, text);
        return NULL;
    }
    return n;
}

/* ---- output_dir ---------------------------------------------------------- */

/* Appends `s` to buf; false: too long. */
static bool put(char *buf, size_t *n, const char *s, size_t bytes)
{
    if (*n + bytes >= LIMIT_PATH)
        return false;
    memcpy(buf + *n, s, bytes);
    *n += bytes;
    buf[*n] = '\0';
    return true;
}

/* {name} and {id} filled in, "//", "." and ".." resolved by text: one folder should
 * have one spelling, since the owner is found by it. NULL, or what is wrong. */
static const char *place_dir(const char *dir, const char *name, uint64_t id, char out[LIMIT_PATH])
{
    char full[LIMIT_PATH], number[24];
    size_t n = 0;

    (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)id);
    full[0] = '\0';
    for (const char *s = dir; *s;) {
        bool fits;
        if (strncmp(s, "{id}", 4) == 0) {
            fits = put(full, &n, number, strlen(number));
            s += 4;
        } else if (strncmp(s, "{name}", 6) == 0) {
            fits = put(full, &n, name, strlen(name));
            s += 6;
        } else {
            fits = put(full, &n, s++, 1);
        }
        if (!fits)
            return "output_dir is too long";
    }
    if (full[0] != '/')
        return "output_dir is not an absolute path";

    size_t at = 0;
    out[0] = '\0';
    for (const char *s = full; *s;) {
        s += strspn(s, "/");
        const size_t len = strcspn(s, "/");
        if (len == 2 && s[0] == '.' && s[1] == '.') {
            while (at > 0 && out[--at] != '/')
                ;
            out[at] = '\0';
        } else if (len > 0 && !(len == 1 && s[0] == '.')) {
            (void)put(out, &at, "/", 1);
            (void)put(out, &at, s, len); /* never longer than full */
        }
        s += len;
    }
    return at ? NULL : "output_dir is the root folder";
}

static bool in_use(struct core *c, const struct event *ev, struct effects *fx, const char *dir)
{
    const struct core_node *owner = core_owner(c, dir);
    char text[256];

    if (!owner)
        return false;
    (void)snprintf(text, sizeof(text),
                   "output_dir belongs to job %llu, which is %s; use {id} in output_dir, or "
                   "cancel that job first",
                   (unsigned long long)owner->job.id, job_state_name(owner->job.state));
    answer(c, ev, fx, EVENT_IN_USE, owner->job.id, text);
    return true;
}

static bool too_many(struct core *c, const struct event *ev, struct effects *fx)
{
    if (c->unfinished < CORE_JOBS_MAX)
        return false;
    answer(c, ev, fx, EVENT_TOO_MANY, 0, "the queue is full: 100,000 unfinished jobs");
    return true;
}

/* ---- the requests -------------------------------------------------------- */

/* 0: such a job could never run here, and text says why. */
static int device_type(const struct core *c, const struct event_submit *s, char *text, size_t size)
{
    static const char *const names[JOB_TYPES] = {"?", "cpu", "gpu"};
    int type = s->type;

    if (type == 0)
        type = place_count(c->device, c->n_devices, JOB_GPU).all ? JOB_GPU : JOB_CPU;
    const uint32_t all = place_count(c->device, c->n_devices, type).all;
    if (s->devices <= all)
        return type;
    const bool more = type == JOB_GPU && s->no_gpus && *s->no_gpus;
    (void)snprintf(text, size, "the job wants %u %s device%s; this alignd has %u%s%s", s->devices,
                   names[type], s->devices == 1 ? "" : "s", all, more ? ". " : "",
                   more ? s->no_gpus : "");
    return 0;
}

static const char *malformed(const struct event_submit *s)
{
    if (!s->name || !*s->name || strlen(s->name) > LIMIT_NAME)
        return "the name is missing or longer than 128 bytes";
    if (strchr(s->name, '/') || strcmp(s->name, ".") == 0 || strcmp(s->name, "..") == 0)
        return "the name may not be '.' or '..' or hold a '/'";
    if (!s->method || strlen(s->method) > LIMIT_NAME)
        return "the method is missing or too long";
    if (!s->output_dir || strlen(s->output_dir) >= LIMIT_PATH)
        return "output_dir is missing or too long";
    if (s->devices < 1 || s->devices > LIMIT_RANKS)
        return "devices must be 1 to 64";
    if (s->type >= JOB_TYPES)
        return "device_type must be auto, cpu or gpu";
    if (s->steps < 0 || s->limit_s < 0)
        return "steps and the time limit may not be negative";
    return NULL;
}

static void on_submit(struct core *c, const struct event *ev, struct effects *fx)
{
    const struct event_submit *s = &ev->submit;
    char dir[LIMIT_PATH], text[512];
    const char *wrong = malformed(s);
    int type = 0;

    if (!wrong)
        wrong = place_dir(s->output_dir, s->name, c->meta.next_job, dir);
    if (!wrong) {
        type = device_type(c, s, text, sizeof(text));
        if (!type) { /* a limit of this machine, not a mistake in the request */
            answer(c, ev, fx, EVENT_TOO_MANY, 0, text);
            return;
        }
    }
    if (wrong) {
        answer(c, ev, fx, EVENT_INVALID, 0, wrong);
        return;
    }
    if (in_use(c, ev, fx, dir) || too_many(c, ev, fx))
        return;

    const uint64_t rev = ++c->meta.rev;
    struct core_node *n = core_node_new(c, &(struct job){.id = c->meta.next_job,
                                                         .rev = rev,
                                                         .order = rev,
                                                         .uid = ev->req.uid,
                                                         .devices = (uint16_t)s->devices,
                                                         .type = (uint8_t)type,
                                                         .state = JOB_PENDING,
                                                         .held = s->held,
                                                         .priority = s->priority,
                                                         .limit_s = s->limit_s,
                                                         .steps = s->steps,
                                                         .loss = (double)NAN,
                                                         .submitted_ms = c->wall_ms,
                                                         .ended_s = -1,
                                                         .first_rank = -1,
                                                         .name = s->name,
                                                         .method = s->method,
                                                         .output_dir = dir});
    if (!n)
        return;
    c->meta.next_job++;
    core_newest_is(c, n);
    core_claim(c, n);
    core_enqueue(c, n);
    struct effect *e = event_add(fx, FX_SUBMITTED);
    e->job = n->job;
    e->spec = (struct fx_spec){.job = n->job.id,
                               .from_attempt = 1,
                               .user_bytes = s->user_bytes,
                               .resolved_bytes = s->resolved_bytes};
    const void *user = event_copy(fx, s->user_spec, s->user_bytes);
    const void *resolved = event_copy(fx, s->resolved_spec, s->resolved_bytes);
    e->spec.user = user;
    e->spec.resolved = resolved;
    answer(c, ev, fx, EVENT_OK, n->job.id, NULL);
}

static void on_cancel(struct core *c, const struct event *ev, struct effects *fx)
{
    struct core_node *n = theirs(c, ev, fx, ev->cancel.job);
    char text[128];

    if (!n)
        return;
    if (job_is_over(n->job.state)) {
        (void)snprintf(text, sizeof(text), "job %llu is %s already", (unsigned long long)n->job.id,
                       job_state_name(n->job.state));
        answer(c, ev, fx, EVENT_OK, n->job.id, text);
        return;
    }
    if (n->job.state == JOB_PENDING) {
        core_dequeue(c, n);
        (void)job_move(&n->job, JOB_CANCELLED);
        n->job.reason = JOB_REASON_NONE;
        n->job.ended_ms = c->wall_ms;
        n->not_before_ns = 0;
        core_unclaim(c, n);
        core_touch(c, n);
    } else {
        core_gang_want(c, n, ev->cancel.now ? JOB_WANT_CANCEL_NOW : JOB_WANT_CANCEL, fx);
    }
    answer(c, ev, fx, EVENT_OK, n->job.id, NULL);
}

static void on_resume(struct core *c, const struct event *ev, struct effects *fx)
{
    const struct event_resume *r = &ev->resume;
    struct core_node *n = theirs(c, ev, fx, r->job);
    char text[256];

    if (!n)
        return;
    struct job *j = &n->job;
    if (!job_is_over(j->state) || (j->state == JOB_COMPLETED && r->steps <= j->steps)) {
        (void)snprintf(text, sizeof(text),
                       job_is_over(j->state)
                           ? "job %llu is %s with all its steps (%lld); set a larger max_steps"
                           : "job %llu is %s: only a job that has ended can be resumed",
                       (unsigned long long)j->id, job_state_name(j->state), (long long)j->steps);
        answer(c, ev, fx, EVENT_BAD_STATE, j->id, text);
        return;
    }
    if (r->steps < 0) {
        answer(c, ev, fx, EVENT_INVALID, j->id, "steps may not be negative");
        return;
    }
    if (in_use(c, ev, fx, j->output_dir) || too_many(c, ev, fx))
        return;
    (void)job_move(j, JOB_PENDING);
    j->reason = JOB_REASON_NONE;
    j->want = JOB_WANT_RUN;
    j->lost = j->launch_failures = 0;
    j->published = j->held = false;
    j->order = ++c->meta.rev;
    j->ended_ms = 0;
    j->steps = r->steps > 0 ? r->steps : j->steps;
    core_set_text(c, &n->error, NULL);
    j->error = n->error;
    n->tries = 0;
    n->not_before_ns = 0;
    core_claim(c, n);
    core_enqueue(c, n);
    core_touch(c, n);
    if (r->resolved_spec) {
        const void *user = event_copy(fx, r->user_spec, r->user_bytes);
        const void *resolved = event_copy(fx, r->resolved_spec, r->resolved_bytes);
        event_add(fx, FX_RESPEC)->spec = (struct fx_spec){.job = j->id,
                                                          .from_attempt = j->attempt + 1,
                                                          .user = user,
                                                          .resolved = resolved,
                                                          .user_bytes = r->user_bytes,
                                                          .resolved_bytes = r->resolved_bytes};
    }
    answer(c, ev, fx, EVENT_OK, j->id, NULL);
}

static void on_hold(struct core *c, const struct event *ev, struct effects *fx)
{
    struct core_node *n = theirs(c, ev, fx, ev->hold.job);
    const bool hold = ev->kind == EV_HOLD;
    char text[128];

    if (!n)
        return;
    if (job_is_over(n->job.state)) {
        (void)snprintf(text, sizeof(text),
                       "job %llu is %s: only a job that has not ended can be %s",
                       (unsigned long long)n->job.id, job_state_name(n->job.state),
                       hold ? "held" : "released");
        answer(c, ev, fx, EVENT_BAD_STATE, n->job.id, text);
        return;
    }
    if (n->job.held != hold) {
        core_dequeue(c, n);
        n->job.held = hold;
        core_enqueue(c, n);
        core_touch(c, n);
    }
    answer(c, ev, fx, EVENT_OK, n->job.id, NULL);
}

static void on_drain(struct core *c, const struct event *ev, struct effects *fx)
{
    struct place_device *d = core_device_like(c, ev->drain.device);
    char text[160];

    if (!ev->req.is_operator) {
        answer(c, ev, fx, EVENT_NOT_ALLOWED, 0, "only an operator may drain a device");
        return;
    }
    if (!d) {
        (void)snprintf(
            text, sizeof(text),
            "no device is called %.70s, or several begin so: `alignctl devices` has them",
            ev->drain.device);
        answer(c, ev, fx, EVENT_NOT_FOUND, 0, text);
        return;
    }
    d->drained = ev->drain.on;
    if (!ev->drain.on) /* the operator says that it is well */
        d->fault = 0;
    core_write_device(c, d, fx);
    answer(c, ev, fx, EVENT_OK, 0, NULL);
}

static void on_shutdown(struct core *c, const struct event *ev, struct effects *fx)
{
    if (ev->client && !ev->req.is_operator) {
        answer(c, ev, fx, EVENT_NOT_ALLOWED, 0, "only an operator may stop alignd");
        return;
    }
    c->stopping = true;
    if (ev->client)
        answer(c, ev, fx, EVENT_OK, 0, NULL);
}

void core_client_event(struct core *c, const struct event *ev, struct effects *fx)
{
    if (ev->kind == EV_SHUTDOWN && !ev->client) { /* a signal */
        on_shutdown(c, ev, fx);
        return;
    }
    if (settled(c, ev, fx))
        return;
    switch (ev->kind) {
    case EV_SUBMIT:
        on_submit(c, ev, fx);
        break;
    case EV_CANCEL:
        on_cancel(c, ev, fx);
        break;
    case EV_RESUME:
        on_resume(c, ev, fx);
        break;
    case EV_HOLD:
    case EV_RELEASE:
        on_hold(c, ev, fx);
        break;
    case EV_DRAIN:
        on_drain(c, ev, fx);
        break;
    default:
        on_shutdown(c, ev, fx);
        break;
    }
}
