/* schema.h - the tables of alignd.db.
 *
 * Changing them: raise SCHEMA_VERSION, add the statements that lead from the last
 * version to `schema_steps`, never edit an old step: a store walks all steps from
 * its own version on, in one transaction. */
#ifndef DAEMON_SCHEMA_H
#define DAEMON_SCHEMA_H

enum {
    SCHEMA_APPLICATION_ID = 0x616c676e, /* "algn" */
    SCHEMA_VERSION = 2,
};

static const char *const schema_steps[SCHEMA_VERSION] = {
    /* one row: who this store is; token_key makes the attempts' tokens */
    "CREATE TABLE store(id INTEGER PRIMARY KEY CHECK(id = 1), uuid TEXT NOT NULL,"
    " token_key BLOB NOT NULL) STRICT;"
    /* one row: high-water marks, never lowered */
    "CREATE TABLE mark(id INTEGER PRIMARY KEY CHECK(id = 1), next_job INTEGER NOT NULL,"
    " rev INTEGER NOT NULL, age_s INTEGER NOT NULL) STRICT;"
    /* numbers of states, reasons ... are those of daemon/job.h */
    "CREATE TABLE job(id INTEGER PRIMARY KEY AUTOINCREMENT, rev INTEGER NOT NULL,"
    " ord INTEGER NOT NULL, seq INTEGER NOT NULL, uid INTEGER NOT NULL, attempt INTEGER NOT NULL,"
    " devices INTEGER NOT NULL, type INTEGER NOT NULL, state INTEGER NOT NULL,"
    " reason INTEGER NOT NULL, want INTEGER NOT NULL, lost INTEGER NOT NULL,"
    " launch_failures INTEGER NOT NULL, held INTEGER NOT NULL, published INTEGER NOT NULL,"
    " phase INTEGER NOT NULL, priority INTEGER NOT NULL, limit_s INTEGER NOT NULL,"
    " steps INTEGER NOT NULL, step INTEGER NOT NULL, loss REAL, submitted_ms INTEGER NOT NULL,"
    " started_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, exit_code INTEGER NOT NULL,"
    " exit_signal INTEGER NOT NULL, first_rank INTEGER NOT NULL, name TEXT NOT NULL,"
    " method TEXT NOT NULL, output_dir TEXT NOT NULL, error TEXT, adapter TEXT) STRICT;"
    /* the spec that holds from an attempt on; sha256 is of `resolved` */
    "CREATE TABLE spec(job INTEGER, from_attempt INTEGER, user BLOB NOT NULL,"
    " resolved BLOB NOT NULL, sha256 BLOB NOT NULL, overwrite INTEGER NOT NULL,"
    " PRIMARY KEY(job, from_attempt)) STRICT;"
    "CREATE TABLE attempt(job INTEGER, attempt INTEGER, state INTEGER NOT NULL,"
    " phase INTEGER NOT NULL, published INTEGER NOT NULL, exit_known INTEGER NOT NULL,"
    " last_report INTEGER NOT NULL, resume_step INTEGER NOT NULL, step INTEGER NOT NULL,"
    " started_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL, exit_code INTEGER NOT NULL,"
    " exit_signal INTEGER NOT NULL, first_rank INTEGER NOT NULL, peak_rss_kb INTEGER NOT NULL,"
    " build TEXT, error TEXT, adapter TEXT, PRIMARY KEY(job, attempt)) STRICT, WITHOUT ROWID;"
    /* gangs that hold devices; devices: names, a line each */
    "CREATE TABLE gang(job INTEGER, attempt INTEGER, devices TEXT NOT NULL, boot_id BLOB NOT NULL,"
    " started_ns INTEGER NOT NULL, PRIMARY KEY(job, attempt)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE device(name TEXT PRIMARY KEY, type INTEGER NOT NULL, drained INTEGER NOT NULL,"
    " fenced INTEGER NOT NULL, boot_id BLOB NOT NULL) STRICT, WITHOUT ROWID;"
    /* reports and rewinds in the order of seq; vals: a msgpack array of float64, named by
     * names(job, id). Not STRICT's business: 20 values are 181 bytes */
    "CREATE TABLE report(job INTEGER, seq INTEGER, attempt INTEGER NOT NULL, n INTEGER NOT NULL,"
    " step INTEGER NOT NULL, wall_ms INTEGER NOT NULL, kind INTEGER NOT NULL,"
    " superseded INTEGER NOT NULL, names INTEGER NOT NULL, vals BLOB NOT NULL,"
    " PRIMARY KEY(job, seq)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE names(job INTEGER, id INTEGER, names BLOB NOT NULL, PRIMARY KEY(job, id)) STRICT;"
    "CREATE TABLE rdv(job INTEGER, attempt INTEGER, key TEXT, value BLOB NOT NULL,"
    " PRIMARY KEY(job, attempt, key)) STRICT;"
    /* requests that changed something, and what was answered */
    "CREATE TABLE request(uid INTEGER, id BLOB, digest BLOB NOT NULL, code INTEGER NOT NULL,"
    " job INTEGER NOT NULL, age_s INTEGER NOT NULL, text TEXT,"
    " PRIMARY KEY(uid, id)) STRICT, WITHOUT ROWID;"
    /* output of ranks, in chunks without gaps or overlap */
    "CREATE TABLE log(job INTEGER, attempt INTEGER, rank INTEGER, at INTEGER, bytes BLOB NOT NULL,"
    " PRIMARY KEY(job, attempt, rank, at)) STRICT;",

    /* 2: what is kept for how long. ended_s: mark.age_s when it ended, NULL: it has not.
     * Rows with seq <= thin_seq were thinned, thin_every: one in so many stayed (0, 1: all);
     * output of attempts <= log_cut was cut (store_tidy.h) */
    "ALTER TABLE job ADD COLUMN ended_s INTEGER;"
    "ALTER TABLE job ADD COLUMN thin_seq INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE job ADD COLUMN thin_every INTEGER NOT NULL DEFAULT 0;"
    "ALTER TABLE job ADD COLUMN log_cut INTEGER NOT NULL DEFAULT 0;"
    "UPDATE job SET ended_s = (SELECT age_s FROM mark) WHERE state IN (5, 6, 7, 8, 10, 11);"
    /* also finds those that have not ended: NULL comes first */
    "CREATE INDEX job_ended ON job(ended_s);"
    "CREATE INDEX request_age ON request(age_s);",
};

#endif
