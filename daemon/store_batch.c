/* store_batch.c - see store_batch.h. */
#include "daemon/store_batch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/event.h"
#include "daemon/job.h"
#include "daemon/row.h"
#include "daemon/store_db.h"
#include "proto/limit.h"
#include "proto/sha256.h"

enum { NAMES_CACHE = 64 };

enum stmt {
    Q_BEGIN,
    Q_COMMIT,
    Q_ROLLBACK,
    Q_JOB,
    Q_ENDED,
    Q_SPEC,
    Q_ATTEMPT,
    Q_GANG,
    Q_GANG_GONE,
    Q_DEVICE,
    Q_REPORTED,
    Q_REPORT,
    Q_REWIND,
    Q_RDV,
    Q_RDV_CLEAR,
    Q_REQUEST,
    Q_REQUEST_DROP,
    Q_META,
    Q_LOG,
    Q_NAMES_FIND,
    Q_NAMES_ADD,
    STMTS,
};

static const char *const sql[STMTS] = {
    [Q_BEGIN] = "BEGIN IMMEDIATE",
    [Q_COMMIT] = "COMMIT",
    [Q_ROLLBACK] = "ROLLBACK",
    [Q_JOB] =
        "INSERT INTO job(id, rev, ord, seq, uid, attempt, devices, type, state, reason, want,"
        " lost, launch_failures, held, published, phase, priority, limit_s, steps, step, loss,"
        " submitted_ms, started_ms, ended_ms, exit_code, exit_signal, first_rank, name, method,"
        " output_dir, error, adapter)"
        " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON"
        " CONFLICT(id) DO UPDATE SET rev = excluded.rev, ord = excluded.ord, seq = excluded.seq,"
        " uid = excluded.uid, attempt = excluded.attempt, devices = excluded.devices, type ="
        " excluded.type, state = excluded.state, reason = excluded.reason, want = excluded.want,"
        " lost = excluded.lost, launch_failures = excluded.launch_failures, held ="
        " excluded.held, published = excluded.published, phase = excluded.phase, priority ="
        " excluded.priority, limit_s = excluded.limit_s, steps = excluded.steps, step ="
        " excluded.step, loss = excluded.loss, submitted_ms = excluded.submitted_ms, started_ms"
        " = excluded.started_ms, ended_ms = excluded.ended_ms, exit_code = excluded.exit_code,"
        " exit_signal = excluded.exit_signal, first_rank = excluded.first_rank, name ="
        " excluded.name, method = excluded.method, output_dir = excluded.output_dir, error ="
        " excluded.error, adapter = excluded.adapter",
    /* apart from the others, so that the index on it is left alone by every report */
    [Q_ENDED] = "UPDATE job SET ended_s = ?2 WHERE id = ?1 AND ended_s IS NOT ?2",
    [Q_SPEC] = "REPLACE INTO spec(job, from_attempt, user, resolved, sha256, overwrite)"
               " VALUES(?,?,?,?,?,?)",
    [Q_ATTEMPT] =
        "INSERT INTO attempt(job, attempt, state, phase, published, exit_known, last_report,"
        " resume_step, step, started_ms, ended_ms, exit_code, exit_signal, first_rank,"
        " peak_rss_kb, build, error, adapter) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
        " ON CONFLICT(job, attempt) DO UPDATE SET state = excluded.state, phase = excluded.phase,"
        " published = excluded.published, exit_known = excluded.exit_known,"
        " last_report = excluded.last_report, resume_step = excluded.resume_step,"
        " step = excluded.step, started_ms = excluded.started_ms, ended_ms = excluded.ended_ms,"
        " exit_code = excluded.exit_code, exit_signal = excluded.exit_signal,"
        " first_rank = excluded.first_rank, peak_rss_kb = excluded.peak_rss_kb,"
        " build = coalesce(excluded.build, build), error = coalesce(excluded.error, error),"
        " adapter = coalesce(excluded.adapter, adapter)",
    [Q_GANG] = "REPLACE INTO gang(job, attempt, devices, boot_id, started_ns) VALUES(?,?,?,?,?)",
    [Q_GANG_GONE] = "DELETE FROM gang WHERE job = ? AND attempt = ?",
    [Q_DEVICE] = "REPLACE INTO device(name, type, drained, fenced, boot_id) VALUES(?,?,?,?,?)",
    [Q_REPORTED] = "UPDATE attempt SET last_report = ?, resume_step = ? WHERE job = ?"
                   " AND attempt = ?",
    [Q_REPORT] = "INSERT INTO report(job, seq, attempt, n, step, wall_ms, kind, superseded, names,"
                 " vals) VALUES(?,?,?,?,?,?,?,?,?,?)",
    [Q_REWIND] = "UPDATE report SET superseded = 1 WHERE job = ? AND attempt < ? AND step > ?"
                 " AND kind <> 4",
    [Q_RDV] = "INSERT INTO rdv(job, attempt, key, value) VALUES(?,?,?,?)",
    [Q_RDV_CLEAR] = "DELETE FROM rdv WHERE job = ? AND attempt = ?",
    [Q_REQUEST] = "INSERT INTO request(uid, id, digest, code, job, age_s, text)"
                  " VALUES(?,?,?,?,?,?,?)",
    [Q_REQUEST_DROP] = "DELETE FROM request WHERE uid = ? AND id = ?",
    [Q_META] = "UPDATE mark SET next_job = ?, rev = ?, age_s = ?",
    [Q_LOG] = "INSERT INTO log(job, attempt, rank, at, bytes) VALUES(?,?,?,?,?)",
    [Q_NAMES_FIND] = "SELECT id FROM names WHERE job = ? AND names = ?",
    [Q_NAMES_ADD] = "INSERT INTO names(job, id, names) SELECT ?1, coalesce(max(id), 0) + 1, ?2"
                    " FROM names WHERE job = ?1 RETURNING id",
};

/* Name lists of the jobs that reported last: what most rows ask for. */
struct names_entry {
    uint64_t job;
    int64_t id;
    char *names;
    size_t bytes;
};

struct store_batch {
    sqlite3 *db;
    sqlite3_stmt *q[STMTS];
    struct names_entry names[NAMES_CACHE];
    unsigned names_next;
};

static void names_forget(struct store_batch *b)
{
    for (int i = 0; i < NAMES_CACHE; i++) {
        free(b->names[i].names);
        b->names[i] = (struct names_entry){0};
    }
}

static int names_ask(struct store_batch *b, enum stmt which, uint64_t job, const char *names,
                     size_t bytes, int64_t *ret_id, struct err *err)
{
    sqlite3_stmt *q = b->q[which];
    int rc, r = store_db_bind(q, "ib", (int64_t)job, names, bytes);

    if (r < 0)
        return r;
    rc = sqlite3_step(q);
    if (rc == SQLITE_ROW) {
        *ret_id = sqlite3_column_int64(q, 0);
        while ((rc = sqlite3_step(q)) == SQLITE_ROW)
            ;
        r = rc == SQLITE_DONE ? 1 : store_db_err(b->db, rc, err);
    } else {
        r = store_db_err(b->db, rc, err);
    }
    sqlite3_reset(q);
    sqlite3_clear_bindings(q);
    return r;
}

static int names_id(struct store_batch *b, uint64_t job, const char *names, size_t bytes,
                    int64_t *ret_id, struct err *err)
{
    struct names_entry *e;
    int r;

    for (int i = 0; i < NAMES_CACHE; i++) {
        e = &b->names[i];
        if (e->names && e->job == job && e->bytes == bytes && !memcmp(e->names, names, bytes)) {
            *ret_id = e->id;
            return 0;
        }
    }
    r = names_ask(b, Q_NAMES_FIND, job, names, bytes, ret_id, err);
    if (r == 0)
        r = names_ask(b, Q_NAMES_ADD, job, names, bytes, ret_id, err);
    if (r < 0)
        return r;
    e = &b->names[b->names_next++ % NAMES_CACHE];
    free(e->names);
    *e = (struct names_entry){job, *ret_id, malloc(bytes + 1), bytes};
    if (e->names)
        memcpy(e->names, names, bytes);
    return 0;
}

static int put_job(struct store_batch *b, const struct job *j, struct err *err)
{
    int r = store_db_bind(
        b->q[Q_JOB], "iiiiiiiiiiiiiiiiiiiidiiiiiisssss", (int64_t)j->id, (int64_t)j->rev,
        (int64_t)j->order, (int64_t)j->seq, (int64_t)j->uid, (int64_t)j->attempt,
        (int64_t)j->devices, (int64_t)j->type, (int64_t)j->state, (int64_t)j->reason,
        (int64_t)j->want, (int64_t)j->lost, (int64_t)j->launch_failures, (int64_t)j->held,
        (int64_t)j->published, (int64_t)j->phase, j->priority, j->limit_s, j->steps, j->step,
        j->loss, j->submitted_ms, j->started_ms, j->ended_ms, (int64_t)j->exit_code,
        (int64_t)j->exit_signal, (int64_t)j->first_rank, j->name ? j->name : "",
        j->method ? j->method : "", j->output_dir ? j->output_dir : "", j->error, j->adapter);

    if (r == 0)
        r = store_db_run(b->db, b->q[Q_JOB], err);
    if (r == 0)
        r = store_db_bind(b->q[Q_ENDED], "in", (int64_t)j->id, j->ended_s);
    return r < 0 ? r : store_db_run(b->db, b->q[Q_ENDED], err);
}

static int put_spec(struct store_batch *b, const struct fx_spec *p, struct err *err)
{
    uint8_t digest[SHA256_BYTES];
    int r;

    if (!p->user || !p->resolved)
        return 0;
    sha256_of(p->resolved, p->resolved_bytes, digest);
    r = store_db_bind(b->q[Q_SPEC], "iibbbi", (int64_t)p->job, (int64_t)p->from_attempt, p->user,
                      p->user_bytes, p->resolved, p->resolved_bytes, digest, sizeof digest,
                      (int64_t)p->overwrite);
    return r < 0 ? r : store_db_run(b->db, b->q[Q_SPEC], err);
}

static int put_attempt(struct store_batch *b, const struct attempt *a, struct err *err)
{
    int r =
        store_db_bind(b->q[Q_ATTEMPT], "iiiiiiiiiiiiiiisss", (int64_t)a->job, (int64_t)a->attempt,
                      (int64_t)a->state, (int64_t)a->phase, (int64_t)a->published,
                      (int64_t)a->exit_known, (int64_t)a->last_report, a->resume_step, a->step,
                      a->started_ms, a->ended_ms, (int64_t)a->exit_code, (int64_t)a->exit_signal,
                      (int64_t)a->first_rank, a->peak_rss_kb, a->build, a->error, a->adapter);

    return r < 0 ? r : store_db_run(b->db, b->q[Q_ATTEMPT], err);
}

static int put_gang(struct store_batch *b, const struct fx_gang *g, struct err *err)
{
    char devices[LIMIT_RANKS * 65 + 1] = "";
    size_t n = 0;
    int r;

    for (uint32_t i = 0; i < g->n_devices && n < sizeof devices; i++)
        n += (size_t)snprintf(devices + n, sizeof devices - n, "%s\n", g->devices[i]);
    r = store_db_bind(b->q[Q_GANG], "iisbi", (int64_t)g->job, (int64_t)g->attempt, devices,
                      g->boot_id, sizeof g->boot_id, g->started_ns);
    return r < 0 ? r : store_db_run(b->db, b->q[Q_GANG], err);
}

static int put_report(struct store_batch *b, const struct fx_report *p, struct err *err)
{
    const char *names = "";
    const void *values = NULL;
    size_t names_bytes = 0, bytes;
    uint32_t n = 0;
    uint8_t *vals;
    int64_t id = 0;
    int r;

    if (p->bytes > 0 && row_split(p->vals, p->bytes, &names, &names_bytes, &values, &n) < 0)
        return err_set(err, -EINVAL, "a report's values are damaged");
    if (n > 0) {
        r = names_id(b, p->job, names, names_bytes, &id, err);
        if (r < 0)
            return r;
    }
    r = row_values_pack(values, n, &vals, &bytes);
    if (r < 0)
        return r;
    r = store_db_bind(b->q[Q_REPORT], "iiiiiiiiib", (int64_t)p->job, (int64_t)p->seq,
                      (int64_t)p->attempt, (int64_t)p->n, p->step, p->wall_ms, (int64_t)p->kind,
                      (int64_t)p->superseded, id, vals, bytes);
    if (r == 0)
        r = store_db_run(b->db, b->q[Q_REPORT], err);
    free(vals);
    return r;
}

static int put_rewind(struct store_batch *b, const struct fx_rewind *w, struct err *err)
{
    static const uint8_t empty = 0x90; /* no values */
    int r = store_db_bind(b->q[Q_REWIND], "iii", (int64_t)w->job, (int64_t)w->attempt, w->step);

    if (r == 0)
        r = store_db_run(b->db, b->q[Q_REWIND], err);
    if (r == 0)
        r = store_db_bind(b->q[Q_REPORT], "iiiiiiiiib", (int64_t)w->job, (int64_t)w->seq,
                          (int64_t)w->attempt, (int64_t)0, w->step, (int64_t)0,
                          (int64_t)MSG_ROW_REWIND, (int64_t)0, (int64_t)0, &empty, (size_t)1);
    return r < 0 ? r : store_db_run(b->db, b->q[Q_REPORT], err);
}

static int put_request(struct store_batch *b, const struct fx_request *p, struct err *err)
{
    int r =
        store_db_bind(b->q[Q_REQUEST], "ibbiiis", (int64_t)p->uid, p->id, sizeof p->id, p->digest,
                      sizeof p->digest, (int64_t)p->code, (int64_t)p->job, p->age_s, p->text);

    return r < 0 ? r : store_db_run(b->db, b->q[Q_REQUEST], err);
}

static int put_small(struct store_batch *b, const struct effect *e, struct err *err)
{
    enum stmt which;
    int r;

    switch (e->kind) {
    case FX_GANG_GONE:
        which = Q_GANG_GONE;
        r = store_db_bind(b->q[which], "ii", (int64_t)e->gang_ref.job,
                          (int64_t)e->gang_ref.attempt);
        break;
    case FX_DEVICE:
        which = Q_DEVICE;
        r = store_db_bind(b->q[which], "siiib", e->device.name, (int64_t)e->device.type,
                          (int64_t)e->device.drained,
                          (int64_t)e->device.fenced | (int64_t)e->device.fault << 1,
                          e->device.boot_id, sizeof e->device.boot_id);
        break;
    case FX_REPORTED:
        which = Q_REPORTED;
        r = store_db_bind(b->q[which], "iiii", (int64_t)e->reported.last_report,
                          e->reported.resume_step, (int64_t)e->reported.job,
                          (int64_t)e->reported.attempt);
        break;
    case FX_RDV_PUT:
        which = Q_RDV;
        r = store_db_bind(b->q[which], "iisb", (int64_t)e->rdv.job, (int64_t)e->rdv.attempt,
                          e->rdv.key, e->rdv.value, e->rdv.bytes);
        break;
    case FX_RDV_CLEAR:
        which = Q_RDV_CLEAR;
        r = store_db_bind(b->q[which], "ii", (int64_t)e->rdv.job, (int64_t)e->rdv.attempt);
        break;
    case FX_REQUEST_DROP:
        which = Q_REQUEST_DROP;
        r = store_db_bind(b->q[which], "ib", (int64_t)e->request.uid, e->request.id,
                          sizeof e->request.id);
        break;
    case FX_META:
        which = Q_META;
        r = store_db_bind(b->q[which], "iii", (int64_t)e->meta.next_job, (int64_t)e->meta.rev,
                          e->meta.age_s);
        break;
    default:
        return err_set(err, -EINVAL, "%s is not a row", event_fx_name(e->kind));
    }
    return r < 0 ? r : store_db_run(b->db, b->q[which], err);
}

static int put(struct store_batch *b, const struct effect *e, struct err *err)
{
    int r;

    switch (e->kind) {
    case FX_SUBMITTED:
        r = put_job(b, &e->job, err);
        return r < 0 ? r : put_spec(b, &e->spec, err);
    case FX_RESPEC:
        return put_spec(b, &e->spec, err);
    case FX_JOB:
        return put_job(b, &e->job, err);
    case FX_ATTEMPT:
        return put_attempt(b, &e->attempt, err);
    case FX_GANG:
        return put_gang(b, &e->gang, err);
    case FX_REPORT:
        return put_report(b, &e->report, err);
    case FX_REWIND:
        return put_rewind(b, &e->rewind, err);
    case FX_REQUEST:
        return put_request(b, &e->request, err);
    default:
        return put_small(b, e, err);
    }
}

static int put_log(struct store_batch *b, const struct store_log *l, struct err *err)
{
    int r = store_db_bind(b->q[Q_LOG], "iiiib", (int64_t)l->job, (int64_t)l->attempt,
                          (int64_t)l->rank, (int64_t)l->at, l->data, l->bytes);

    return r < 0 ? r : store_db_run(b->db, b->q[Q_LOG], err);
}

int store_batch_open(sqlite3 *db, struct store_batch **ret, struct err *err)
{
    struct store_batch *b = calloc(1, sizeof *b);
    int r = b ? 0 : -ENOMEM;

    if (!b)
        return r;
    b->db = db;
    for (int i = 0; i < STMTS && r == 0; i++)
        r = store_db_err(
            db, sqlite3_prepare_v3(db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &b->q[i], NULL), err);
    if (r < 0) {
        store_batch_close(b);
        return r;
    }
    *ret = b;
    return 0;
}

void store_batch_close(struct store_batch *b)
{
    if (!b)
        return;
    for (int i = 0; i < STMTS; i++)
        sqlite3_finalize(b->q[i]);
    names_forget(b);
    free(b);
}

int store_batch_write(struct store_batch *b, const struct effects *fx, const struct store_log *logs,
                      size_t n, struct err *err)
{
    int r = store_db_run(b->db, b->q[Q_BEGIN], err);

    for (size_t i = 0; i < fx->n && r == 0; i++) {
        if (!event_is_row(fx->v[i].kind))
            continue;
        r = put(b, &fx->v[i], err);
        if (r < 0)
            r = err_prefix(err, r, "%s", event_fx_name(fx->v[i].kind));
    }
    for (size_t i = 0; i < n && r == 0; i++)
        r = put_log(b, &logs[i], err);
    if (r == 0) {
        r = store_db_run(b->db, b->q[Q_COMMIT], err);
        /* Not for want of space: the outcome is unknown. For want of space it was not
         * written; should it be there after all (an fsync that failed late), the
         * next try collides with its rows, and that ends this process too. */
        if (r < 0 && r != -ENOSPC)
            r = -EIO;
    }
    if (r < 0 && !sqlite3_get_autocommit(b->db)) {
        struct err ignored;
        if (store_db_run(b->db, b->q[Q_ROLLBACK], &ignored) < 0)
            r = -EIO;
    }
    if (r < 0)
        names_forget(b);
    return r;
}
