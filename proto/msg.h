/* msg.h - the protocol: ONE list of messages and fields.
 *
 * From this list come the structs below, the codec's tables (codec.c), the table
 * in docs/PROTOCOL.md (a test compares them) and the fuzz target. A frame is one
 * msgpack map: "v" the dialect's version, "t" the message's number, then the
 * fields by name. Unknown keys are ignored; a missing `must` field, a wrong type
 * or a value over its limit makes the frame invalid. Numbers are never reused.
 *
 * Two dialects with versions of their own: clients (control and watch socket)
 * and workers (worker socket). Every request is answered by the reply named in
 * the list or by `error`. A request that changes something carries `key`, 128
 * random bits made once by the client: the same key again (nng resends by
 * itself) gets the same answer; with other contents, CONFLICT.
 *
 * A decoded message owns its memory; strings are NUL-terminated UTF-8 without
 * embedded NULs, absent ones are "" and absent numbers 0. */
#ifndef PROTO_MSG_H
#define PROTO_MSG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/limit.h"

enum { /* dialect versions a build of this tree speaks */
       MSG_CLIENT_V_MIN = 1,
       MSG_CLIENT_V_MAX = 1,
       MSG_WORKER_V_MIN = 1,
       MSG_WORKER_V_MAX = 1,
};

/* error.code; stable numbers, `text` says it for people */
enum msg_code {
    MSG_OK = 0,
    MSG_BUSY = 1,      /* too many requests in progress on this connection; send again   */
    MSG_REFUSED = 2,   /* not allowed: another user's job, a used folder, a running job  */
    MSG_NOT_FOUND = 3, /* no such job, attempt, rank or device                           */
    MSG_VERSION = 4,   /* not a version this daemon speaks: v_min, v_max say which       */
    MSG_RETRY = 5,     /* cannot be stored now (disk full, starting): again in retry_ms  */
    MSG_INVALID = 6,   /* the frame or a field is wrong                                  */
    MSG_CONFLICT = 7,  /* this key was used with other contents                          */
    MSG_FENCED = 8,    /* worker: this attempt is over or was never known; end yourself  */
    MSG_GAP = 9,       /* worker: reports must continue at `expect`                      */
    MSG_INTERNAL = 10,
    MSG_CODES,
};

enum msg_dialect { MSG_BOTH, MSG_CLIENT, MSG_WORKER };
enum msg_role { MSG_REQUEST, MSG_CHANGE, MSG_HELD, MSG_REPLY };

enum msg_kind {                /* row.kind; the first four as worker/spool.h */
                MSG_ROW_START, /* step = the step resumed from; an attempt's first row            */
                MSG_ROW_TRAIN,
                MSG_ROW_EVAL,
                MSG_ROW_SUMMARY,
                MSG_ROW_REWIND, /* to watchers only: rows of earlier attempts with a step > `step`
                                   no longer count */
                MSG_ROW_KINDS,
};

enum {                           /* w_order.flags; the first two as worker/link.h */
       MSG_ORDER_CHECKPOINT = 1, /* save at the next step boundary and go on               */
       MSG_ORDER_STOP = 2,       /* save at the next step boundary and end                 */
       MSG_ORDER_KILL = 4,       /* end at once                                            */
};

enum msg_phase { /* w_report.phase; as worker/link.h */
                 MSG_PHASE_LOADING,
                 MSG_PHASE_TRAINING,
                 MSG_PHASE_EVALUATING,
                 MSG_PHASE_SAVING,
                 MSG_PHASE_DONE,
                 MSG_PHASES,
};

struct msg_bin {
    const void *data;
    size_t bytes;
};

struct msg_key { /* 128 random bits */
    uint8_t b[16];
};

struct msg_token { /* an attempt's secret */
    uint8_t b[32];
};

/* On the wire an array: [seq, attempt, n, step, wall_ms, kind, superseded, names,
 * values]; names is an array of strings, or the number of an earlier row of the
 * same message that has the same names. Values are float64, not finite allowed. */
struct msg_row {
    uint64_t seq; /* per job, given by the daemon; 0 from a worker          */
    uint32_t attempt;
    uint64_t n; /* per attempt, 1..; given by rank 0                       */
    int64_t step;
    int64_t wall_ms;
    enum msg_kind kind;
    bool superseded; /* a later attempt went back before it                    */
    uint32_t n_values;
    const char *const *names;
    const double *values;
};

struct msg_rows {
    const struct msg_row *v;
    size_t n;
};

/* Field types: u64 i64 flag str bin key token rows. F(type, name, need, limit, what):
 * limit = largest value (u64), bytes (str, bin), entries (rows); 0 = the type's own. */

#define MSG_hello(F)                                            \
    F(u64, v_min, must, 0, "lowest version the client speaks")  \
    F(u64, v_max, must, 0, "highest version the client speaks") \
    F(str, build, may, LIMIT_NAME, "the client's version")
#define MSG_welcome(F)                                               \
    F(u64, version, must, 0, "the version to speak from now on")     \
    F(u64, v_min, must, 0, "lowest version the daemon speaks")       \
    F(u64, v_max, must, 0, "highest version the daemon speaks")      \
    F(str, store, must, LIMIT_NAME, "the store's uuid")              \
    F(str, watch_url, must, LIMIT_PATH, "where watch_* requests go") \
    F(str, worker_url, must, LIMIT_PATH, "where w_* requests go")    \
    F(u64, uid, must, 0, "who the daemon says you are")              \
    F(u64, pid, may, 0, "the daemon's process")                      \
    F(str, build, may, LIMIT_NAME, "the daemon's version")           \
    F(str, note, may, LIMIT_NAME * 4, "a sentence worth printing once")
#define MSG_submit(F)                                                                 \
    F(key, key, must, 0, "request id")                                                \
    F(str, name, must, LIMIT_NAME, "the job's name")                                  \
    F(str, user_spec, must, LIMIT_SPEC_BYTES, "the job file as JSON, paths absolute") \
    F(str, resolved, must, LIMIT_SPEC_BYTES, "the resolved spec, JSON")               \
    F(str, output_dir, must, LIMIT_PATH, "absolute; may hold {name} and {id}")        \
    F(str, method, must, LIMIT_NAME, "sft, dpo")                                      \
    F(str, device_type, must, LIMIT_NAME, "auto, gpu, cpu")                           \
    F(u64, devices, must, LIMIT_RANKS, "ranks")                                       \
    F(u64, steps, may, 0, "optimizer steps in all, 0: not known yet")                 \
    F(i64, priority, may, 0, "higher goes first")                                     \
    F(flag, hold, may, 0, "do not start before a release")                            \
    F(flag, overwrite, may, 0, "output_dir may hold an earlier run")
#define MSG_submitted(F)                 \
    F(u64, job, must, 0, "the job's id") \
    F(str, output_dir, must, LIMIT_PATH, "with {name} and {id} replaced")
#define MSG_list(F)                                                \
    F(flag, mine, may, 0, "only the asker's jobs")                 \
    F(flag, active, may, 0, "only jobs that are not over")         \
    F(u64, after, may, 0, "only jobs with a higher id: next page") \
    F(u64, max, may, 0, "rows wanted, 0: as many as fit")          \
    F(u64, ended_after_ms, may, 0, "of those that are over, only which ended later")
#define MSG_show(F) F(u64, job, must, 0, "which; 0: the asker's newest")
#define MSG_spec(F) F(u64, job, must, 0, "which")
#define MSG_specs(F)                                          \
    F(u64, job, must, 0, "which")                             \
    F(str, user_spec, must, LIMIT_SPEC_BYTES, "as submitted") \
    F(str, resolved, must, LIMIT_SPEC_BYTES, "as submitted")
#define MSG_devices(F)
#define MSG_json(F)                                                                            \
    F(str, text, must, LIMIT_MSG_BYTES - 4096, "a JSON document, docs/PROTOCOL.md says which") \
    F(u64, next, may, 0, "list: there are more; ask with after = next")                        \
    F(u64, hidden, may, 0, "list, first page: jobs that ended_after_ms left out")
#define MSG_cancel(F)                  \
    F(key, key, must, 0, "request id") \
    F(u64, job, must, 0, "which")      \
    F(flag, now, may, 0, "kill instead of stopping after a checkpoint")
#define MSG_resume(F)                                                                 \
    F(key, key, must, 0, "request id")                                                \
    F(u64, job, must, 0, "which; over, and not COMPLETED unless the specs are given") \
    F(str, user_spec, may, LIMIT_SPEC_BYTES, "replaces the stored one")               \
    F(str, resolved, may, LIMIT_SPEC_BYTES, "replaces the stored one")                \
    F(u64, steps, may, 0, "optimizer steps in all, 0: as before")
#define MSG_hold(F)                    \
    F(key, key, must, 0, "request id") \
    F(u64, job, must, 0, "which")      \
    F(flag, on, must, 0, "hold, or release")
#define MSG_drain(F)                                 \
    F(key, key, must, 0, "request id")               \
    F(str, device, must, LIMIT_NAME, "cpu:0, gpu:3") \
    F(flag, on, must, 0, "give it out no more, or again")
#define MSG_stop_daemon(F) F(key, key, must, 0, "request id")
#define MSG_done(F)                                                    \
    F(u64, job, may, 0, "which")                                       \
    F(str, state, may, LIMIT_NAME, "the job's state after the change") \
    F(str, text, may, LIMIT_NAME * 4, "what happened, for people")
#define MSG_metrics(F)                              \
    F(u64, job, must, 0, "which")                   \
    F(u64, since, may, 0, "rows with a higher seq") \
    F(flag, all, may, 0, "superseded rows too")     \
    F(u64, max, may, LIMIT_REPORT_BATCH, "rows wanted, 0: as many as fit")
#define MSG_page(F)                                             \
    F(rows, rows, must, LIMIT_REPORT_BATCH + 1, "oldest first") \
    F(u64, last, must, 0, "ask with since = last next time")    \
    F(flag, more, may, 0, "more are there already")             \
    F(u64, oldest, may, 0, "the oldest seq kept")               \
    F(u64, thinned, may, 0, "of rows up to this seq only some were kept; 0: all are there")
#define MSG_logs(F)                                                                     \
    F(u64, job, must, 0, "which")                                                       \
    F(u64, attempt, may, 0, "0: the newest")                                            \
    F(u64, rank, may, LIMIT_RANKS, "whose output")                                      \
    F(i64, offset, must, 0, "from this byte; negative: that many bytes before the end") \
    F(u64, max, may, LIMIT_LOG_CHUNK, "bytes wanted, 0: as many as fit")
#define MSG_chunk(F)                                                                           \
    F(u64, attempt, must, 0, "whose output")                                                   \
    F(u64, offset, must, 0, "where bytes begin; higher than asked: what lies between is gone") \
    F(bin, bytes, must, LIMIT_LOG_CHUNK, "the output")                                         \
    F(u64, size, must, 0, "bytes there are now")                                               \
    F(flag, over, may, 0, "the attempt is over: nothing will be added")
#define MSG_watch_job(F)                            \
    F(u64, job, must, 0, "which")                   \
    F(u64, since, may, 0, "rows with a higher seq") \
    F(u64, rev, may, 0, "the newest state known")
#define MSG_job_news(F)                                                                      \
    F(u64, job, must, 0, "which")                                                            \
    F(u64, rev, must, 0, "of `state`")                                                       \
    F(str, state, may, LIMIT_SPEC_BYTES, "JSON as `show` gives it; \"\": no newer than rev") \
    F(rows, rows, must, LIMIT_REPORT_BATCH + 1, "newer rows, oldest first, with rewinds")    \
    F(u64, last, must, 0, "ask with since = last next time")                                 \
    F(flag, more, may, 0, "more rows are there already")                                     \
    F(u64, oldest, may, 0, "the oldest seq kept")                                            \
    F(flag, over, may, 0, "the job is over and every row was sent")                          \
    F(u64, thinned, may, 0, "of rows up to this seq only some were kept; 0: all are there")
#define MSG_watch_queue(F) \
    F(u64, rev, may, 0, "the newest state known; 0: everything but what ended long ago")
#define MSG_queue_news(F)                                                                     \
    F(u64, rev, must, 0, "ask with this next time")                                           \
    F(str, text, must, LIMIT_MSG_BYTES - 4096, "JSON array of jobs changed since, as `list`") \
    F(flag, more, may, 0, "more changed already")
#define MSG_watch_log(F)                           \
    F(u64, job, must, 0, "which")                  \
    F(u64, attempt, may, 0, "0: the newest")       \
    F(u64, rank, may, LIMIT_RANKS, "whose output") \
    F(u64, offset, must, 0, "from this byte")

#define MSG_WHO(F)                          \
    F(u64, job, must, 0, "the gang's job")  \
    F(u64, attempt, must, 0, "its attempt") \
    F(token, token, must, 0, "the attempt's secret")
#define MSG_w_hello(F)                                          \
    MSG_WHO(F)                                                  \
    F(u64, v_min, must, 0, "lowest version the worker speaks")  \
    F(u64, v_max, must, 0, "highest version the worker speaks") \
    F(u64, pid, may, 0, "the supervisor")                       \
    F(str, build, may, LIMIT_NAME, "the worker's version")
#define MSG_w_welcome(F)                                          \
    F(u64, version, must, 0, "the version to speak from now on")  \
    F(str, store, must, LIMIT_NAME, "the store's uuid")           \
    F(u64, next_n, must, 0, "the first report not yet committed") \
    F(u64, flags, may, 0, "MSG_ORDER_* given so far")
#define MSG_w_report(F)                                                                       \
    MSG_WHO(F)                                                                                \
    F(u64, rows_attempt, may, 0, "whose rows: 0 = attempt, or an older one not sent in full") \
    F(u64, first_n, may, 0, "n of rows[0]")                                                   \
    F(rows, rows, must, LIMIT_REPORT_BATCH, "without gaps; may be none: only a beat")         \
    F(u64, phase, may, MSG_PHASES - 1, "enum msg_phase")                                      \
    F(i64, step, may, 0, "steps done")                                                        \
    F(i64, steps, may, 0, "of so many, 0: not known yet")                                     \
    F(u64, rss_kb, may, 0, "host memory that the ranks hold together; 0: not known")          \
    F(u64, rss_peak_kb, may, 0, "the sum of what each held at most")
#define MSG_w_ack(F)                                                              \
    F(u64, next_n, must, 0, "the first report of rows_attempt not yet committed") \
    F(u64, flags, may, 0, "MSG_ORDER_* given so far")
#define MSG_w_log(F)                                                         \
    MSG_WHO(F)                                                               \
    F(u64, rank, must, LIMIT_RANKS, "whose output")                          \
    F(u64, offset, must, LIMIT_LOG_BYTES, "where bytes begin in rank-R.log") \
    F(bin, bytes, must, LIMIT_LOG_CHUNK, "may be none: only asks")
#define MSG_w_log_ack(F) F(u64, offset, must, 0, "send from here next")
#define MSG_w_directive(F) \
    MSG_WHO(F)             \
    F(u64, seen, may, 0, "serial of the newest order known")
#define MSG_w_order(F)                             \
    F(u64, serial, must, 0, "= seen: nothing new") \
    F(u64, flags, must, 0, "MSG_ORDER_*")          \
    F(str, text, may, LIMIT_NAME * 4, "why, for the log")
#define MSG_w_rdv_put(F)                              \
    MSG_WHO(F)                                        \
    F(str, name, must, LIMIT_NAME, "the value's key") \
    F(bin, value, must, LIMIT_RDV_BYTES, "the same name again must bring the same value")
#define MSG_w_rdv_get(F) \
    MSG_WHO(F)           \
    F(str, name, must, LIMIT_NAME, "the value's key")
#define MSG_w_value(F)                                         \
    F(flag, found, must, 0, "false: not there yet, ask again") \
    F(bin, value, may, LIMIT_RDV_BYTES, "the value")
#define MSG_w_exit(F) \
    MSG_WHO(F)        \
    F(str, record, must, LIMIT_RDV_BYTES, "exit.json (docs/PROCESSES.md)")
#define MSG_w_ok(F)

#define MSG_error(F)                                      \
    F(u64, code, must, 0xffff, "enum msg_code")           \
    F(str, text, must, 4096, "for people")                \
    F(u64, v_min, may, 0, "VERSION: lowest spoken")       \
    F(u64, v_max, may, 0, "VERSION: highest spoken")      \
    F(u64, retry_ms, may, 0, "RETRY, BUSY: wait so long") \
    F(u64, expect, may, 0, "GAP: first report wanted")

/* X(number, name, dialect, role, reply, what) */
#define MSG_LIST(X)                                                                      \
    X(1, error, BOTH, REPLY, error, "the request failed")                                \
    X(2, hello, CLIENT, REQUEST, welcome, "first: versions, addresses")                  \
    X(3, welcome, CLIENT, REPLY, welcome, "")                                            \
    X(4, submit, CLIENT, CHANGE, submitted, "queues a job")                              \
    X(5, submitted, CLIENT, REPLY, submitted, "committed")                               \
    X(6, list, CLIENT, REQUEST, json, "the queue")                                       \
    X(7, show, CLIENT, REQUEST, json, "everything about a job")                          \
    X(8, spec, CLIENT, REQUEST, specs, "what was submitted")                             \
    X(9, specs, CLIENT, REPLY, specs, "")                                                \
    X(10, devices, CLIENT, REQUEST, json, "the devices and who has them")                \
    X(11, json, CLIENT, REPLY, json, "")                                                 \
    X(12, cancel, CLIENT, CHANGE, done, "stops a job")                                   \
    X(13, resume, CLIENT, CHANGE, done, "continues a job as its next attempt")           \
    X(14, hold, CLIENT, CHANGE, done, "holds or releases a pending job")                 \
    X(15, drain, CLIENT, CHANGE, done, "drains or undrains a device")                    \
    X(16, stop_daemon, CLIENT, CHANGE, done, "ends the daemon; gangs train on")          \
    X(17, done, CLIENT, REPLY, done, "committed")                                        \
    X(18, metrics, CLIENT, REQUEST, page, "a page of a job's rows")                      \
    X(19, page, CLIENT, REPLY, page, "")                                                 \
    X(20, logs, CLIENT, REQUEST, chunk, "a page of a rank's output")                     \
    X(21, chunk, CLIENT, REPLY, chunk, "")                                               \
    X(22, watch_job, CLIENT, HELD, job_news, "waits for rows or a new state")            \
    X(23, job_news, CLIENT, REPLY, job_news, "")                                         \
    X(24, watch_queue, CLIENT, HELD, queue_news, "waits for a job to change")            \
    X(25, queue_news, CLIENT, REPLY, queue_news, "")                                     \
    X(26, watch_log, CLIENT, HELD, chunk, "waits for output")                            \
    X(40, w_hello, WORKER, REQUEST, w_welcome, "first, after every reconnect: adoption") \
    X(41, w_welcome, WORKER, REPLY, w_welcome, "")                                       \
    X(42, w_report, WORKER, CHANGE, w_ack, "rows and progress; at least every 10 s")     \
    X(43, w_ack, WORKER, REPLY, w_ack, "committed")                                      \
    X(44, w_log, WORKER, CHANGE, w_log_ack, "rank output by offset")                     \
    X(45, w_log_ack, WORKER, REPLY, w_log_ack, "committed")                              \
    X(46, w_directive, WORKER, HELD, w_order, "waits for an order")                      \
    X(47, w_order, WORKER, REPLY, w_order, "")                                           \
    X(48, w_rdv_put, WORKER, CHANGE, w_ok, "a value for the other ranks")                \
    X(49, w_rdv_get, WORKER, HELD, w_value, "waits for a value")                         \
    X(50, w_value, WORKER, REPLY, w_value, "")                                           \
    X(51, w_exit, WORKER, CHANGE, w_ok, "the gang is gone; the last message")            \
    X(52, w_ok, WORKER, REPLY, w_ok, "committed")

/* Everything below is generated from the lists above. */
typedef uint64_t msg_t_u64;
typedef int64_t msg_t_i64;
typedef bool msg_t_flag;
typedef const char *msg_t_str;
typedef struct msg_bin msg_t_bin;
typedef struct msg_key msg_t_key;
typedef struct msg_token msg_t_token;
typedef struct msg_rows msg_t_rows;

enum msg_type {
#define X(num, name, dialect, role, reply, what) MSG_T_##name = num,
    MSG_LIST(X)
#undef X
};

#define MSG_FIELD(type, name, need, limit, what) msg_t_##type name;
#define X(num, nam, dialect, role, reply, what)                           \
    struct msg_##nam {                                                    \
        MSG_##nam(MSG_FIELD) char end_[1]; /* no message is empty in C */ \
    };
MSG_LIST(X)
#undef X

struct msg {
    enum msg_type type;
    uint32_t version; /* of the dialect; 0 when encoding: the highest */
    union {
#define X(num, name, dialect, role, reply, what) struct msg_##name name;
        MSG_LIST(X)
#undef X
    };
    void *memory_; /* the codec's; NULL in a message made by hand */
};

#endif
