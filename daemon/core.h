/* core.h - the scheduler's decisions, and nothing else.
 *
 * Deterministic and without I/O: no clock, no randomness, no pointers into the
 * outside. The same events give the same effects, which is what tests/sim relies
 * on. One thread (the loop's) owns it. What may happen is in event.h. */
#ifndef DAEMON_CORE_H
#define DAEMON_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/event.h"
#include "proto/err.h"

enum {
    CORE_JOBS_MAX = 100000,      /* unfinished jobs                                     */
    CORE_DEVICES_MAX = 1024,     /* devices ever seen since the start                   */
    CORE_LOST_MAX = 1,           /* a gang lost this often is requeued by itself        */
    CORE_LAUNCH_TRIES = 3,       /* failed launches in a row, then FAILED               */
    CORE_RDV_KEYS = 16384,       /* rendezvous values of one attempt                    */
    CORE_RDV_BYTES = 64 << 20,   /* ... and their bytes                                 */
    CORE_STOP_S = 600,           /* from "stop" to a kill                               */
    CORE_KILL_S = 20,            /* from a kill to the next                             */
    CORE_FAULT_S = 3,            /* a failed gang on GPUs waits so long for NVML's word */
    CORE_CLEAN_S = 60,           /* a GPU that was foreign is nobody's for so long      */
    CORE_BACKOFF_S = 60,         /* longest wait before a requeued job is tried again   */
    CORE_REQUEST_DAYS = 7,       /* answers stay in memory so long                      */
    CORE_ENDED_DAYS = 7,         /* ended jobs too, unless core_opts says otherwise     */
    CORE_SWEEP_S = 600,          /* between looks for what may go                       */
    CORE_REQUESTS_MAX = 1 << 20, /* remembered; then EVENT_RETRY                      */
};

struct core;

struct core_opts {
    uint8_t boot_id[EVENT_BOOT_BYTES];
    int64_t boottime_ns; /* now */
    /* Seconds of core_age() that an ended job and an answer stay in memory, and between
     * looks for what may go; 0: CORE_*. */
    int64_t ended_keep_s, request_keep_s, sweep_s;
};

/* Returns 0 or -ENOMEM. */
int core_new(const struct core_opts *opts, struct core **ret);
void core_free(struct core *c); /* NULL is a no-op */

/* Takes over what was stored, before the first step, in this order: meta, devices,
 * jobs by ascending id, attempts by (job, attempt), gangs, requests, rdv. Ended jobs
 * with ended_s <= core_ended_before() and their attempts, and requests with age_s <=
 * core_request_before(), may stay in the store. Rows are
 * checked: -EINVAL with a sentence for one that cannot be (the daemon then refuses
 * to start); a row whose partner is missing is mended at EV_RECONCILED. -ENOMEM. */
int core_restore_meta(struct core *c, const struct fx_meta *row, struct err *err);
int core_restore_device(struct core *c, const struct fx_device *row, struct err *err);
int core_restore_job(struct core *c, const struct job *row, struct err *err);
int core_restore_attempt(struct core *c, const struct attempt *row, struct err *err);
int core_restore_gang(struct core *c, const struct fx_gang *row, struct err *err);
int core_restore_request(struct core *c, const struct fx_request *row, struct err *err);
int core_restore_rdv(struct core *c, const struct fx_rdv *row, struct err *err);

/* Applies one event. boottime_ns: CLOCK_BOOTTIME, decides; a smaller value than
 * before counts as "no time has passed". wall_ms: a label, may go back.
 * Returns 0; -ENOMEM: give up this process without committing fx. */
int core_step(struct core *c, int64_t boottime_ns, int64_t wall_ms, const struct event *ev,
              struct effects *fx);

/* Seconds this store has been served, over all starts: the clock of what is kept. */
int64_t core_age(const struct core *c);
int64_t core_ended_before(const struct core *c);
int64_t core_request_before(const struct core *c);

/* ---- what only the store knows (event.h) -------------------------------- */

/* The job was given this id and has left the memory. */
bool core_forgotten(const struct core *c, uint64_t job);
bool core_any_forgotten(const struct core *c); /* some job has                        */
/* A change that cannot be decided without a look into the store: *ret_job is the job to
 * look for (0: none), *ret_request: the request itself too. */
bool core_recall_due(const struct core *c, const struct event *ev, uint64_t *ret_job,
                     bool *ret_request);
/* Grows whenever something leaves the memory. */
uint64_t core_forgets(const struct core *c);

/* ---- what views read; valid until the next core_step ------------------- */

size_t core_n_jobs(const struct core *c); /* in memory                                */
const struct job *core_job_at(const struct core *c, size_t i); /* by ascending id     */
const struct job *core_job(const struct core *c, uint64_t id); /* or NULL             */
/* Jobs from the highest rev downwards: core_newest, then core_older until NULL. A
 * watcher of the queue walks until rev <= its `since`. */
const struct job *core_newest(const struct core *c);
const struct job *core_older(const struct core *c, const struct job *j);
uint64_t core_rev(const struct core *c);
bool core_stopping(const struct core *c); /* EV_SHUTDOWN was taken: exit after this batch */

/* Why a PENDING job waits, or an ended one ended. text (may be NULL): a phrase that
 * names what is missing, "2 of 4 cpu devices are free". */
enum job_reason core_reason(const struct core *c, const struct job *j, char *text, size_t size);

/* The newest n that is committed or about to be of an attempt; 0: none. */
uint64_t core_last_report(const struct core *c, uint64_t job, uint32_t attempt);

struct core_gang { /* a gang that holds devices */
    uint64_t job;
    uint32_t attempt;
    bool hello; /* its supervisor has spoken to this daemon                            */
    unsigned directives;
    uint32_t n_devices;
    const char *devices[LIMIT_RANKS];
};
size_t core_n_gangs(const struct core *c);
void core_gang_at(const struct core *c, size_t i, struct core_gang *ret);
bool core_gang(const struct core *c, uint64_t job, uint32_t attempt, struct core_gang *ret);

enum core_device_state {
    CORE_DEVICE_FREE,
    CORE_DEVICE_USED,
    CORE_DEVICE_FOREIGN,
    CORE_DEVICE_FENCED,
    CORE_DEVICE_DRAINED,
    CORE_DEVICE_GONE,
};
struct core_device {
    const char *name;
    uint8_t type;
    enum core_device_state state;
    uint16_t order;   /* as event_device.order                                           */
    uint64_t job;     /* that holds it; 0: none                                          */
    bool drained;     /* USED: is given out no more once that job is over                */
    char reason[256]; /* for people: why it is as it is; or ""                           */
};
size_t core_n_devices(const struct core *c);
void core_device_at(const struct core *c, size_t i, struct core_device *ret);
const char *core_device_state_name(enum core_device_state s); /* "FREE", ... */
/* Devices of a type that are not gone, whether or not they are free. */
uint32_t core_n_devices_of(const struct core *c, enum job_type type);

#endif
