/* disk.c - see disk.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/test.h"

#include "daemon/thin.h"
#include "tests/sim/disk.h"

#define ID(x) ((unsigned long long)(x))

struct disk_job *disk_job(struct disk *d, uint64_t id)
{
    if (id == 0 || id > DISK_JOBS)
        fail_msg("row of job %llu, more than there can be", ID(id));
    return &d->job[id];
}

static void put_job(struct disk *d, const struct effect *e)
{
    struct disk_job *j = disk_job(d, e->job.id);

    if (e->kind == FX_SUBMITTED) {
        if (j->there)
            fail_msg("job id %llu was given twice", ID(e->job.id));
        for (uint64_t i = 1; i <= DISK_JOBS; i++)
            if (d->job[i].there && !job_is_over(d->job[i].row.state) &&
                strcmp(d->job[i].dir, e->job.output_dir) == 0)
                fail_msg("jobs %llu and %llu share %s", ID(i), ID(e->job.id), d->job[i].dir);
        j->there = true;
        snprintf(j->name, sizeof(j->name), "%s", e->job.name);
        snprintf(j->dir, sizeof(j->dir), "%s", e->job.output_dir);
        if (e->spec.resolved_bytes != 4 || memcmp(e->spec.resolved, "spec", 4) != 0)
            fail_msg("job %llu lost its spec", ID(e->job.id));
    }
    if (!j->there)
        fail_msg("job %llu is updated but was never inserted", ID(e->job.id));
    if (e->kind == FX_JOB && e->job.rev <= j->row.rev)
        fail_msg("job %llu: rev %llu after %llu", ID(e->job.id), ID(e->job.rev), ID(j->row.rev));
    if (e->job.seq < j->row.seq)
        fail_msg("job %llu: seq goes back", ID(e->job.id));
    if (e->kind == FX_JOB && job_is_over(j->row.state) && !job_is_over(e->job.state)) {
        j->resumes++;
        j->node_fails = 0;
    }
    j->ends += e->kind == FX_JOB && job_is_over(e->job.state) && !job_is_over(j->row.state);
    if ((e->job.state == JOB_NODE_FAIL) != (j->node_fails > CORE_LOST_MAX))
        fail_msg("job %llu is %s after %u losses", ID(e->job.id), job_state_name(e->job.state),
                 j->node_fails);
    j->row = e->job;
    j->row.name = j->name;
    j->row.method = "dpo";
    j->row.output_dir = j->dir;
    j->row.error = e->job.error ? "an error" : NULL;
    j->row.adapter = e->job.adapter ? "/an/adapter" : NULL;
}

static void put_attempt(struct disk *d, const struct attempt *a)
{
    struct disk_job *j = disk_job(d, a->job);

    if (a->attempt == 0 || a->attempt > DISK_ATTEMPTS)
        fail_msg("job %llu: attempt %u, more than there can be", ID(a->job), a->attempt);
    if (a->last_report < j->attempt[a->attempt].last_report)
        fail_msg("job %llu: last_report goes back", ID(a->job));
    j->node_fails +=
        a->state == JOB_NODE_FAIL && j->attempt[a->attempt].state != JOB_NODE_FAIL && !j->faulty;
    if (j->attempt[a->attempt].attempt && !job_has_gang(j->attempt[a->attempt].state))
        fail_msg("job %llu: attempt %u ended before", ID(a->job), a->attempt);
    j->attempt[a->attempt] = *a;
    j->attempt[a->attempt].build = j->attempt[a->attempt].error = NULL;
    j->attempt[a->attempt].adapter = NULL;
}

static void put_gang(struct disk *d, const struct fx_gang *g)
{
    struct disk_job *j = disk_job(d, g->job);

    if (j->has_gang)
        fail_msg("job %llu has two gangs", ID(g->job));
    j->has_gang = true;
    j->faulty = false;
    j->gang = *g;
    for (uint32_t i = 0; i < g->n_devices; i++) {
        snprintf(j->gang_device[i], sizeof(j->gang_device[i]), "%s", g->devices[i]);
        j->gang_name[i] = j->gang_device[i];
    }
    j->gang.devices = j->gang_name;
}

static bool on_device(const struct disk_job *j, const char *name)
{
    for (uint32_t i = 0; j->has_gang && i < j->gang.n_devices; i++)
        if (strcmp(j->gang_device[i], name) == 0)
            return true;
    return false;
}

static void put_device(struct disk *d, const struct fx_device *row)
{
    size_t i = 0;

    while (i < d->n_devices && strcmp(d->device_name[i], row->name) != 0)
        i++;
    if (i == DISK_DEVICES)
        fail_msg("too many devices");
    if (i == d->n_devices)
        d->n_devices++;
    snprintf(d->device_name[i], sizeof(d->device_name[i]), "%s", row->name);
    d->device[i] = *row;
    d->device[i].name = d->device_name[i];
    for (int id = 1; id <= DISK_JOBS && row->fault; id++)
        d->job[id].faulty |= on_device(&d->job[id], row->name);
}

static struct disk_row *add_row(struct disk_job *j, uint64_t seq)
{
    if (seq == 0 || (j->n_rows && seq <= j->rows[j->n_rows - 1].seq))
        fail_msg("job %llu: seq %llu is not new", ID(j->row.id), ID(seq));
    if (j->n_rows == j->cap_rows) {
        j->cap_rows = j->cap_rows ? 2 * j->cap_rows : 64;
        j->rows = realloc(j->rows, j->cap_rows * sizeof(*j->rows));
    }
    j->rows[j->n_rows] = (struct disk_row){.seq = seq};
    return &j->rows[j->n_rows++];
}

static void put_report(struct disk *d, const struct fx_report *r)
{
    struct disk_job *j = disk_job(d, r->job);
    uint64_t *last = &j->last_n[r->attempt <= DISK_ATTEMPTS ? r->attempt : 0];

    if (r->n != *last + 1)
        fail_msg("job %llu attempt %u: report %llu after %llu", ID(r->job), r->attempt, ID(r->n),
                 ID(*last));
    *last = r->n;
    if (r->bytes != sizeof(r->step) || memcmp(r->vals, &r->step, sizeof(r->step)) != 0)
        fail_msg("job %llu attempt %u: report %llu has other values", ID(r->job), r->attempt,
                 ID(r->n));
    struct disk_row *row = add_row(j, r->seq);
    row->n = r->n;
    row->attempt = r->attempt;
    row->kind = r->kind;
    row->superseded = r->superseded;
    row->step = r->step;
}

static void put_reported(struct disk *d, const struct fx_reported *r)
{
    struct disk_job *j = disk_job(d, r->job);

    if (r->attempt == 0 || r->attempt > DISK_ATTEMPTS || !j->attempt[r->attempt].attempt)
        fail_msg("job %llu: reports of attempt %u, which is not there", ID(r->job), r->attempt);
    if (r->last_report <= j->attempt[r->attempt].last_report)
        fail_msg("job %llu: last_report does not grow", ID(r->job));
    j->attempt[r->attempt].last_report = r->last_report;
    j->attempt[r->attempt].resume_step = r->resume_step;
}

static void rewind_rows(struct disk *d, const struct fx_rewind *r)
{
    struct disk_job *j = disk_job(d, r->job);

    for (size_t i = 0; i < j->n_rows; i++)
        if (j->rows[i].n && j->rows[i].attempt < r->attempt && j->rows[i].step > r->step)
            j->rows[i].superseded = true;
    struct disk_row *row = add_row(j, r->seq);
    row->attempt = r->attempt;
    row->step = r->step;
}

static void put_value(struct disk *d, const struct fx_rdv *v)
{
    struct disk_job *j = disk_job(d, v->job);

    for (int i = 0; i < j->n_values; i++)
        if (strcmp(j->value[i].key, v->key) == 0)
            fail_msg("job %llu: key %s twice", ID(v->job), v->key);
    if (j->n_values == DISK_VALUES || v->bytes != sizeof(uint64_t))
        fail_msg("job %llu: an odd rendezvous value", ID(v->job));
    snprintf(j->value[j->n_values].key, sizeof(j->value[0].key), "%s", v->key);
    j->value[j->n_values].attempt = v->attempt;
    memcpy(&j->value[j->n_values++].value, v->value, sizeof(uint64_t));
}

static bool stored(const struct fx_request *row, size_t n, const struct event_request *r)
{
    for (size_t i = 0; i < n; i++)
        if (row[i].uid == r->uid && memcmp(row[i].id, r->id, EVENT_ID_BYTES) == 0 &&
            memcmp(row[i].digest, r->digest, EVENT_DIGEST_BYTES) == 0)
            return true;
    return false;
}

bool disk_dropped(const struct disk *d, const struct event_request *r)
{
    for (size_t i = 0; i < d->n_dropped && i < DISK_REQUESTS; i++)
        if (d->dropped[i].uid == r->uid && memcmp(d->dropped[i].id, r->id, EVENT_ID_BYTES) == 0)
            return true;
    return false;
}

bool disk_stored(const struct disk *d, const struct event_request *r)
{
    const size_t n = d->n_dropped < DISK_REQUESTS ? d->n_dropped : DISK_REQUESTS;

    return stored(d->request, d->n_requests, r) || stored(d->dropped, n, r);
}

static void put_request(struct disk *d, const struct fx_request *r)
{
    for (size_t i = 0; i < d->n_requests; i++)
        if (d->request[i].uid == r->uid && memcmp(d->request[i].id, r->id, EVENT_ID_BYTES) == 0)
            fail_msg("a request was answered twice");
    if (d->n_requests == DISK_REQUESTS)
        fail_msg("too many requests");
    d->request[d->n_requests] = *r;
    d->request[d->n_requests++].text = r->text ? "a refusal" : NULL;
}

/* An answer about a job is kept as long as the job. One that was read while its end was
 * on the way may be dropped twice. */
static void drop_request(struct disk *d, const struct fx_request *r)
{
    for (size_t i = 0; i < d->n_requests; i++) {
        const struct fx_request *row = &d->request[i];
        if (row->uid != r->uid || memcmp(row->id, r->id, EVENT_ID_BYTES) != 0)
            continue;
        if (row->job && row->job < d->meta.next_job)
            fail_msg("an answer about job %llu is dropped", ID(row->job));
        d->dropped[d->n_dropped++ % DISK_REQUESTS] = *row;
        d->request[i] = d->request[--d->n_requests];
        return;
    }
    struct event_request who = {.uid = r->uid};
    memcpy(who.id, r->id, EVENT_ID_BYTES);
    if (!disk_dropped(d, &who))
        fail_msg("an answer is dropped that was never stored");
}

static void apply(struct disk *d, const struct effect *e)
{
    switch (e->kind) {
    case FX_SUBMITTED:
    case FX_JOB:
        put_job(d, e);
        break;
    case FX_ATTEMPT:
        put_attempt(d, &e->attempt);
        break;
    case FX_GANG:
        put_gang(d, &e->gang);
        break;
    case FX_GANG_GONE:
        if (!disk_job(d, e->gang_ref.job)->has_gang)
            fail_msg("job %llu: its gang goes twice", ID(e->gang_ref.job));
        disk_job(d, e->gang_ref.job)->has_gang = false;
        break;
    case FX_DEVICE:
        put_device(d, &e->device);
        break;
    case FX_REPORTED:
        put_reported(d, &e->reported);
        break;
    case FX_REPORT:
        put_report(d, &e->report);
        break;
    case FX_REWIND:
        rewind_rows(d, &e->rewind);
        break;
    case FX_RDV_PUT:
        put_value(d, &e->rdv);
        break;
    case FX_RDV_CLEAR:
        disk_job(d, e->rdv.job)->n_values = 0;
        break;
    case FX_REQUEST:
        put_request(d, &e->request);
        break;
    case FX_REQUEST_DROP:
        drop_request(d, &e->request);
        break;
    case FX_META:
        d->meta = e->meta;
        break;
    default:
        break;
    }
}

/* What must hold between rows whenever a transaction is complete. */
static void check(const struct disk *d)
{
    uint64_t held[DISK_DEVICES * 4] = {0};

    for (uint64_t id = 1; id <= DISK_JOBS; id++) {
        const struct disk_job *j = &d->job[id];
        if (!j->there)
            continue;
        if (id >= d->meta.next_job || j->row.rev > d->meta.rev)
            fail_msg("job %llu is beyond the high-water marks", ID(id));
        if ((j->row.ended_s >= 0) != job_is_over(j->row.state) || j->row.ended_s > d->meta.age_s)
            fail_msg("job %llu is %s and ended at %lld", ID(id), job_state_name(j->row.state),
                     (long long)j->row.ended_s);
        if (j->has_gang != job_has_gang(j->row.state))
            fail_msg("job %llu is %s %s a gang", ID(id), job_state_name(j->row.state),
                     j->has_gang ? "with" : "without");
        if (j->has_gang && j->gang.n_devices != j->row.devices)
            fail_msg("job %llu has %u devices", ID(id), j->gang.n_devices);
        if (j->n_rows && j->rows[j->n_rows - 1].seq > j->row.seq)
            fail_msg("job %llu has rows beyond its seq", ID(id));
        if (!j->has_gang && j->n_values)
            fail_msg("job %llu keeps rendezvous values", ID(id));
        for (uint32_t i = 0; j->has_gang && i < j->gang.n_devices; i++) {
            const unsigned n =
                (unsigned)strtoul(strchr(j->gang_device[i], ':') + 1, NULL, 10) % 16 +
                (j->gang_device[i][0] == 'g' ? 16 : 0);
            if (held[n])
                fail_msg("jobs %llu and %llu both hold %s", ID(id), ID(held[n]), j->gang_device[i]);
            held[n] = id;
        }
    }
}

void disk_apply(struct disk *d, const struct effects *fx)
{
    for (size_t i = 0; i < fx->n; i++)
        if (event_is_row(fx->v[i].kind))
            apply(d, &fx->v[i]);
    check(d);
}

/* What a new core can still know of faults: those of this boot. */
static void forget_faults(struct disk *d, const struct core_opts *opts)
{
    for (int id = 1; id <= DISK_JOBS; id++) {
        d->job[id].faulty = false;
        for (size_t i = 0; i < d->n_devices; i++)
            d->job[id].faulty |= d->device[i].fault && on_device(&d->job[id], d->device_name[i]) &&
                                 memcmp(d->device[i].boot_id, opts->boot_id, EVENT_BOOT_BYTES) == 0;
    }
}

static bool needed(const struct disk *d, const struct core *c, int id)
{
    return d->job[id].row.ended_s < 0 || d->job[id].row.ended_s > core_ended_before(c);
}

struct core *disk_restore(struct disk *d, const struct core_opts *opts)
{
    struct core *c;
    struct err err = {""};
    int r = core_new(opts, &c);

    forget_faults(d, opts);

    assert_int_equal(r, 0);
    if (d->meta.next_job)
        r |= core_restore_meta(c, &d->meta, &err);
    for (size_t i = 0; i < d->n_devices; i++)
        r |= core_restore_device(c, &d->device[i], &err);
    for (int id = 1; id <= DISK_JOBS; id++)
        if (d->job[id].there && needed(d, c, id))
            r |= core_restore_job(c, &d->job[id].row, &err);
    for (int id = 1; id <= DISK_JOBS; id++)
        for (int a = 1; a <= DISK_ATTEMPTS; a++)
            if (d->job[id].attempt[a].attempt && needed(d, c, id))
                r |= core_restore_attempt(c, &d->job[id].attempt[a], &err);
    for (int id = 1; id <= DISK_JOBS; id++)
        if (d->job[id].has_gang)
            r |= core_restore_gang(c, &d->job[id].gang, &err);
    for (size_t i = 0; i < d->n_requests; i++)
        if (d->request[i].age_s > core_request_before(c))
            r |= core_restore_request(c, &d->request[i], &err);
    for (int id = 1; id <= DISK_JOBS; id++)
        for (int i = 0; i < d->job[id].n_values; i++)
            r |= core_restore_rdv(c,
                                  &(struct fx_rdv){.job = (uint64_t)id,
                                                   .attempt = d->job[id].value[i].attempt,
                                                   .key = d->job[id].value[i].key,
                                                   .value = &d->job[id].value[i].value,
                                                   .bytes = sizeof(uint64_t)},
                                  &err);
    if (r < 0)
        fail_msg("restore: %s", err.text);
    return c;
}

void disk_tidy(struct disk *d, uint64_t job, int64_t age_s, int64_t keep_s, uint64_t every,
               uint64_t rows)
{
    struct disk_job *j = disk_job(d, job);
    const uint64_t to = j->thin_seq + rows < j->row.seq ? j->thin_seq + rows : j->row.seq;
    size_t kept = 0;

    if (!j->there || j->row.ended_s < 0 || j->row.ended_s > age_s - keep_s || to <= j->thin_seq)
        return;
    for (size_t i = 0; i < j->n_rows; i++) {
        const struct disk_row *r = &j->rows[i];
        if (r->seq <= j->thin_seq || r->seq > to || r->n == 0 ||
            thin_keeps(r->kind, r->n, j->attempt[r->attempt].last_report, every))
            j->rows[kept++] = *r;
    }
    j->n_rows = kept;
    j->thin_seq = to;
}

void disk_recall(struct disk *d, uint64_t job, const struct event_request *req,
                 struct event_recall *ret)
{
    static struct attempt past[DISK_ATTEMPTS];

    *ret = (struct event_recall){0};
    for (size_t i = 0; i < d->n_requests && req; i++)
        if (d->request[i].uid == req->uid && memcmp(d->request[i].id, req->id, EVENT_ID_BYTES) == 0)
            ret->request = &d->request[i];
    if (job == 0 && ret->request)
        job = ret->request->job;
    if (job == 0 || job > DISK_JOBS || !d->job[job].there)
        return;
    ret->job = &d->job[job].row;
    for (int a = 1; a <= DISK_ATTEMPTS; a++)
        if (d->job[job].attempt[a].attempt)
            past[ret->n_attempts++] = d->job[job].attempt[a];
    ret->attempts = past;
}

void disk_fini(struct disk *d)
{
    for (int id = 1; id <= DISK_JOBS; id++)
        free(d->job[id].rows);
    memset(d, 0, sizeof(*d));
}
