/* store.c - see store.h: opening, and the one transaction of a batch. */
#include "daemon/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "daemon/schema.h"
#include "daemon/store_db.h"
#include "proto/limit.h"
#include "proto/log.h"
#include "proto/sha256.h"

enum {
    BALLAST_BYTES = 16 << 20,
    BALLAST_ROOM = 4, /* comes back when so many times its size is free          */
    BALLAST_WAIT_S = 60,
    WAL_PAGES = 1000,
    NAMES_CACHE = 64,
};

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

struct store {
    sqlite3 *db;
    sqlite3_stmt *q[STMTS];
    char *dir, *path;
    char uuid[STORE_UUID];
    uint8_t key[STORE_KEY];
    struct names_entry names[NAMES_CACHE];
    unsigned names_next;
    bool ballast;        /* it lies there */
    int64_t ballast_s;   /* when its return was last tried */
    bool checkpoint_bad; /* said so already */
    struct store_tidier *tidier;
};

/* ---- SQLite's ways ---- */

int store_db_err(sqlite3 *db, int rc, struct err *err)
{
    const int os = sqlite3_system_errno(db);
    int r = -EIO;

    switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
        return 0;
    case SQLITE_FULL:
        r = -ENOSPC;
        break;
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
        r = os == ENOSPC || os == EDQUOT ? -ENOSPC : -EIO;
        break;
    case SQLITE_NOMEM:
        r = -ENOMEM;
        break;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        r = -EBUSY;
        break;
    case SQLITE_CONSTRAINT:
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        r = -EINVAL;
        break;
    }
    return err_set(err, r, "SQLite: %s", sqlite3_errmsg(db));
}

int store_db_bind(sqlite3_stmt *q, const char *types, ...)
{
    va_list ap;
    int rc = SQLITE_OK;

    va_start(ap, types);
    for (int i = 1; types[i - 1] && rc == SQLITE_OK; i++) {
        const void *p;
        int64_t v;
        size_t n;
        switch (types[i - 1]) {
        case 'i':
            rc = sqlite3_bind_int64(q, i, va_arg(ap, int64_t));
            break;
        case 'n':
            v = va_arg(ap, int64_t);
            rc = v < 0 ? sqlite3_bind_null(q, i) : sqlite3_bind_int64(q, i, v);
            break;
        case 'd':
            rc = sqlite3_bind_double(q, i, va_arg(ap, double));
            break;
        case 's':
            rc = sqlite3_bind_text(q, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
            break;
        case 'b':
            p = va_arg(ap, const void *);
            n = va_arg(ap, size_t);
            rc = sqlite3_bind_blob64(q, i, p ? p : "", n, SQLITE_STATIC);
            break;
        default:
            rc = SQLITE_MISUSE;
        }
    }
    va_end(ap);
    return rc == SQLITE_OK ? 0 : rc == SQLITE_NOMEM ? -ENOMEM : -EINVAL;
}

int store_db_run(sqlite3 *db, sqlite3_stmt *q, struct err *err)
{
    int rc, r;

    while ((rc = sqlite3_step(q)) == SQLITE_ROW)
        ;
    r = store_db_err(db, rc, err);
    sqlite3_reset(q);
    sqlite3_clear_bindings(q);
    return r;
}

static int exec(sqlite3 *db, const char *text, struct err *err)
{
    return store_db_err(db, sqlite3_exec(db, text, NULL, NULL, NULL), err);
}

static int64_t pragma(sqlite3 *db, const char *text)
{
    sqlite3_stmt *q;
    int64_t v = -1;

    if (sqlite3_prepare_v2(db, text, -1, &q, NULL) != SQLITE_OK)
        return -1;
    if (sqlite3_step(q) == SQLITE_ROW)
        v = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    return v;
}

/* ---- the ballast ---- */

static int64_t clock_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return ts.tv_sec;
}

static void ballast_path(const struct store *s, char *path, size_t size)
{
    snprintf(path, size, "%s/ballast", s->dir);
}

/* Makes it if it is not there and there is ample room. */
static void ballast_make(struct store *s)
{
    char path[LIMIT_PATH + 16];
    struct statvfs v;
    struct stat st;
    int fd;

    ballast_path(s, path, sizeof path);
    s->ballast_s = clock_s();
    s->ballast = stat(path, &st) == 0 && st.st_size == BALLAST_BYTES;
    if (s->ballast || statvfs(s->dir, &v) < 0 ||
        (uint64_t)v.f_bavail * v.f_frsize < (uint64_t)BALLAST_BYTES * BALLAST_ROOM)
        return;
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    s->ballast = posix_fallocate(fd, 0, BALLAST_BYTES) == 0;
    close(fd);
    if (!s->ballast)
        unlink(path);
}

static bool ballast_drop(struct store *s)
{
    char path[LIMIT_PATH + 16];

    ballast_path(s, path, sizeof path);
    s->ballast = false;
    s->ballast_s = clock_s();
    return unlink(path) == 0;
}

/* ---- opening ---- */

static int on_wal(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct store *s = arg;
    int rc;

    if (pages < WAL_PAGES)
        return SQLITE_OK;
    rc = sqlite3_wal_checkpoint_v2(db, name, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    if (rc != SQLITE_OK && rc != SQLITE_BUSY && !s->checkpoint_bad)
        log_warn("store_checkpoint", "failed=\"%s\"; the log stays as it is, ignoring",
                 sqlite3_errmsg(db));
    s->checkpoint_bad = rc != SQLITE_OK && rc != SQLITE_BUSY;
    return SQLITE_OK;
}

static int make_identity(struct store *s, struct err *err)
{
    uint8_t u[16];
    sqlite3_stmt *q = NULL;
    int r;

    if (getrandom(u, sizeof u, 0) != sizeof u || getrandom(s->key, sizeof s->key, 0) != STORE_KEY)
        return err_set(err, -EIO, "no random numbers");
    u[6] = (uint8_t)((u[6] & 0x0f) | 0x40); /* RFC 4122, version 4 */
    u[8] = (uint8_t)((u[8] & 0x3f) | 0x80);
    snprintf(s->uuid, sizeof s->uuid,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14],
             u[15]);
    r = store_db_err(
        s->db, sqlite3_prepare_v2(s->db, "INSERT INTO store VALUES(1, ?, ?)", -1, &q, NULL), err);
    if (r == 0)
        r = store_db_bind(q, "sb", s->uuid, s->key, sizeof s->key);
    if (r == 0)
        r = store_db_run(s->db, q, err);
    sqlite3_finalize(q);
    return r < 0 ? r : exec(s->db, "INSERT INTO mark VALUES(1, 1, 0, 0)", err);
}

static int load_identity(struct store *s, struct err *err)
{
    sqlite3_stmt *q;
    int r = store_db_err(
        s->db, sqlite3_prepare_v2(s->db, "SELECT uuid, token_key FROM store", -1, &q, NULL), err);

    if (r < 0)
        return r;
    if (sqlite3_step(q) == SQLITE_ROW && sqlite3_column_bytes(q, 0) == STORE_UUID - 1 &&
        sqlite3_column_bytes(q, 1) == STORE_KEY) {
        memcpy(s->uuid, sqlite3_column_text(q, 0), STORE_UUID);
        memcpy(s->key, sqlite3_column_blob(q, 1), STORE_KEY);
    } else {
        r = err_set(err, -EINVAL, "%s has no identity row", s->path);
    }
    sqlite3_finalize(q);
    return r;
}

static int migrate(struct store *s, struct err *err)
{
    const int64_t app = pragma(s->db, "PRAGMA application_id");
    const int64_t version = pragma(s->db, "PRAGMA user_version");
    const int64_t tables = pragma(s->db, "SELECT count(*) FROM sqlite_schema");
    char text[96];
    int r = 0;

    if (app < 0 || version < 0 || tables < 0)
        return err_set(err, -EINVAL, "%s: %s", s->path, sqlite3_errmsg(s->db));
    if ((tables > 0 && app != SCHEMA_APPLICATION_ID) || version > SCHEMA_VERSION)
        return err_set(err, -EINVAL,
                       version > SCHEMA_VERSION
                           ? "%s was written by a newer alignd; use that one"
                           : "%s is not alignd's database; name another --state folder",
                       s->path);
    if (version == SCHEMA_VERSION)
        return load_identity(s, err);
    if (version == 0) /* has an effect only before the first table */
        r = exec(s->db, "PRAGMA auto_vacuum = INCREMENTAL; VACUUM", err);
    if (r == 0)
        r = exec(s->db, "BEGIN IMMEDIATE", err);
    for (int64_t v = version; v < SCHEMA_VERSION && r == 0; v++)
        r = exec(s->db, schema_steps[v], err);
    snprintf(text, sizeof text, "PRAGMA application_id = %d; PRAGMA user_version = %d",
             SCHEMA_APPLICATION_ID, SCHEMA_VERSION);
    if (r == 0)
        r = exec(s->db, text, err);
    if (r == 0 && version == 0)
        r = make_identity(s, err);
    if (r == 0)
        r = exec(s->db, "COMMIT", err);
    return r < 0 ? r : load_identity(s, err);
}

int store_open(const char *dir, struct store **ret, struct err *err)
{
    struct store *s = calloc(1, sizeof *s);
    int r = -ENOMEM;

    if (!s)
        return r;
    s->dir = strdup(dir);
    if (!s->dir || asprintf(&s->path, "%s/alignd.db", dir) < 0)
        goto fail;
    r = store_db_err(
        NULL,
        sqlite3_open_v2(s->path, &s->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL),
        NULL);
    if (r < 0) {
        err_set(err, r, "cannot open %s: %s", s->path, sqlite3_errmsg(s->db));
        goto fail;
    }
    chmod(s->path, 0600);
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, 10000);
    r = migrate(s, err);
    if (r == 0)
        r = exec(s->db,
                 "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -2000;"
                 "PRAGMA journal_size_limit = 67108864",
                 err);
    if (r < 0) {
        err_prefix(err, r, "%s", s->path);
        goto fail;
    }
    sqlite3_wal_hook(s->db, on_wal, s);
    for (int i = 0; i < STMTS && r == 0; i++)
        r = store_db_err(
            s->db, sqlite3_prepare_v3(s->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &s->q[i], NULL),
            err);
    if (r < 0)
        goto fail;
    ballast_make(s);
    *ret = s;
    return 0;

fail:
    store_close(s);
    return r;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    store_tidy_close(s->tidier);
    for (int i = 0; i < STMTS; i++)
        sqlite3_finalize(s->q[i]);
    sqlite3_close(s->db);
    for (int i = 0; i < NAMES_CACHE; i++)
        free(s->names[i].names);
    free(s->dir);
    free(s->path);
    free(s);
}

const char *store_uuid(const struct store *s)
{
    return s->uuid;
}

const uint8_t *store_token_key(const struct store *s)
{
    return s->key;
}

const char *store_path(const struct store *s)
{
    return s->path;
}

sqlite3 *store_db(struct store *s)
{
    return s->db;
}

struct store_tidier **store_tidier(struct store *s)
{
    return &s->tidier;
}

/* ---- a batch ---- */

static void names_forget(struct store *s)
{
    for (int i = 0; i < NAMES_CACHE; i++) {
        free(s->names[i].names);
        s->names[i] = (struct names_entry){0};
    }
}

static int names_ask(struct store *s, enum stmt which, uint64_t job, const char *names,
                     size_t bytes, int64_t *ret_id, struct err *err)
{
    sqlite3_stmt *q = s->q[which];
    int rc, r = store_db_bind(q, "ib", (int64_t)job, names, bytes);

    if (r < 0)
        return r;
    rc = sqlite3_step(q);
    if (rc == SQLITE_ROW) {
        *ret_id = sqlite3_column_int64(q, 0);
        while ((rc = sqlite3_step(q)) == SQLITE_ROW)
            ;
        r = rc == SQLITE_DONE ? 1 : store_db_err(s->db, rc, err);
    } else {
        r = store_db_err(s->db, rc, err);
    }
    sqlite3_reset(q);
    sqlite3_clear_bindings(q);
    return r;
}

static int names_id(struct store *s, uint64_t job, const char *names, size_t bytes, int64_t *ret_id,
                    struct err *err)
{
    struct names_entry *e;
    int r;

    for (int i = 0; i < NAMES_CACHE; i++) {
        e = &s->names[i];
        if (e->names && e->job == job && e->bytes == bytes && !memcmp(e->names, names, bytes)) {
            *ret_id = e->id;
            return 0;
        }
    }
    r = names_ask(s, Q_NAMES_FIND, job, names, bytes, ret_id, err);
    if (r == 0)
        r = names_ask(s, Q_NAMES_ADD, job, names, bytes, ret_id, err);
    if (r < 0)
        return r;
    e = &s->names[s->names_next++ % NAMES_CACHE];
    free(e->names);
    *e = (struct names_entry){job, *ret_id, malloc(bytes + 1), bytes};
    if (e->names)
        memcpy(e->names, names, bytes);
    return 0;
}

static int put_job(struct store *s, const struct job *j, struct err *err)
{
    int r = store_db_bind(
        s->q[Q_JOB], "iiiiiiiiiiiiiiiiiiiidiiiiiisssss", (int64_t)j->id, (int64_t)j->rev,
        (int64_t)j->order, (int64_t)j->seq, (int64_t)j->uid, (int64_t)j->attempt,
        (int64_t)j->devices, (int64_t)j->type, (int64_t)j->state, (int64_t)j->reason,
        (int64_t)j->want, (int64_t)j->lost, (int64_t)j->launch_failures, (int64_t)j->held,
        (int64_t)j->published, (int64_t)j->phase, j->priority, j->limit_s, j->steps, j->step,
        j->loss, j->submitted_ms, j->started_ms, j->ended_ms, (int64_t)j->exit_code,
        (int64_t)j->exit_signal, (int64_t)j->first_rank, j->name ? j->name : "",
        j->method ? j->method : "", j->output_dir ? j->output_dir : "", j->error, j->adapter);

    if (r == 0)
        r = store_db_run(s->db, s->q[Q_JOB], err);
    if (r == 0)
        r = store_db_bind(s->q[Q_ENDED], "in", (int64_t)j->id, j->ended_s);
    return r < 0 ? r : store_db_run(s->db, s->q[Q_ENDED], err);
}

static int put_spec(struct store *s, const struct fx_spec *p, struct err *err)
{
    uint8_t digest[SHA256_BYTES];
    int r;

    if (!p->user || !p->resolved)
        return 0;
    sha256_of(p->resolved, p->resolved_bytes, digest);
    r = store_db_bind(s->q[Q_SPEC], "iibbbi", (int64_t)p->job, (int64_t)p->from_attempt, p->user,
                      p->user_bytes, p->resolved, p->resolved_bytes, digest, sizeof digest,
                      (int64_t)p->overwrite);
    return r < 0 ? r : store_db_run(s->db, s->q[Q_SPEC], err);
}

static int put_attempt(struct store *s, const struct attempt *a, struct err *err)
{
    int r =
        store_db_bind(s->q[Q_ATTEMPT], "iiiiiiiiiiiiiiisss", (int64_t)a->job, (int64_t)a->attempt,
                      (int64_t)a->state, (int64_t)a->phase, (int64_t)a->published,
                      (int64_t)a->exit_known, (int64_t)a->last_report, a->resume_step, a->step,
                      a->started_ms, a->ended_ms, (int64_t)a->exit_code, (int64_t)a->exit_signal,
                      (int64_t)a->first_rank, a->peak_rss_kb, a->build, a->error, a->adapter);

    return r < 0 ? r : store_db_run(s->db, s->q[Q_ATTEMPT], err);
}

static int put_gang(struct store *s, const struct fx_gang *g, struct err *err)
{
    char devices[LIMIT_RANKS * 65 + 1] = "";
    size_t n = 0;
    int r;

    for (uint32_t i = 0; i < g->n_devices && n < sizeof devices; i++)
        n += (size_t)snprintf(devices + n, sizeof devices - n, "%s\n", g->devices[i]);
    r = store_db_bind(s->q[Q_GANG], "iisbi", (int64_t)g->job, (int64_t)g->attempt, devices,
                      g->boot_id, sizeof g->boot_id, g->started_ns);
    return r < 0 ? r : store_db_run(s->db, s->q[Q_GANG], err);
}

static int put_report(struct store *s, const struct fx_report *p, struct err *err)
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
        r = names_id(s, p->job, names, names_bytes, &id, err);
        if (r < 0)
            return r;
    }
    r = row_values_pack(values, n, &vals, &bytes);
    if (r < 0)
        return r;
    r = store_db_bind(s->q[Q_REPORT], "iiiiiiiiib", (int64_t)p->job, (int64_t)p->seq,
                      (int64_t)p->attempt, (int64_t)p->n, p->step, p->wall_ms, (int64_t)p->kind,
                      (int64_t)p->superseded, id, vals, bytes);
    if (r == 0)
        r = store_db_run(s->db, s->q[Q_REPORT], err);
    free(vals);
    return r;
}

static int put_rewind(struct store *s, const struct fx_rewind *w, struct err *err)
{
    static const uint8_t empty = 0x90; /* no values */
    int r = store_db_bind(s->q[Q_REWIND], "iii", (int64_t)w->job, (int64_t)w->attempt, w->step);

    if (r == 0)
        r = store_db_run(s->db, s->q[Q_REWIND], err);
    if (r == 0)
        r = store_db_bind(s->q[Q_REPORT], "iiiiiiiiib", (int64_t)w->job, (int64_t)w->seq,
                          (int64_t)w->attempt, (int64_t)0, w->step, (int64_t)0,
                          (int64_t)MSG_ROW_REWIND, (int64_t)0, (int64_t)0, &empty, (size_t)1);
    return r < 0 ? r : store_db_run(s->db, s->q[Q_REPORT], err);
}

static int put_request(struct store *s, const struct fx_request *p, struct err *err)
{
    int r =
        store_db_bind(s->q[Q_REQUEST], "ibbiiis", (int64_t)p->uid, p->id, sizeof p->id, p->digest,
                      sizeof p->digest, (int64_t)p->code, (int64_t)p->job, p->age_s, p->text);

    return r < 0 ? r : store_db_run(s->db, s->q[Q_REQUEST], err);
}

static int put_small(struct store *s, const struct effect *e, struct err *err)
{
    enum stmt which;
    int r;

    switch (e->kind) {
    case FX_GANG_GONE:
        which = Q_GANG_GONE;
        r = store_db_bind(s->q[which], "ii", (int64_t)e->gang_ref.job,
                          (int64_t)e->gang_ref.attempt);
        break;
    case FX_DEVICE:
        which = Q_DEVICE;
        r = store_db_bind(s->q[which], "siiib", e->device.name, (int64_t)e->device.type,
                          (int64_t)e->device.drained,
                          (int64_t)e->device.fenced | (int64_t)e->device.fault << 1,
                          e->device.boot_id, sizeof e->device.boot_id);
        break;
    case FX_REPORTED:
        which = Q_REPORTED;
        r = store_db_bind(s->q[which], "iiii", (int64_t)e->reported.last_report,
                          e->reported.resume_step, (int64_t)e->reported.job,
                          (int64_t)e->reported.attempt);
        break;
    case FX_RDV_PUT:
        which = Q_RDV;
        r = store_db_bind(s->q[which], "iisb", (int64_t)e->rdv.job, (int64_t)e->rdv.attempt,
                          e->rdv.key, e->rdv.value, e->rdv.bytes);
        break;
    case FX_RDV_CLEAR:
        which = Q_RDV_CLEAR;
        r = store_db_bind(s->q[which], "ii", (int64_t)e->rdv.job, (int64_t)e->rdv.attempt);
        break;
    case FX_REQUEST_DROP:
        which = Q_REQUEST_DROP;
        r = store_db_bind(s->q[which], "ib", (int64_t)e->request.uid, e->request.id,
                          sizeof e->request.id);
        break;
    case FX_META:
        which = Q_META;
        r = store_db_bind(s->q[which], "iii", (int64_t)e->meta.next_job, (int64_t)e->meta.rev,
                          e->meta.age_s);
        break;
    default:
        return err_set(err, -EINVAL, "%s is not a row", event_fx_name(e->kind));
    }
    return r < 0 ? r : store_db_run(s->db, s->q[which], err);
}

static int put(struct store *s, const struct effect *e, struct err *err)
{
    int r;

    switch (e->kind) {
    case FX_SUBMITTED:
        r = put_job(s, &e->job, err);
        return r < 0 ? r : put_spec(s, &e->spec, err);
    case FX_RESPEC:
        return put_spec(s, &e->spec, err);
    case FX_JOB:
        return put_job(s, &e->job, err);
    case FX_ATTEMPT:
        return put_attempt(s, &e->attempt, err);
    case FX_GANG:
        return put_gang(s, &e->gang, err);
    case FX_REPORT:
        return put_report(s, &e->report, err);
    case FX_REWIND:
        return put_rewind(s, &e->rewind, err);
    case FX_REQUEST:
        return put_request(s, &e->request, err);
    default:
        return put_small(s, e, err);
    }
}

static int put_log(struct store *s, const struct store_log *l, struct err *err)
{
    int r = store_db_bind(s->q[Q_LOG], "iiiib", (int64_t)l->job, (int64_t)l->attempt,
                          (int64_t)l->rank, (int64_t)l->at, l->data, l->bytes);

    return r < 0 ? r : store_db_run(s->db, s->q[Q_LOG], err);
}

static int transact(struct store *s, const struct effects *fx, const struct store_log *logs,
                    size_t n, struct err *err)
{
    int r = store_db_run(s->db, s->q[Q_BEGIN], err);

    for (size_t i = 0; i < fx->n && r == 0; i++) {
        if (!event_is_row(fx->v[i].kind))
            continue;
        r = put(s, &fx->v[i], err);
        if (r < 0)
            r = err_prefix(err, r, "%s", event_fx_name(fx->v[i].kind));
    }
    for (size_t i = 0; i < n && r == 0; i++)
        r = put_log(s, &logs[i], err);
    if (r == 0) {
        r = store_db_run(s->db, s->q[Q_COMMIT], err);
        /* Not for want of space: the outcome is unknown. For want of space it was not
         * written; should it be there after all (an fsync that failed late), the
         * next try collides with its rows, and that ends this process too. */
        if (r < 0 && r != -ENOSPC)
            r = -EIO;
    }
    if (r < 0 && !sqlite3_get_autocommit(s->db)) {
        struct err ignored;
        if (store_db_run(s->db, s->q[Q_ROLLBACK], &ignored) < 0)
            r = -EIO;
    }
    if (r < 0)
        names_forget(s);
    return r;
}

int store_commit(struct store *s, const struct effects *fx, const struct store_log *logs, size_t n,
                 struct err *err)
{
    int r;

    if (fx->rows == 0 && n == 0)
        return 0;
    r = transact(s, fx, logs, n, err);
    if (r == -ENOSPC && s->ballast && ballast_drop(s)) {
        log_warn("store_full", "given up the ballast; free some space in %s", s->dir);
        r = transact(s, fx, logs, n, err);
    }
    if (r == 0 && !s->ballast && clock_s() - s->ballast_s > BALLAST_WAIT_S)
        ballast_make(s);
    return r;
}
