/* store_read.c - pages of history: rows, output, specs, attempts. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store.h"
#include "daemon/store_db.h"

static const char *const sql[READ_STMTS] = {
    [R_ROWS] = "SELECT seq, attempt, n, step, wall_ms, kind, superseded, names, vals FROM report"
               " WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?",
    [R_BOUNDS] = "SELECT (SELECT min(seq) FROM report WHERE job = ?1),"
                 " (SELECT thin_seq FROM job WHERE id = ?1 AND thin_every > 1)",
    [R_NAMES] = "SELECT names FROM names WHERE job = ? AND id = ?",
    [R_LOG] = "SELECT at, bytes FROM log WHERE job = ? AND attempt = ? AND rank = ? AND at >="
              " coalesce((SELECT max(at) FROM log WHERE job = ?1 AND attempt = ?2 AND rank = ?3"
              " AND at <= ?4), 0) ORDER BY at",
    [R_LOG_SIZE] = "SELECT at + length(bytes) FROM log WHERE job = ? AND attempt = ? AND rank = ?"
                   " ORDER BY at DESC LIMIT 1",
    [R_LOG_ENDS] = "SELECT rank, max(at + length(bytes)) FROM log WHERE job = ? AND attempt = ?"
                   " GROUP BY rank",
    [R_ATTEMPTS] = "SELECT attempt, state, resume_step, step, started_ms, ended_ms, exit_code,"
                   " exit_signal, first_rank, peak_rss_kb, build, error, adapter FROM attempt"
                   " WHERE job = ? ORDER BY attempt",
    [R_JOB] = STORE_DB_JOB " WHERE id = ?",
    /* +: by id, so that no page looks at more than it gives */
    [R_JOBS] = STORE_DB_JOB " WHERE id > ?1 AND +ended_s IS NOT NULL AND (?2 < 0 OR uid = ?2)"
                            " AND ended_ms >= ?4 ORDER BY id LIMIT ?3",
    [R_HIDDEN] = "SELECT count(*) FROM job WHERE ended_s IS NOT NULL AND (?1 < 0 OR uid = ?1)"
                 " AND ended_ms < ?2",
    [R_NEWEST] = "SELECT id FROM job WHERE uid = ? ORDER BY id DESC LIMIT 1",
    [R_PAST] = STORE_DB_ATTEMPT " WHERE job = ? ORDER BY attempt",
    [R_REQUEST] = STORE_DB_REQUEST " WHERE uid = ? AND id = ?",
    [R_SPEC] = "SELECT user, resolved, overwrite FROM spec WHERE job = ? AND (?2 = 0 OR "
               "from_attempt <= ?2)"
               " ORDER BY from_attempt DESC LIMIT 1",
};

static const char *text_or_null(sqlite3_stmt *q, int i)
{
    return (const char *)sqlite3_column_text(q, i);
}

/* ---- readers ---- */

int store_reader_open(const char *path, struct store_reader **ret, struct err *err)
{
    struct store_reader *r = calloc(1, sizeof *r);
    int rc, e = 0;

    if (!r)
        return -ENOMEM;
    rc = sqlite3_open_v2(path, &r->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_busy_timeout(r->db, 5000);
        rc = sqlite3_exec(r->db, "PRAGMA query_only = 1; PRAGMA cache_size = -256", NULL, NULL,
                          NULL);
    }
    if (rc != SQLITE_OK)
        e = err_set(err, -EIO, "cannot read %s: %s", path, sqlite3_errmsg(r->db));
    for (int i = 0; i < READ_STMTS && e == 0; i++)
        e = store_db_err(r->db, sqlite3_prepare_v2(r->db, sql[i], -1, &r->q[i], NULL), err);
    if (e < 0) {
        store_reader_close(r);
        return e;
    }
    *ret = r;
    return 0;
}

void store_reader_close(struct store_reader *r)
{
    if (!r)
        return;
    for (int i = 0; i < READ_STMTS; i++)
        sqlite3_finalize(r->q[i]);
    sqlite3_close(r->db);
    free(r);
}

/* The list of names with this id; valid until the next call. "" for id 0. */
static int read_names(struct store_reader *r, uint64_t job, int64_t id, const char **ret,
                      size_t *ret_bytes)
{
    sqlite3_stmt *q = r->q[R_NAMES];

    *ret = "";
    *ret_bytes = 0;
    if (id == 0)
        return 0;
    sqlite3_reset(q);
    if (store_db_bind(q, "ii", (int64_t)job, id) < 0)
        return -ENOMEM;
    if (sqlite3_step(q) != SQLITE_ROW)
        return -EIO;
    *ret = sqlite3_column_blob(q, 0);
    *ret_bytes = (size_t)sqlite3_column_bytes(q, 0);
    return *ret ? 0 : -EIO;
}

/* How many names there are, or -EIO when the list is not one. */
static int count_names(const char *names, size_t bytes)
{
    int n = 0;

    if (bytes > 0 && names[bytes - 1] != 0)
        return -EIO;
    for (size_t i = 0; i < bytes; i++)
        n += names[i] == 0;
    return n <= LIMIT_METRICS ? n : -EIO;
}

static int read_row(struct store_reader *r, uint64_t job, bool all, sqlite3_stmt *q,
                    struct row_page *ret, uint64_t *ret_last)
{
    struct msg_row row = {.seq = (uint64_t)sqlite3_column_int64(q, 0),
                          .attempt = (uint32_t)sqlite3_column_int64(q, 1),
                          .n = (uint64_t)sqlite3_column_int64(q, 2),
                          .step = sqlite3_column_int64(q, 3),
                          .wall_ms = sqlite3_column_int64(q, 4),
                          .superseded = sqlite3_column_int(q, 6) != 0};
    const int64_t kind = sqlite3_column_int64(q, 5);
    double values[LIMIT_METRICS];
    const char *names;
    size_t bytes;
    int n, e;

    *ret_last = row.seq;
    if (row.superseded && !all)
        return 0;
    if (kind < 0 || kind >= MSG_ROW_KINDS)
        return -EIO;
    row.kind = (enum msg_kind)kind;
    e = read_names(r, job, sqlite3_column_int64(q, 7), &names, &bytes);
    if (e < 0)
        return e;
    n = count_names(names, bytes);
    if (n < 0 || row_values_unpack(sqlite3_column_blob(q, 8), (size_t)sqlite3_column_bytes(q, 8),
                                   values, (uint32_t)n) < 0)
        return -EIO;
    row.n_values = (uint32_t)n;
    return row_page_add(ret, &row, names, bytes, values);
}

int store_read_rows(struct store_reader *r, uint64_t job, uint64_t since, bool all, uint32_t max,
                    struct row_page *ret, struct store_span *span)
{
    sqlite3_stmt *q = r->q[R_ROWS], *b = r->q[R_BOUNDS];
    uint32_t seen = 0;
    int rc, e = 0;

    *span = (struct store_span){.last = since};
    if (store_db_bind(b, "i", (int64_t)job) == 0 && sqlite3_step(b) == SQLITE_ROW) {
        span->oldest = (uint64_t)sqlite3_column_int64(b, 0);
        span->thinned = (uint64_t)sqlite3_column_int64(b, 1);
    }
    sqlite3_reset(b);
    if (store_db_bind(q, "iii", (int64_t)job, (int64_t)since, (int64_t)max + 1) < 0)
        return -ENOMEM;
    while (e == 0 && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        if (seen == max) {
            span->more = true;
            break;
        }
        e = read_row(r, job, all, q, ret, &span->last);
        seen++;
    }
    if (e == 0 && !span->more)
        e = store_db_err(r->db, rc, NULL);
    sqlite3_reset(q);
    sqlite3_reset(r->q[R_NAMES]);
    return e;
}

int store_read_log(struct store_reader *r, uint64_t job, uint32_t attempt, uint32_t rank,
                   int64_t offset, void *to, size_t cap, size_t *ret_bytes, uint64_t *ret_at,
                   uint64_t *ret_size)
{
    sqlite3_stmt *q = r->q[R_LOG_SIZE];
    size_t n = 0;
    int64_t at;
    int rc = SQLITE_DONE, e;

    *ret_size = 0;
    if (store_db_bind(q, "iii", (int64_t)job, (int64_t)attempt, (int64_t)rank) == 0 &&
        sqlite3_step(q) == SQLITE_ROW)
        *ret_size = (uint64_t)sqlite3_column_int64(q, 0);
    sqlite3_reset(q);
    at = offset >= 0 ? offset : offset + (int64_t)*ret_size;
    if (at < 0)
        at = 0;
    *ret_at = (uint64_t)at;
    q = r->q[R_LOG];
    if (store_db_bind(q, "iiii", (int64_t)job, (int64_t)attempt, (int64_t)rank, at) < 0)
        return -ENOMEM;
    while (n < cap && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        const int64_t begin = sqlite3_column_int64(q, 0);
        const size_t bytes = (size_t)sqlite3_column_bytes(q, 1);
        const char *data = sqlite3_column_blob(q, 1);
        size_t skip = 0, take;
        if (begin > at && n == 0) /* the oldest kept is newer than what was asked for */
            *ret_at = (uint64_t)(at = begin);
        if (begin > at + (int64_t)n)
            break;
        skip = (size_t)(at + (int64_t)n - begin);
        if (skip >= bytes)
            continue;
        take = bytes - skip < cap - n ? bytes - skip : cap - n;
        memcpy((char *)to + n, data + skip, take);
        n += take;
    }
    e = rc == SQLITE_ROW ? 0 : store_db_err(r->db, rc, NULL);
    sqlite3_reset(q);
    *ret_bytes = n;
    return e;
}

static char *copy_blob(sqlite3_stmt *q, int i)
{
    const void *p = sqlite3_column_blob(q, i);
    const size_t n = (size_t)sqlite3_column_bytes(q, i);
    char *s = malloc(n + 1);

    if (s) {
        if (n > 0)
            memcpy(s, p, n);
        s[n] = 0;
    }
    return s;
}

int store_read_spec(struct store_reader *r, uint64_t job, uint32_t attempt, char **ret_user,
                    char **ret_resolved, bool *ret_overwrite)
{
    sqlite3_stmt *q = r->q[R_SPEC];
    char *user = NULL, *resolved = NULL;
    int rc, e = 0;

    if (store_db_bind(q, "ii", (int64_t)job, (int64_t)attempt) < 0)
        return -ENOMEM;
    rc = sqlite3_step(q);
    if (rc == SQLITE_ROW) {
        user = copy_blob(q, 0);
        resolved = copy_blob(q, 1);
        *ret_overwrite = sqlite3_column_int(q, 2) != 0;
        if (!user || !resolved)
            e = -ENOMEM;
    } else {
        e = rc == SQLITE_DONE ? -ENOENT : store_db_err(r->db, rc, NULL);
    }
    sqlite3_reset(q);
    if (e < 0) {
        free(user);
        free(resolved);
        return e;
    }
    *ret_user = user;
    *ret_resolved = resolved;
    return 0;
}

int store_read_attempts(struct store_reader *r, uint64_t job, uint32_t newest, struct buf *b)
{
    static const char *const keys[] = {"exit_code", "exit_signal", "first_rank", "peak_rss_kb"};
    static const char *const texts[] = {"build", "error", "adapter"};
    sqlite3_stmt *q = r->q[R_ATTEMPTS];
    int rc, n = 0;

    if (store_db_bind(q, "i", (int64_t)job) < 0)
        return -ENOMEM;
    buf_str(b, "[");
    while ((rc = sqlite3_step(q)) == SQLITE_ROW) {
        const sqlite3_int64 attempt = sqlite3_column_int64(q, 0);
        buf_printf(b, "%s{\"attempt\":%lld,\"state\":\"%s\",\"resume_step\":%lld,\"step\":",
                   n++ ? "," : "", attempt,
                   job_state_name((enum job_state)sqlite3_column_int(q, 1)),
                   sqlite3_column_int64(q, 2));
        if (newest > 0 && attempt == newest)
            buf_printf(b, "%c", STORE_STEP);
        else
            buf_printf(b, "%lld", sqlite3_column_int64(q, 3));
        buf_printf(b, ",\"started_ms\":%lld,\"ended_ms\":%lld", sqlite3_column_int64(q, 4),
                   sqlite3_column_int64(q, 5));
        for (int i = 0; i < 4; i++)
            buf_printf(b, ",\"%s\":%lld", keys[i], sqlite3_column_int64(q, 6 + i));
        for (int i = 0; i < 3; i++) {
            const char *text = text_or_null(q, 10 + i);
            buf_printf(b, ",\"%s\":", texts[i]);
            buf_json(b, text ? text : "");
        }
        buf_str(b, "}");
    }
    sqlite3_reset(q);
    buf_str(b, "]");
    return rc == SQLITE_DONE ? b->r : store_db_err(r->db, rc, NULL);
}

int store_read_log_ends(struct store_reader *r, uint64_t job, uint32_t attempt,
                        void (*fn)(void *arg, uint32_t rank, uint64_t end), void *arg)
{
    sqlite3_stmt *q = r->q[R_LOG_ENDS];
    int rc;

    if (store_db_bind(q, "ii", (int64_t)job, (int64_t)attempt) < 0)
        return -ENOMEM;
    while ((rc = sqlite3_step(q)) == SQLITE_ROW)
        fn(arg, (uint32_t)sqlite3_column_int64(q, 0), (uint64_t)sqlite3_column_int64(q, 1));
    sqlite3_reset(q);
    return store_db_err(r->db, rc, NULL);
}
