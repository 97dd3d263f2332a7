/* store_restore.c - rows become jobs, attempts, gangs ... again: at the start what the core
 * needs, later what it has let go of. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store.h"
#include "daemon/store_db.h"

static const char *text_or_null(sqlite3_stmt *q, int i)
{
    return (const char *)sqlite3_column_text(q, i);
}

static int restore_meta(struct core *c, sqlite3_stmt *q, struct err *err)
{
    const struct fx_meta row = {.next_job = (uint64_t)sqlite3_column_int64(q, 0),
                                .rev = (uint64_t)sqlite3_column_int64(q, 1),
                                .age_s = sqlite3_column_int64(q, 2)};
    return core_restore_meta(c, &row, err);
}

static int restore_device(struct core *c, sqlite3_stmt *q, struct err *err)
{
    struct fx_device row = {.name = text_or_null(q, 0),
                            .type = (uint8_t)sqlite3_column_int(q, 1),
                            .drained = sqlite3_column_int(q, 2) != 0,
                            .fenced = sqlite3_column_int(q, 3) & 1,
                            .fault = (uint32_t)(sqlite3_column_int64(q, 3) >> 1)};

    if (sqlite3_column_bytes(q, 4) == sizeof row.boot_id)
        memcpy(row.boot_id, sqlite3_column_blob(q, 4), sizeof row.boot_id);
    return core_restore_device(c, &row, err);
}

/* The strings are the statement's. */
static struct job take_job(sqlite3_stmt *q)
{
    struct job j = {0};
    int i = 0;

    j.id = (uint64_t)sqlite3_column_int64(q, i++);
    j.rev = (uint64_t)sqlite3_column_int64(q, i++);
    j.order = (uint64_t)sqlite3_column_int64(q, i++);
    j.seq = (uint64_t)sqlite3_column_int64(q, i++);
    j.uid = (uint32_t)sqlite3_column_int64(q, i++);
    j.attempt = (uint32_t)sqlite3_column_int64(q, i++);
    j.devices = (uint16_t)sqlite3_column_int64(q, i++);
    j.type = (uint8_t)sqlite3_column_int(q, i++);
    j.state = (uint8_t)sqlite3_column_int(q, i++);
    j.reason = (uint8_t)sqlite3_column_int(q, i++);
    j.want = (uint8_t)sqlite3_column_int(q, i++);
    j.lost = (uint8_t)sqlite3_column_int(q, i++);
    j.launch_failures = (uint8_t)sqlite3_column_int(q, i++);
    j.held = sqlite3_column_int(q, i++) != 0;
    j.published = sqlite3_column_int(q, i++) != 0;
    j.phase = (uint8_t)sqlite3_column_int(q, i++);
    j.priority = sqlite3_column_int64(q, i++);
    j.limit_s = sqlite3_column_int64(q, i++);
    j.steps = sqlite3_column_int64(q, i++);
    j.step = sqlite3_column_int64(q, i++);
    j.loss =
        sqlite3_column_type(q, i) == SQLITE_NULL ? __builtin_nan("") : sqlite3_column_double(q, i);
    i++;
    j.submitted_ms = sqlite3_column_int64(q, i++);
    j.started_ms = sqlite3_column_int64(q, i++);
    j.ended_ms = sqlite3_column_int64(q, i++);
    j.ended_s = sqlite3_column_type(q, i) == SQLITE_NULL ? -1 : sqlite3_column_int64(q, i);
    i++;
    j.exit_code = sqlite3_column_int(q, i++);
    j.exit_signal = sqlite3_column_int(q, i++);
    j.first_rank = sqlite3_column_int(q, i++);
    j.name = text_or_null(q, i++);
    j.method = text_or_null(q, i++);
    j.output_dir = text_or_null(q, i++);
    j.error = text_or_null(q, i++);
    j.adapter = text_or_null(q, i++);
    return j;
}

static int restore_job(struct core *c, sqlite3_stmt *q, struct err *err)
{
    const struct job j = take_job(q);

    return core_restore_job(c, &j, err);
}

static struct attempt take_attempt(sqlite3_stmt *q)
{
    return (struct attempt){
        .job = (uint64_t)sqlite3_column_int64(q, 0),
        .attempt = (uint32_t)sqlite3_column_int64(q, 1),
        .state = (uint8_t)sqlite3_column_int(q, 2),
        .phase = (uint8_t)sqlite3_column_int(q, 3),
        .published = sqlite3_column_int(q, 4) != 0,
        .exit_known = sqlite3_column_int(q, 5) != 0,
        .last_report = (uint64_t)sqlite3_column_int64(q, 6),
        .resume_step = sqlite3_column_int64(q, 7),
        .step = sqlite3_column_int64(q, 8),
        .started_ms = sqlite3_column_int64(q, 9),
        .ended_ms = sqlite3_column_int64(q, 10),
        .exit_code = sqlite3_column_int(q, 11),
        .exit_signal = sqlite3_column_int(q, 12),
        .first_rank = sqlite3_column_int(q, 13),
        .peak_rss_kb = sqlite3_column_int64(q, 14),
        .build = text_or_null(q, 15),
        .error = text_or_null(q, 16),
        .adapter = text_or_null(q, 17),
    };
}

static int restore_attempt(struct core *c, sqlite3_stmt *q, struct err *err)
{
    const struct attempt a = take_attempt(q);

    return core_restore_attempt(c, &a, err);
}

static int restore_gang(struct core *c, sqlite3_stmt *q, struct err *err)
{
    const char *devices[LIMIT_RANKS];
    struct fx_gang g = {.job = (uint64_t)sqlite3_column_int64(q, 0),
                        .attempt = (uint32_t)sqlite3_column_int64(q, 1),
                        .devices = devices,
                        .started_ns = sqlite3_column_int64(q, 4)};
    const char *text = text_or_null(q, 2);
    char *copy = strdup(text ? text : ""), *p = copy, *line;
    int r;

    if (!copy)
        return -ENOMEM;
    while ((line = strsep(&p, "\n")) && *line && g.n_devices < LIMIT_RANKS)
        devices[g.n_devices++] = line;
    if (sqlite3_column_bytes(q, 3) == sizeof g.boot_id)
        memcpy(g.boot_id, sqlite3_column_blob(q, 3), sizeof g.boot_id);
    r = core_restore_gang(c, &g, err);
    free(copy);
    return r;
}

static int take_request(sqlite3_stmt *q, struct fx_request *ret, struct err *err)
{
    struct fx_request p = {.uid = (uint32_t)sqlite3_column_int64(q, 0),
                           .code = sqlite3_column_int(q, 3),
                           .job = (uint64_t)sqlite3_column_int64(q, 4),
                           .age_s = sqlite3_column_int64(q, 5),
                           .text = text_or_null(q, 6)};

    if (sqlite3_column_bytes(q, 1) != sizeof p.id || sqlite3_column_bytes(q, 2) != sizeof p.digest)
        return err_set(err, -EINVAL, "a row of table request has no id or digest");
    memcpy(p.id, sqlite3_column_blob(q, 1), sizeof p.id);
    memcpy(p.digest, sqlite3_column_blob(q, 2), sizeof p.digest);
    *ret = p;
    return 0;
}

static int restore_request(struct core *c, sqlite3_stmt *q, struct err *err)
{
    struct fx_request p;
    const int r = take_request(q, &p, err);

    return r < 0 ? r : core_restore_request(c, &p, err);
}

static int restore_rdv(struct core *c, sqlite3_stmt *q, struct err *err)
{
    const struct fx_rdv v = {.job = (uint64_t)sqlite3_column_int64(q, 0),
                             .attempt = (uint32_t)sqlite3_column_int64(q, 1),
                             .key = text_or_null(q, 2),
                             .value = sqlite3_column_blob(q, 3),
                             .bytes = (size_t)sqlite3_column_bytes(q, 3)};
    return core_restore_rdv(c, &v, err);
}

/* ---- at the start ---- */

#define NEEDED "ended_s IS NULL OR ended_s > ?"

static const struct {
    const char *sql;
    int (*row)(struct core *c, sqlite3_stmt *q, struct err *err);
    int64_t (*before)(const struct core *c); /* what is as old may stay in the store */
} restores[] = {
    {"SELECT next_job, rev, age_s FROM mark", restore_meta, NULL},
    {"SELECT name, type, drained, fenced, boot_id FROM device", restore_device, NULL},
    {STORE_DB_JOB " WHERE " NEEDED " ORDER BY +id", restore_job, core_ended_before},
    {STORE_DB_ATTEMPT " WHERE job IN (SELECT id FROM job WHERE " NEEDED ") ORDER BY job, attempt",
     restore_attempt, core_ended_before},
    {"SELECT job, attempt, devices, boot_id, started_ns FROM gang", restore_gang, NULL},
    {STORE_DB_REQUEST " WHERE age_s > ?", restore_request, core_request_before},
    {"SELECT job, attempt, key, value FROM rdv", restore_rdv, NULL},
};

int store_restore(struct store *s, struct core *core, struct err *err)
{
    sqlite3 *db = store_db(s);

    for (size_t i = 0; i < sizeof restores / sizeof restores[0]; i++) {
        sqlite3_stmt *q;
        int rc, r = store_db_err(db, sqlite3_prepare_v2(db, restores[i].sql, -1, &q, NULL), err);
        if (r < 0)
            return r;
        if (restores[i].before)
            r = store_db_bind(q, "i", restores[i].before(core));
        while (r == 0 && (rc = sqlite3_step(q)) == SQLITE_ROW)
            r = restores[i].row(core, q, err);
        if (r == 0)
            r = store_db_err(db, rc, err);
        sqlite3_finalize(q);
        if (r < 0)
            return err_prefix(err, r, "%s", store_path(s));
    }
    return 0;
}

/* ---- later ---- */

static int copy_text(const char **s)
{
    if (*s && !(*s = strdup(*s)))
        return -ENOMEM;
    return 0;
}

static void job_fini(struct job *j)
{
    const char *const texts[] = {j->name, j->method, j->output_dir, j->error, j->adapter};

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        free((char *)texts[i]);
}

/* With strings of its own. */
static int own_job(sqlite3_stmt *q, struct job *ret)
{
    struct job j = take_job(q);
    const char **const texts[] = {&j.name, &j.method, &j.output_dir, &j.error, &j.adapter};
    int r = 0;

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        if (r < 0)
            *texts[i] = NULL;
        else
            r = copy_text(texts[i]);
    }
    if (r < 0)
        job_fini(&j);
    else
        *ret = j;
    return r;
}

static int add_attempt(struct store_recall *ret, const struct attempt *a)
{
    struct attempt *v = realloc(ret->attempts, (ret->n_attempts + 1) * sizeof *v);

    if (!v)
        return -ENOMEM;
    ret->attempts = v;
    v[ret->n_attempts] = *a;
    v[ret->n_attempts].build = v[ret->n_attempts].error = v[ret->n_attempts].adapter = NULL;
    ret->n_attempts++;
    return 0;
}

static int recall_job(struct store_reader *r, uint64_t job, struct store_recall *ret)
{
    sqlite3_stmt *q = r->q[R_JOB];
    int rc, e = store_db_bind(q, "i", (int64_t)job);

    if (e == 0 && (rc = sqlite3_step(q)) == SQLITE_ROW)
        ret->has_job = (e = own_job(q, &ret->job)) == 0;
    else if (e == 0)
        e = store_db_err(r->db, rc, NULL);
    sqlite3_reset(q);
    q = r->q[R_PAST];
    if (e == 0)
        e = store_db_bind(q, "i", (int64_t)job);
    rc = SQLITE_DONE;
    while (e == 0 && ret->has_job && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        const struct attempt a = take_attempt(q);
        e = add_attempt(ret, &a);
    }
    if (e == 0)
        e = store_db_err(r->db, rc, NULL);
    sqlite3_reset(q);
    return e;
}

static int recall_request(struct store_reader *r, uint32_t uid, const uint8_t *id,
                          struct store_recall *ret)
{
    sqlite3_stmt *q = r->q[R_REQUEST];
    int rc, e = store_db_bind(q, "ib", (int64_t)uid, id, (size_t)EVENT_ID_BYTES);

    if (e == 0 && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        e = take_request(q, &ret->request, NULL);
        if (e == 0)
            e = copy_text(&ret->request.text);
        ret->has_request = e == 0;
    } else if (e == 0) {
        e = store_db_err(r->db, rc, NULL);
    }
    sqlite3_reset(q);
    return e;
}

/* One transaction, so that all is of one moment. */
int store_read_recall(struct store_reader *r, uint64_t job, uint32_t uid, const uint8_t *id,
                      struct store_recall *ret)
{
    int e = store_db_err(r->db, sqlite3_exec(r->db, "BEGIN", NULL, NULL, NULL), NULL);

    *ret = (struct store_recall){0};
    if (e < 0)
        return e;
    if (id)
        e = recall_request(r, uid, id, ret);
    if (e == 0 && job == 0 && ret->has_request)
        job = ret->request.job;
    if (e == 0 && job > 0)
        e = recall_job(r, job, ret);
    (void)sqlite3_exec(r->db, "END", NULL, NULL, NULL);
    if (e < 0)
        store_recall_fini(ret);
    return e;
}

void store_recall_fini(struct store_recall *r)
{
    if (r->has_job)
        job_fini(&r->job);
    free(r->attempts);
    free(r->has_request ? (char *)r->request.text : NULL);
    *r = (struct store_recall){0};
}

int store_read_newest(struct store_reader *r, uint32_t uid, uint64_t *ret_job)
{
    sqlite3_stmt *q = r->q[R_NEWEST];
    int rc, e = store_db_bind(q, "i", (int64_t)uid);

    *ret_job = 0;
    if (e == 0 && (rc = sqlite3_step(q)) == SQLITE_ROW)
        *ret_job = (uint64_t)sqlite3_column_int64(q, 0);
    else if (e == 0)
        e = store_db_err(r->db, rc, NULL);
    sqlite3_reset(q);
    return e;
}

static int count_hidden(struct store_reader *r, int64_t uid, int64_t ended_ms, uint64_t *ret)
{
    sqlite3_stmt *q = r->q[R_HIDDEN];
    int e = store_db_bind(q, "ii", uid, ended_ms);

    if (e == 0)
        e = store_db_err(r->db, sqlite3_step(q), NULL);
    if (e == 0)
        *ret = (uint64_t)sqlite3_column_int64(q, 0);
    sqlite3_reset(q);
    return e;
}

int store_read_jobs(struct store_reader *r, uint64_t after, int64_t uid, int64_t ended_ms,
                    uint32_t max, struct store_jobs *ret)
{
    sqlite3_stmt *q = r->q[R_JOBS];
    int rc = SQLITE_DONE;
    int e = store_db_bind(q, "iiii", (int64_t)after, uid, (int64_t)max + 1, ended_ms);

    *ret = (struct store_jobs){.v = calloc(max, sizeof *ret->v)};
    if (!ret->v)
        return -ENOMEM;
    while (e == 0 && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        if (ret->n == max) {
            ret->more = true;
            break;
        }
        e = own_job(q, &ret->v[ret->n]);
        ret->n += e == 0;
    }
    if (e == 0 && !ret->more)
        e = store_db_err(r->db, rc, NULL);
    sqlite3_reset(q);
    if (e == 0 && after == 0 && ended_ms > 0)
        e = count_hidden(r, uid, ended_ms, &ret->hidden);
    if (e < 0)
        store_jobs_fini(ret);
    return e;
}

void store_jobs_fini(struct store_jobs *p)
{
    for (size_t i = 0; i < p->n; i++)
        job_fini(&p->v[i]);
    free(p->v);
    *p = (struct store_jobs){0};
}
