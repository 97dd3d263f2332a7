/* job.h - one training job, the states it may be in, and the rows it leaves.
 *
 *             submit          placed              training            stop asked, or done
 *   (none) ----------> PENDING ----> CONFIGURING ---------> RUNNING ----------------> COMPLETING
 *                       ^ ^ |            |                     |                          |
 *     resume, requeue   | | | cancel     +---------------------+--------------------------+
 *   +-------------------+ | v                                  | the gang is gone, for certain
 *   |                     | CANCELLED                          v
 *   +-- CANCELLED FAILED TIMEOUT OUT_OF_MEMORY NODE_FAIL COMPLETED      PREEMPTED --> PENDING
 *
 * The table in job.c is the authority; the picture is for orientation. A job
 * has a gang (and so devices) in CONFIGURING, RUNNING and COMPLETING, and in no
 * other state. A hold is a flag, not a state. States and reasons print in
 * Slurm's words; reasons that Slurm lacks are ours (Devices...). */
#ifndef DAEMON_JOB_H
#define DAEMON_JOB_H

#include <stdbool.h>
#include <stdint.h>

/* Numbers are stored and travel: append only. */
enum job_state {
    JOB_PENDING = 1,
    JOB_CONFIGURING, /* placed; its gang is being started, loads, meets             */
    JOB_RUNNING,     /* rank 0 has said that training began                         */
    JOB_COMPLETING,  /* told to stop, or result published; the gang is still there  */
    JOB_COMPLETED,
    JOB_FAILED,
    JOB_CANCELLED,
    JOB_TIMEOUT,
    JOB_PREEMPTED, /* an attempt's end; the job itself goes on to PENDING           */
    JOB_OUT_OF_MEMORY,
    JOB_NODE_FAIL,
    JOB_STATES, /* one more than the last */
};

/* Why a job waits (PENDING) or why it ended. Stored and travel: append only. */
enum job_reason {
    JOB_REASON_NONE,
    JOB_REASON_PRIORITY,        /* others of its device type are before it            */
    JOB_REASON_RESOURCES,       /* first of its type; devices are in use              */
    JOB_REASON_HELD,            /* JobHeldUser                                        */
    JOB_REASON_BEGIN_TIME,      /* requeued a moment ago; waits before the next try   */
    JOB_REASON_DEVICES_FOREIGN, /* someone else's processes are on the devices        */
    JOB_REASON_DEVICES_FENCED,  /* a process there cannot be killed                   */
    JOB_REASON_DEVICES_DRAINED, /* an operator took them out                          */
    JOB_REASON_DEVICES_MISSING, /* fewer exist now than it wants                      */
    JOB_REASON_RECONCILING,     /* alignd has just started and looks what still runs  */
    JOB_REASON_STORE_FULL,      /* no disk space: nothing is started                  */
    JOB_REASON_STOPPING,        /* alignd is shutting down                            */
    JOB_REASON_LAUNCH_FAILURE,  /* JobLaunchFailure                                   */
    JOB_REASON_NON_ZERO_EXIT,   /* NonZeroExitCode                                    */
    JOB_REASON_RAISED_SIGNAL,   /* a rank died of a signal                            */
    JOB_REASON_TIME_LIMIT,      /* TimeLimit                                          */
    JOB_REASON_OUT_OF_MEMORY,   /* OutOfMemory                                        */
    JOB_REASON_GANG_LOST,       /* gone without an exit record: NodeDown              */
    JOB_REASON_PEER_VANISHED,   /* every rank blames another (service.md 17)          */
    JOB_REASONS,
};

enum job_type { JOB_CPU = 1, JOB_GPU = 2, JOB_TYPES = 3 }; /* of devices */

/* What was asked of a job that has a gang. Stored: append only. Later = stronger. */
enum job_want {
    JOB_WANT_RUN,
    JOB_WANT_TIMEOUT,    /* stop, then TIMEOUT                                       */
    JOB_WANT_CANCEL,     /* stop at the next step boundary, then CANCELLED           */
    JOB_WANT_CANCEL_NOW, /* kill, then CANCELLED                                     */
    JOB_WANTS,
};

/* As worker/link.h has them. Stored: append only. */
enum job_phase {
    JOB_PHASE_LOADING,
    JOB_PHASE_TRAINING,
    JOB_PHASE_EVALUATING,
    JOB_PHASE_SAVING,
    JOB_PHASE_DONE, /* the result is published; only the exit remains */
    JOB_PHASES,
};

/* As worker/spool.h has them. Stored: append only. */
enum job_report {
    JOB_REPORT_START, /* n == 1; step = the step resumed from                        */
    JOB_REPORT_TRAIN,
    JOB_REPORT_EVAL,
    JOB_REPORT_SUMMARY,
    JOB_REPORTS,
};

enum { /* exit codes of a gang: worker/run.h */
       JOB_EXIT_DONE = 0,
       JOB_EXIT_PEER = 75,
       JOB_EXIT_STOPPED = 85,
       JOB_EXIT_OOM = 86,
};

/* A job's row, as it is stored and shown. Strings belong to the core, never
 * change (but `error`, which is copied into each effect) and live as long as it. */
struct job {
    uint64_t id;    /* > 0; from a high-water mark, never reused                       */
    uint64_t rev;   /* grows with every change of any row of this table                */
    uint64_t order; /* the rev at which it was queued: first come, first served        */
    uint64_t seq;   /* newest seq given to one of its report rows                      */
    uint32_t uid;
    uint32_t attempt; /* newest; 0: never started                                      */
    uint16_t devices; /* wanted                                                        */
    uint8_t type;     /* enum job_type                                                 */
    uint8_t state;    /* enum job_state; written by job_move() only                    */
    uint8_t reason;   /* enum job_reason of an ended job; for PENDING ask core_reason() */
    uint8_t want;     /* enum job_want                                                 */
    uint8_t lost;     /* gangs gone without a record since the last submit or resume   */
    uint8_t launch_failures;
    bool held;
    bool published;   /* its result lies in output_dir                                */
    uint8_t phase;    /* enum job_phase of the newest attempt                         */
    int64_t priority; /* higher first                                                 */
    int64_t limit_s;  /* seconds from placement, per attempt; 0: none                 */
    int64_t steps;    /* optimizer steps in all; 0: not known yet                     */
    int64_t step;     /* last reported by the newest attempt                          */
    double loss;      /* last reported; NAN: none                                     */
    int64_t submitted_ms, started_ms, ended_ms; /* wall clock: labels, 0: not yet      */
    int64_t ended_s; /* fx_meta.age_s when it ended; -1: it has not                    */
    int32_t exit_code, exit_signal, first_rank; /* of the newest attempt that ended    */
    const char *name, *method, *output_dir;
    const char *error;   /* the sentence of the newest attempt's failure, or NULL      */
    const char *adapter; /* path that the newest attempt left, or NULL                 */
};

/* An attempt's row: one start of a job. */
struct attempt {
    uint64_t job;
    uint32_t attempt; /* counts from 1                                                 */
    uint8_t state;    /* CONFIGURING, RUNNING, COMPLETING, or how it ended             */
    uint8_t phase;
    bool published;
    bool exit_known;      /* it ended with an exit record                              */
    uint64_t last_report; /* highest n committed; rows 1..n are all there              */
    int64_t resume_step;  /* of its START row; -1: not seen yet                        */
    int64_t step;
    int64_t started_ms, ended_ms;
    int32_t exit_code, exit_signal, first_rank;
    int64_t peak_rss_kb;
    const char *build;   /* the worker's build id; NULL: as it was                     */
    const char *error;   /* NULL: as it was                                            */
    const char *adapter; /* NULL: as it was                                            */
};

const char *job_state_name(enum job_state s);   /* "PENDING"; "?" out of range         */
const char *job_state_short(enum job_state s);  /* squeue's ST: "PD"                   */
const char *job_reason_name(enum job_reason r); /* "Priority", "JobHeldUser", ...      */
const char *job_phase_name(enum job_phase p);   /* "loading", ...                      */
bool job_state_valid(int s);
bool job_may_move(enum job_state from, enum job_state to);
bool job_has_gang(enum job_state s);
bool job_is_over(enum job_state s); /* only resume leads on from here */

/* Moves the job. A move that job_may_move() denies changes nothing and returns
 * false: the core's own fault, which its callers assert against in tests and
 * survive in service. */
bool job_move(struct job *j, enum job_state to);

#endif
