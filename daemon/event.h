/* event.h - everything that can happen to the daemon, and all it can do.
 *
 *   sockets, launcher, timers --event--> core_step() --effects--> 1 store 2 launch 3 reply
 *
 * core.c is the only thing in between. It does no I/O and reads no clock.
 *
 * EVENTS are plain values on the caller's stack. What they point to need only
 * live until core_step() returns.
 *
 * EFFECTS are appended, in order, to a `struct effects`, which owns all they
 * point to (except strings and device names of the core, which never change and
 * live as long as the core). One `struct effects` is one BATCH:
 *
 *   The shell keeps one open batch; every core_step() of the time being appends
 *   to it. When no commit is in flight and the open batch is not empty, it goes
 *   to the store thread and a new one is opened. The store writes the ROWS (first
 *   part of enum effect_kind) in order in one transaction. Once that is durable,
 *   and the batches before it are, the loop carries out the ACTIONS (second part)
 *   in order and lets watchers see the rows; then the batch is freed. A batch
 *   without rows is durable as soon as those before it are.
 *
 * So every action depends on its own batch and on all before it, and nothing
 * leaves before what it speaks of is on the disk (service.md 8). The effects of
 * one core_step() are never split over two batches. The only exception: an
 * effect with `now` set may be carried out as soon as core_step() returns, since
 * it says nothing about stored state. An answer that the shell makes itself by
 * reading the core's memory (list, show) is an action of the open batch: add it
 * there with event_reply_later(), or keep it beside the batch.
 *
 * A COMMIT THAT FAILS (service.md 9). No space (SQLITE_FULL, ENOSPC, EDQUOT): the
 * same batch is kept and tried again; the core is told EV_STORE_FULL, and
 * EV_STORE_OK when it went through. Anything else: the outcome is unknown; answer
 * nobody, carry out nothing, exit. The restart reads the truth, and repeated
 * requests do the rest. The same when core_step() returns -ENOMEM.
 *
 * START: core_new(); core_restore_*() in the order of core.h; EV_DEVICE for every
 * device that there is; for every gang of core_gang_at() and every gang that the
 * launcher knows besides, one of EV_GANG_ALIVE, _ABSENT, _LOST, _EXITED; then
 * EV_RECONCILED; then the sockets open. No job is placed before EV_RECONCILED.
 *
 * WHAT THE CORE LETS GO OF. Jobs that ended long ago and answers given long ago stay
 * in the store but leave the core's memory (core_opts). They are asked for rarely, so
 * that the shell reads them back then: before a request about a job that
 * core_forgotten(), and before a change that core_recall_due(), it reads the rows and
 * says EV_RECALL, provided that core_forgets() has not changed since it began to read.
 *
 * LAUNCHER'S WORDS about a gang. ALIVE: its lock is held, or a process of it is
 * left. ABSENT: it was never started here (no lock file), so starting it now is
 * its first start, and the launcher has seen to it that
 * a start still under way comes to nothing (it renamed the folder).
 * EXITED: no process is left but an exit record is. LOST: no
 * process is left, and no (readable) exit record. ABSENT, EXITED and LOST are
 * proof, never silence: a supervisor that died before its ranks is still ALIVE
 * until the launcher has killed and seen the end of every rank. EXITED and LOST
 * are said once per start (FX_LAUNCH, with drain or without). */
#ifndef DAEMON_EVENT_H
#define DAEMON_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/job.h"
#include "proto/limit.h"

enum { EVENT_ID_BYTES = 16, EVENT_DIGEST_BYTES = 32, EVENT_BOOT_BYTES = 16 };

/* ---- events ------------------------------------------------------------ */

enum event_kind {
    /* a client's request that changes something: `req`, `client` */
    EV_SUBMIT = 1,
    EV_CANCEL,
    EV_RESUME,
    EV_HOLD,
    EV_RELEASE,
    EV_DRAIN, /* an operator takes a device out, or puts it back: `drain` */

    /* a supervisor's message: `worker`, `client` */
    EV_HELLO,
    EV_REPORT,
    EV_EXIT_RECORD, /* the exit record over the wire; answered when committed        */
    EV_POLL,        /* held request for directives                                   */
    EV_RDV_PUT,
    EV_RDV_GET, /* held                                                              */

    /* the launcher's: `gang` */
    EV_GANG_ALIVE,    /* at start only                                               */
    EV_GANG_ABSENT,   /* at start only                                               */
    EV_GANG_EXITED,   /* at any time; gang.exit is valid                             */
    EV_GANG_LOST,     /* at any time                                                 */
    EV_LAUNCH_FAILED, /* answer to FX_LAUNCH: nothing was started, for certain       */

    /* the machine's */
    EV_DEVICE,     /* `device`: all that is true of it now                           */
    EV_FAULT,      /* `fault`: its hardware failed                                   */
    EV_RECONCILED, /* all devices and gangs have been told                           */
    EV_STORE_FULL, /* a commit failed for want of space                              */
    EV_STORE_OK,   /* ... and has now gone through                                   */
    EV_TICK,       /* about once a second: `tick`                                    */
    EV_RECALL,     /* what the core has let go of, read from the store: `recall`     */
    EV_SHUTDOWN,   /* alignd will exit when this batch is durable; gangs stay. With a
                    * client: `req` too, an operator's                               */
    EVENT_KINDS,
};

/* Who asks for a change, and the id that makes it safe to ask again: the same
 * (uid, id) with the same digest gets the same answer, for as long as the job is
 * stored and at least 7 days; with another digest it is refused. `digest` is over
 * everything that the request says but its id. */
struct event_request {
    uint32_t uid;
    bool is_operator; /* may act on anybody's jobs                                   */
    uint8_t id[EVENT_ID_BYTES];
    uint8_t digest[EVENT_DIGEST_BYTES];
};

struct event_submit {
    const char *name, *method; /* <= LIMIT_NAME                                      */
    const char *output_dir;    /* absolute; {name} and {id} are filled in by the core */
    uint32_t devices;          /* 1 .. LIMIT_RANKS                                   */
    uint8_t type;              /* enum job_type; 0: gpu if there are any, else cpu   */
    int64_t priority, limit_s, steps;
    bool held;
    /* Not looked at; copied into FX_SUBMITTED. */
    const void *user_spec, *resolved_spec;
    size_t user_bytes, resolved_bytes;
    const char *no_gpus; /* for people: why there are none, or fewer; or NULL        */
};

struct event_resume {
    uint64_t job;
    int64_t steps; /* of the new spec; 0: as before                                  */
    /* A new spec for the coming attempts, or NULL. Copied into FX_RESPEC. */
    const void *user_spec, *resolved_spec;
    size_t user_bytes, resolved_bytes;
};

/* The attempt a worker message speaks for. The token is not the core's business:
 * the shell compares it (in constant time) with the one that belongs to (job,
 * attempt). It must be the same at every launch of one attempt, so derive it:
 * HMAC-SHA256(key made with the store, job, attempt). */
struct event_worker {
    uint64_t job;
    uint32_t attempt;
    bool token_ok;
};

struct event_row { /* one report */
    uint8_t kind;  /* enum job_report                                                 */
    int64_t step, wall_ms;
    double loss;      /* what the queue shows; NAN: none                                  */
    const void *vals; /* not looked at                                               */
    size_t bytes;
};

/* Rows first_n .. first_n + n - 1 of attempt `rows_attempt`, and where the gang
 * is. n may be 0 (a beat). rows_attempt is worker.attempt, or an older attempt of
 * the job whose supervisor died before all was sent: a new supervisor first asks
 * (n = 0) what is expected of each older attempt and sends the rest from its
 * spool, so that no metric is missing. The answer's `expect_n` is the number
 * wanted next, whatever the code. */
struct event_report {
    uint32_t rows_attempt;
    uint64_t first_n;
    uint32_t n; /* <= LIMIT_REPORT_BATCH                                             */
    const struct event_row *rows;
    uint8_t phase; /* enum job_phase                                                 */
    int64_t step, steps;
};

struct event_exit { /* exit.json, checked for form; hostile in content */
    int32_t code, signal, first_rank;
    int64_t step, peak_rss_kb;
    const char *error, *adapter; /* or NULL                                          */
};

struct event_gang {
    uint64_t job;
    uint32_t attempt;
    const char *const *devices; /* ALIVE: names, for gangs the store does not know   */
    uint32_t n_devices;
    struct event_exit exit; /* EXITED                                                */
    const char *error;      /* LAUNCH_FAILED, LOST: a sentence, or NULL              */
    bool taken;             /* LAUNCH_FAILED: a device is another program's now      */
};

/* A GPU that was foreign counts as foreign until it has been clean for CORE_CLEAN_S. */
struct event_device {
    const char *name;           /* "cpu:0", "GPU-8f3a..." (NVML's UUID); < 64 bytes        */
    uint8_t type;               /* enum job_type                                            */
    bool gone, foreign, fenced; /* fenced: a process on it cannot be killed                 */
    uint16_t order;             /* GPUs: neighbours on the bus have neighbouring numbers     */
    bool unfit;                 /* it cannot be used now: its driver does not answer, MIG   */
    const char *note;           /* foreign, unfit: why, for people; or NULL                 */
};

/* The device stays fenced until the machine is started again or an operator undrains
 * it; a gang on it is killed and its job queued anew. */
struct event_fault {
    const char *name;
    uint8_t type;
    uint32_t code; /* daemon/fault.h, > 0                                                 */
};

/* An ended job with its attempts by number, and the answer to a request; each may be
 * NULL. What the core knows already, or what cannot be, is ignored. */
struct event_recall {
    const struct job *job;
    const struct attempt *attempts;
    uint32_t n_attempts;
    const struct fx_request *request;
};

struct event {
    enum event_kind kind;
    uint64_t client; /* the shell's handle of the request to answer; 0: nobody       */
    struct event_request req;
    struct event_worker worker;
    union {
        struct event_submit submit;
        struct {
            uint64_t job;
            bool now;
        } cancel;
        struct event_resume resume;
        struct {
            uint64_t job;
        } hold; /* and release */
        struct {
            const char *device;
            bool on;
        } drain;
        struct {
            const char *build; /* the worker's build id                              */
        } hello;
        struct event_report report;
        struct event_exit exit_record;
        struct {
            unsigned seen; /* directive bits already taken           */
        } poll;
        struct {
            const char *key; /* <= 255 bytes                                         */
            const void *value;
            size_t bytes; /* <= LIMIT_RDV_BYTES; put only                            */
        } rdv;
        struct event_gang gang;
        struct event_device device;
        struct event_fault fault;
        struct event_recall recall;
        struct {
            int64_t durable_s; /* what was decided before this core_age() is durable */
        } tick;
    };
};

/* Directives: bits that only grow within an attempt, so their value serves as the
 * serial of the newest order. As MSG_ORDER_*. */
enum { EVENT_CHECKPOINT = 1, EVENT_STOP = 2, EVENT_KILL = 4 };

/* ---- effects ----------------------------------------------------------- */

enum effect_kind {
    /* ROWS, for the store, in order, in one transaction */
    FX_SUBMITTED = 1, /* insert `job` with its strings, and the texts in `spec`      */
    FX_RESPEC,        /* `spec`: from attempt spec.from_attempt on this spec holds   */
    FX_JOB,           /* update `job`; queue watchers: its newest state, by rev      */
    FX_ATTEMPT,       /* insert or replace `attempt` (NULL strings stay as they were) */
    FX_GANG,          /* insert `gang`: attempt, devices, boot id, start             */
    FX_GANG_GONE,     /* delete it                                                   */
    FX_DEVICE,        /* insert or replace `device`                                  */
    FX_REPORTED,      /* `reported`: update that attempt's last_report and resume_step         */
    FX_REPORT,        /* insert `report`; metric watchers: a row                     */
    FX_REWIND,        /* `rewind`: rows of older attempts with a greater step become
                       * superseded; metric watchers: a rewind row at rewind.seq     */
    FX_RDV_PUT,       /* insert `rdv`; answer the FX_HOLDs on that key with it       */
    FX_RDV_CLEAR,     /* delete all of (rdv.job, rdv.attempt): a step is done, all have met */
    FX_REQUEST,       /* insert `request`                                            */
    FX_REQUEST_DROP,  /* delete (request.uid, request.id)                            */
    FX_META,          /* replace the one row of high-water marks                     */
    FX_ROWS_END,

    /* ACTIONS, for the shell, in order, when the batch is durable */
    FX_LAUNCH, /* `launch`: start a gang; idempotent by name                         */
    FX_STOP,   /* `gang_ref`: answer its held poll with EVENT_STOP, or SIGTERM to its
                * supervisor if none is held for 5 s. Repeated after a restart.      */
    FX_KILL,   /* `gang_ref`: SIGKILL to supervisor and ranks, then tell LOST/EXITED */
    FX_REPLY,  /* `reply`                                                            */
    FX_HOLD,   /* `hold`: keep the request for at most LIMIT_HOLD_MS, then answer
                * EVENT_NOTHING; always `now`                                        */
    EFFECT_KINDS,
};

/* Answers. Numbers travel: append only. */
enum event_code {
    EVENT_OK = 0,
    EVENT_NOTHING = 1,      /* held, nothing new                                      */
    EVENT_GAP = 2,          /* report: expect_n is wanted next                        */
    EVENT_INVALID = 10,     /* the request makes no sense; asking again will not help */
    EVENT_NOT_FOUND = 11,   /* no such job, device, value                             */
    EVENT_NOT_ALLOWED = 12, /* not your job                                          */
    EVENT_CONFLICT = 13,    /* id or key used before for something else               */
    EVENT_IN_USE = 14,      /* output_dir belongs to an unfinished job                */
    EVENT_BAD_STATE = 15,   /* not in this state of the job                           */
    EVENT_TOO_MANY = 16,    /* a limit of the daemon                                  */
    EVENT_RETRY = 20,       /* not now (no disk space); ask again with the same id    */
    EVENT_STOPPING = 21,    /* alignd is shutting down; ask again with the same id    */
    EVENT_FENCED = 30,      /* this attempt is over, or the token is wrong: exit      */
};

struct fx_spec {
    uint64_t job;
    uint32_t from_attempt;
    const void *user, *resolved;
    size_t user_bytes, resolved_bytes;
    bool overwrite; /* the shell's to set in FX_SUBMITTED: output_dir may hold a run */
};

struct fx_gang {
    uint64_t job;
    uint32_t attempt;
    const char *const *devices;
    uint32_t n_devices;
    uint8_t boot_id[EVENT_BOOT_BYTES];
    int64_t started_ns; /* CLOCK_BOOTTIME of that boot                               */
};

struct fx_device {
    const char *name;
    uint8_t type;
    bool drained, fenced;
    uint32_t fault;                    /* code of its fault, 0: none                       */
    uint8_t boot_id[EVENT_BOOT_BYTES]; /* of fence and fault: a reboot lifts them          */
};

struct fx_report {
    uint64_t job, seq;
    uint32_t attempt;
    uint64_t n;
    uint8_t kind;
    bool superseded; /* sent late: a newer attempt has already gone back before it   */
    int64_t step, wall_ms;
    const void *vals;
    size_t bytes;
};

struct fx_reported {
    uint64_t job;
    uint32_t attempt; /* maybe an older one than the newest                          */
    uint64_t last_report;
    int64_t resume_step;
};

struct fx_rewind {
    uint64_t job, seq;
    uint32_t attempt; /* rows of attempts < this                                     */
    int64_t step;     /* with step > this                                            */
};

struct fx_rdv {
    uint64_t job;
    uint32_t attempt;
    const char *key;
    const void *value;
    size_t bytes;
};

struct fx_request {
    uint32_t uid;
    uint8_t id[EVENT_ID_BYTES];
    uint8_t digest[EVENT_DIGEST_BYTES];
    int32_t code;
    uint64_t job;
    int64_t age_s;    /* meta.age_s when it was answered                             */
    const char *text; /* of a refusal, or NULL                                       */
};

struct fx_meta {
    uint64_t next_job; /* the next id to give                                        */
    uint64_t rev;      /* the newest given                                           */
    int64_t age_s;     /* seconds this store has been served, over all starts        */
};

struct fx_launch {
    uint64_t job;
    uint32_t attempt;
    uint32_t uid;
    uint8_t type;
    const char *output_dir;
    const char *const *devices;
    uint32_t n_devices;
    bool drain; /* its exit record is on the disk but not all its reports were sent:
                 * start the supervisor to send them and the record; no ranks. If
                 * that cannot be done, say EV_GANG_EXITED again.                    */
};

struct fx_gang_ref {
    uint64_t job;
    uint32_t attempt;
};

struct fx_reply {
    uint64_t client;
    enum event_code code;
    uint64_t job;
    uint32_t attempt;
    uint64_t expect_n;   /* HELLO, REPORT: next n wanted of (rows_)attempt           */
    unsigned directives; /* HELLO, REPORT, POLL                                      */
    const void *value;   /* RDV_GET                                                  */
    size_t bytes;
    const char *text; /* a sentence for people, or NULL                              */
};

struct fx_hold {
    uint64_t client;
    uint64_t job;
    uint32_t attempt;
    const char *key; /* RDV_GET; NULL: POLL                                          */
};

struct effect {
    enum effect_kind kind;
    bool now; /* see above */
    union {
        struct {
            struct job job;
            struct fx_spec spec; /* SUBMITTED, RESPEC                                */
        };
        struct attempt attempt;
        struct fx_gang gang;
        struct fx_device device;
        struct fx_report report;
        struct fx_reported reported;
        struct fx_rewind rewind;
        struct fx_rdv rdv;
        struct fx_request request;
        struct fx_meta meta;
        struct fx_launch launch;
        struct fx_gang_ref gang_ref; /* STOP, KILL, GANG_GONE                        */
        struct fx_reply reply;
        struct fx_hold hold;
    };
};

/* A batch. Zeroed = empty. */
struct effects {
    struct effect *v;
    size_t n, cap;
    size_t rows; /* of v, how many are rows                                    */
    struct fx_block *blocks;
    bool failed; /* memory ran out: exit, do not commit                        */
};

/* Appends and returns room for one effect, zeroed but for its kind; never NULL:
 * when memory runs out `failed` is set and a dummy is returned. */
struct effect *event_add(struct effects *fx, enum effect_kind kind);
/* Copies that live as long as fx; NULL stays NULL. When memory runs out: NULL and
 * `failed`. */
void *event_copy(struct effects *fx, const void *bytes, size_t n);
const char *event_text(struct effects *fx, const char *s);
const char *event_format(struct effects *fx, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

bool event_is_row(enum effect_kind kind);
void event_effects_fini(struct effects *fx); /* frees and zeroes; NULL is a no-op */

const char *event_kind_name(enum event_kind k);
const char *event_fx_name(enum effect_kind k);

#endif
