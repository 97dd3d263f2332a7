/* store.c - see store.h: opening, identity, the ballast against a full disk. */
#include "daemon/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "daemon/schema.h"
#include "daemon/store_batch.h"
#include "daemon/store_db.h"
#include "proto/limit.h"
#include "proto/log.h"

enum {
    BALLAST_BYTES = 16 << 20,
    BALLAST_ROOM = 4, /* comes back when so many times its size is free          */
    BALLAST_WAIT_S = 60,
    WAL_PAGES = 1000,
};

struct store {
    sqlite3 *db;
    struct store_batch *batch;
    char *dir, *path;
    char uuid[STORE_UUID];
    uint8_t key[STORE_KEY];
    bool ballast;        /* it lies there */
    int64_t ballast_s;   /* when its return was last tried */
    bool checkpoint_bad; /* said so already */
    struct store_tidier *tidier;
};

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
    r = store_batch_open(s->db, &s->batch, err);
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
    store_batch_close(s->batch);
    sqlite3_close(s->db);
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

int store_commit(struct store *s, const struct effects *fx, const struct store_log *logs, size_t n,
                 struct err *err)
{
    int r;

    if (fx->rows == 0 && n == 0)
        return 0;
    r = store_batch_write(s->batch, fx, logs, n, err);
    if (r == -ENOSPC && s->ballast && ballast_drop(s)) {
        log_warn("store_full", "given up the ballast; free some space in %s", s->dir);
        r = store_batch_write(s->batch, fx, logs, n, err);
    }
    if (r == 0 && !s->ballast && clock_s() - s->ballast_s > BALLAST_WAIT_S)
        ballast_make(s);
    return r;
}
