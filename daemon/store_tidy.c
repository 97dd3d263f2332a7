/* store_tidy.c - see store_tidy.h. */
#include "daemon/store_tidy.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/store_db.h"
#include "daemon/thin.h"

enum {
    PIECE_JOBS = 256,        /* looked at                                            */
    PIECE_ROWS = 512,        /* numbers of rows, taken away or not                   */
    PIECE_CHUNKS = 256,      /* of output                                            */
    PIECE_BYTES = 256 << 10, /* ... and their bytes                                  */
    PIECE_ATTEMPTS = 64,     /* looked through for output                            */
    RESERVE_PAGES = 256,     /* free ones that stay: they will be needed again       */
    AGAIN_S = 86400,         /* from the start once a day                            */
};

enum stmt {
    T_BEGIN,
    T_COMMIT,
    T_ROLLBACK,
    T_JOBS,
    T_THIN,
    T_THINNED,
    T_RANK,
    T_END,
    T_CHUNKS,
    T_DROP,
    T_CUT,
    T_FREE,
    T_VACUUM,
    STMTS,
};

static const char *const sql[STMTS] = {
    [T_BEGIN] = "BEGIN IMMEDIATE",
    [T_COMMIT] = "COMMIT",
    [T_ROLLBACK] = "ROLLBACK",
    [T_JOBS] = "SELECT ended_s, id, seq, thin_seq, attempt, log_cut FROM job"
               " WHERE (ended_s, id) > (?1, ?2) AND ended_s <= ?3 ORDER BY ended_s, id LIMIT ?4",
    /* as thin_keeps() */
    [T_THIN] = "DELETE FROM report WHERE job = ?1 AND seq > ?2 AND seq <= ?3 AND kind = 1 AND n > 2"
               " AND n % ?4 <> 0 AND n + 3 <= coalesce((SELECT last_report FROM attempt AS a"
               " WHERE a.job = ?1 AND a.attempt = report.attempt), 0)",
    [T_THINNED] = "UPDATE job SET thin_seq = ?2, thin_every = max(thin_every, ?3) WHERE id = ?1",
    [T_RANK] = "SELECT rank FROM log WHERE job = ?1 AND attempt = ?2 AND rank >= ?3"
               " ORDER BY rank LIMIT 1",
    [T_END] = "SELECT at + length(bytes) FROM log WHERE job = ?1 AND attempt = ?2 AND rank = ?3"
              " ORDER BY at DESC LIMIT 1",
    [T_CHUNKS] = "SELECT rowid, at + length(bytes), length(bytes) FROM log WHERE job = ?1"
                 " AND attempt = ?2 AND rank = ?3 ORDER BY at LIMIT ?4",
    [T_DROP] = "DELETE FROM log WHERE rowid = ?1",
    [T_CUT] = "UPDATE job SET log_cut = ?2 WHERE id = ?1",
    [T_FREE] = "PRAGMA freelist_count",
    /* so many pages go back to the file system in one piece */
    [T_VACUUM] = "PRAGMA incremental_vacuum(32)",
};

struct place { /* in the list of ended jobs, the oldest end first */
    int64_t ended_s, id;
};

struct store_tidier {
    sqlite3 *db;
    sqlite3_stmt *q[STMTS];
    struct place rows_at, logs_at; /* all before are done                                  */
    int64_t began_s;
};

struct due {
    struct place place;
    int64_t seq, thin_seq, attempt, log_cut;
};

/* ---- life ---- */

void store_tidy_close(struct store_tidier *t)
{
    if (!t)
        return;
    for (int i = 0; i < STMTS; i++)
        sqlite3_finalize(t->q[i]);
    free(t);
}

static int tidier_of(struct store *s, struct store_tidier **ret, struct err *err)
{
    struct store_tidier **slot = store_tidier(s), *t = *slot;
    int r = 0;

    if (t) {
        *ret = t;
        return 0;
    }
    t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    t->db = store_db(s);
    for (int i = 0; i < STMTS && r == 0; i++)
        r = store_db_err(
            t->db, sqlite3_prepare_v3(t->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &t->q[i], NULL),
            err);
    if (r < 0) {
        store_tidy_close(t);
        return r;
    }
    *ret = *slot = t;
    return 0;
}

/* One value of a statement's first row; 1: there is none. */
static int value(struct store_tidier *t, enum stmt which, int64_t *ret, struct err *err)
{
    sqlite3_stmt *q = t->q[which];
    const int rc = sqlite3_step(q);
    const int r = rc == SQLITE_DONE ? 1 : store_db_err(t->db, rc, err);

    if (r == 0)
        *ret = sqlite3_column_int64(q, 0);
    sqlite3_reset(q);
    return r;
}

/* The ended jobs after a place; *ret_n of them. */
static int jobs_after(struct store_tidier *t, const struct place *at, int64_t before_s,
                      struct due to[PIECE_JOBS], int *ret_n, struct err *err)
{
    sqlite3_stmt *q = t->q[T_JOBS];
    int rc, n = 0;
    int r = store_db_bind(q, "iiii", at->ended_s, at->id, before_s, (int64_t)PIECE_JOBS);

    if (r < 0)
        return r;
    while ((rc = sqlite3_step(q)) == SQLITE_ROW && n < PIECE_JOBS)
        to[n++] = (struct due){.place = {sqlite3_column_int64(q, 0), sqlite3_column_int64(q, 1)},
                               .seq = sqlite3_column_int64(q, 2),
                               .thin_seq = sqlite3_column_int64(q, 3),
                               .attempt = sqlite3_column_int64(q, 4),
                               .log_cut = sqlite3_column_int64(q, 5)};
    r = store_db_err(t->db, rc, err);
    sqlite3_reset(q);
    *ret_n = n;
    return r;
}

/* ---- rows ---- */

/* Thins a part of one job's rows. */
static int thin(struct store_tidier *t, const struct due *d, struct store_tidied *ret,
                struct err *err)
{
    const int64_t every = (int64_t)thin_every((uint64_t)d->seq);
    const int64_t to = d->thin_seq + PIECE_ROWS < d->seq ? d->thin_seq + PIECE_ROWS : d->seq;
    int r = store_db_bind(t->q[T_THIN], "iiii", d->place.id, d->thin_seq, to, every);

    if (r == 0)
        r = store_db_run(t->db, t->q[T_THIN], err);
    if (r == 0) {
        ret->rows += (uint64_t)sqlite3_changes(t->db);
        r = store_db_bind(t->q[T_THINNED], "iii", d->place.id, to, every);
    }
    return r < 0 ? r : store_db_run(t->db, t->q[T_THINNED], err);
}

/* *ret_at: all jobs up to there are done. */
static int some_rows(struct store_tidier *t, int64_t before_s, struct place *ret_at,
                     struct store_tidied *ret, struct err *err)
{
    struct due list[PIECE_JOBS];
    int n = 0, r = jobs_after(t, ret_at, before_s, list, &n, err);

    for (int i = 0; r == 0 && i < n; i++) {
        const struct due *d = &list[i];
        if (d->seq > THIN_ROWS && d->thin_seq < d->seq) {
            ret->more = true;
            return thin(t, d, ret, err); /* and looked at again */
        }
        *ret_at = d->place;
    }
    ret->more |= r == 0 && n == PIECE_JOBS;
    return r;
}

/* ---- output ---- */

/* Chunks before the last STORE_TIDY_LOG bytes of one rank go, the oldest first. */
static int cut_rank(struct store_tidier *t, const struct due *d, int64_t attempt, int64_t rank,
                    uint64_t *bytes, struct err *err)
{
    int64_t end = 0, gone[PIECE_CHUNKS];
    sqlite3_stmt *q = t->q[T_CHUNKS];
    int rc = SQLITE_DONE, n = 0;
    int r = store_db_bind(t->q[T_END], "iii", d->place.id, attempt, rank);

    if (r == 0)
        r = value(t, T_END, &end, err);
    if (r == 0)
        r = store_db_bind(q, "iiii", d->place.id, attempt, rank, (int64_t)PIECE_CHUNKS);
    while (r == 0 && n < PIECE_CHUNKS && *bytes < PIECE_BYTES &&
           (rc = sqlite3_step(q)) == SQLITE_ROW) {
        if (sqlite3_column_int64(q, 1) > end - STORE_TIDY_LOG)
            break;
        gone[n++] = sqlite3_column_int64(q, 0);
        *bytes += (uint64_t)sqlite3_column_int64(q, 2);
    }
    if (r == 0)
        r = store_db_err(t->db, rc, err);
    sqlite3_reset(q);
    for (int i = 0; r == 0 && i < n; i++) {
        r = store_db_bind(t->q[T_DROP], "i", gone[i]);
        if (r == 0)
            r = store_db_run(t->db, t->q[T_DROP], err);
    }
    return r < 0 ? r : 0;
}

/* Goes on with a job's output; *ret_done: no attempt of it is left. */
static int cut_job(struct store_tidier *t, const struct due *d, int *attempts, uint64_t *bytes,
                   bool *ret_done, struct err *err)
{
    int64_t attempt = d->log_cut;
    int r = 0;

    while (r == 0 && attempt<d->attempt && * attempts> 0 && *bytes == 0) {
        int64_t rank = 0;
        (*attempts)--;
        while (r == 0 && *bytes == 0) {
            r = store_db_bind(t->q[T_RANK], "iii", d->place.id, attempt + 1, rank);
            if (r == 0)
                r = value(t, T_RANK, &rank, err);
            if (r == 0)
                r = cut_rank(t, d, attempt + 1, rank, bytes, err);
            rank++;
        }
        r = r == 1 ? 0 : r; /* no further rank */
        attempt += r == 0 && *bytes == 0;
    }
    *ret_done = r == 0 && attempt == d->attempt;
    if (r < 0 || attempt == d->log_cut)
        return r;
    r = store_db_bind(t->q[T_CUT], "ii", d->place.id, attempt);
    return r < 0 ? r : store_db_run(t->db, t->q[T_CUT], err);
}

static int some_output(struct store_tidier *t, int64_t before_s, struct place *ret_at,
                       struct store_tidied *ret, struct err *err)
{
    struct due list[PIECE_JOBS];
    int attempts = PIECE_ATTEMPTS, n = 0;
    int r = jobs_after(t, ret_at, before_s, list, &n, err);

    for (int i = 0; r == 0 && i < n; i++) {
        bool done = list[i].log_cut >= list[i].attempt;
        if (!done)
            r = cut_job(t, &list[i], &attempts, &ret->log_bytes, &done, err);
        if (r == 0 && !done) {
            ret->more = true;
            return 0;
        }
        if (r == 0)
            *ret_at = list[i].place;
    }
    ret->more |= r == 0 && n == PIECE_JOBS;
    return r;
}

/* ---- space ---- */

static int some_space(struct store_tidier *t, struct store_tidied *ret, struct err *err)
{
    int64_t before = 0, after = 0;
    int r = value(t, T_FREE, &before, err);

    if (r != 0 || before <= RESERVE_PAGES)
        return r < 0 ? r : 0;
    r = store_db_run(t->db, t->q[T_VACUUM], err);
    if (r == 0)
        r = value(t, T_FREE, &after, err);
    if (r != 0 || after >= before) /* made without incremental auto_vacuum */
        return r < 0 ? r : 0;
    ret->pages += (uint64_t)(before - after);
    ret->more |= after > RESERVE_PAGES;
    return 0;
}

/* ---- a piece ---- */

static int piece(struct store_tidier *t, const struct store_keep *k, struct place *rows,
                 struct place *logs, struct store_tidied *ret, struct err *err)
{
    int r = some_rows(t, k->age_s - k->metrics_s, rows, ret, err);

    if (r == 0 && ret->rows == 0 && !ret->more)
        r = some_output(t, k->age_s - k->logs_s, logs, ret, err);
    if (r == 0 && ret->rows == 0 && ret->log_bytes == 0 && !ret->more)
        r = some_space(t, ret, err);
    return r;
}

int store_tidy(struct store *s, const struct store_keep *k, struct store_tidied *ret,
               struct err *err)
{
    struct store_tidier *t;
    struct place rows, logs;
    int r = tidier_of(s, &t, err);

    *ret = (struct store_tidied){0};
    if (r < 0)
        return r;
    if (k->age_s - t->began_s >= AGAIN_S) {
        t->began_s = k->age_s;
        t->rows_at = t->logs_at = (struct place){0};
    }
    rows = t->rows_at;
    logs = t->logs_at;
    r = store_db_run(t->db, t->q[T_BEGIN], err);
    if (r == 0)
        r = piece(t, k, &rows, &logs, ret, err);
    if (r == 0)
        r = store_db_run(t->db, t->q[T_COMMIT], err);
    if (r < 0) {
        struct err ignored;
        *ret = (struct store_tidied){0};
        if (!sqlite3_get_autocommit(t->db))
            (void)store_db_run(t->db, t->q[T_ROLLBACK], &ignored);
        return r;
    }
    t->rows_at = rows;
    t->logs_at = logs;
    return 0;
}
