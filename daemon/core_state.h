/* core_state.h - what struct core consists of; for the core_*.c files only. */
#ifndef DAEMON_CORE_STATE_H
#define DAEMON_CORE_STATE_H

#include "daemon/core.h"
#include "daemon/place.h"
#include "daemon/queue.h"
#include "daemon/request.h"

struct core_past { /* what stays known of each attempt of a job */
    uint64_t last_report;
    int64_t resume_step; /* -1: no START row yet                                      */
    bool exit_known;
};

struct core_node {  /* a job */
    struct job job; /* first: views cast back                                         */
    struct core_node *newer, *older; /* by rev                                        */
    struct core_node *dir_next;      /* in core.owners; unfinished jobs only          */
    struct core_live *live;          /* in CONFIGURING, RUNNING, COMPLETING           */
    struct core_past *past;          /* [job.attempt]                                 */
    uint32_t past_cap;
    uint32_t tries;        /* requeues in a row without progress                      */
    int64_t not_before_ns; /* > 0: in core.waiting, not in a queue                    */
    int64_t placed_step;   /* job.step when its gang was placed                       */
    int64_t recalled_s;    /* age when it came back from the store; 0: never left     */
    bool dirty;            /* in core.dirty: its row is due at the end of the step    */
    char *error, *adapter; /* what job.error and job.adapter point to                 */
    char text[];           /* name, method, output_dir                                */
};

struct core_value { /* a rendezvous value */
    struct core_value *next;
    size_t bytes;
    const char *key; /* behind the value */
    unsigned char value[];
};

struct core_live {          /* a gang that holds devices: of a job, or a stray that nobody knows */
    struct attempt row;     /* strings unused                                         */
    struct core_node *node; /* NULL: a stray                                          */
    uint16_t device[LIMIT_RANKS];
    uint32_t n_devices;
    uint8_t boot_id[EVENT_BOOT_BYTES];
    int64_t started_ns;
    int64_t stop_ns, kill_ns; /* when it was last told; 0: not since the start        */
    bool told;                /* the launcher has spoken about it                     */
    bool hello;
    bool draining;          /* FX_LAUNCH with drain was given                        */
    bool faulted;           /* a device of its failed, so it was killed              */
    int64_t ended_ns;       /* > 0: its record is here, and waits for a word of NVML */
    struct event_exit exit; /* draining: the record that was found; strings are ours */
    struct core_value *values;
    size_t n_values, value_bytes;
};

struct core_nodes { /* a growing list */
    struct core_node **v;
    size_t n, cap;
};

struct core {
    struct core_nodes jobs; /* by ascending id                                        */
    struct core_nodes dirty;
    struct core_nodes waiting; /* for not_before_ns; no order                         */
    struct core_node *newest, *oldest;
    struct core_node **owners; /* output_dir -> unfinished job, chained by dir_next   */
    size_t n_owners, owners_cap;
    size_t unfinished;
    struct queue queue[JOB_TYPES];
    uint64_t blocked[JOB_TYPES]; /* the job that waits for devices in use, or 0       */
    struct place_device *device; /* fixed address: names are handed out               */
    size_t n_devices;
    struct core_live **live;
    size_t n_live, live_cap;
    struct request_table requests;
    struct fx_meta meta, meta_written;
    int64_t age_base_ns, swept_s;
    int64_t ended_keep_s, request_keep_s, sweep_s;
    uint64_t forgets;
    uint8_t boot_id[EVENT_BOOT_BYTES];
    int64_t now_ns, wall_ms;
    bool reconciled, store_full, stopping;
    bool failed; /* memory ran out                                                    */
};

/* core.c */
struct core_node *core_find(const struct core *c, uint64_t id);
int core_append(struct core *c, struct core_nodes *l, struct core_node *n);
void core_touch(struct core *c, struct core_node *n);
void core_newest_is(struct core *c, struct core_node *n);
struct core_node *core_owner(const struct core *c, const char *output_dir);
void core_claim(struct core *c, struct core_node *n);   /* its output_dir, and a place */
void core_unclaim(struct core *c, struct core_node *n); /* among the unfinished        */
void core_enqueue(struct core *c, struct core_node *n); /* a PENDING job, unless held  */
void core_dequeue(struct core *c, struct core_node *n);
struct core_node *core_node_new(struct core *c, const struct job *row);
void core_node_free(struct core_node *n);
void core_unlink(struct core *c, struct core_node *n); /* from the newest             */
struct core_past *core_past(const struct core_node *n, uint32_t attempt); /* NULL: none */
int core_past_grow(struct core_node *n);
void core_set_text(struct core *c, char **slot, const char *s);

/* core_device.c */
struct place_device *core_device(struct core *c, const char *name, uint8_t type, bool add);
struct place_device *core_device_like(struct core *c, const char *text); /* or its beginning */
void core_write_device(const struct core *c, const struct place_device *d, struct effects *fx);
uint8_t core_device_type(const char *name); /* by its prefix */
void core_fill_gang(const struct core *c, struct effects *fx, const struct core_live *l,
                    const char *const **ret);
void core_device_event(struct core *c, const struct event_device *ev, struct effects *fx);
void core_device_fault(struct core *c, const struct event_fault *ev, struct effects *fx);
void core_device_changed(struct core *c); /* reasons of waiting jobs may have        */
void core_device_tick(struct core *c);
void core_device_wait(const struct core *c, int type, enum job_reason r, char *text,
                      size_t size); /* names the devices that a job waits for  */

/* core_live.c */
struct core_live *core_gang_new(struct core *c, struct core_node *n);
void core_gang_free(struct core *c, struct core_live *l, struct effects *fx); /* fx or NULL */
struct core_live *core_gang_find(const struct core *c, uint64_t job, uint32_t attempt);
void core_gang_forget(struct core_live *l); /* the rendezvous values */
int core_gang_put(struct core_live *l, const struct fx_rdv *row);

/* core_gang.c */
void core_gang_start(struct core *c, struct core_node *n, const uint16_t *device,
                     struct effects *fx);
void core_gang_want(struct core *c, struct core_node *n, enum job_want want, struct effects *fx);
unsigned core_gang_directives(const struct core_live *l);
void core_gang_error(struct core *c, struct core_node *n, const char *text);
void core_gang_tick(struct core *c, struct effects *fx);
void core_gang_reconciled(struct core *c, struct effects *fx);
void core_gang_exited(struct core *c, struct core_live *l, const struct event_exit *x,
                      struct effects *fx);
void core_gang_event(struct core *c, const struct event *ev, struct effects *fx);
void core_worker_event(struct core *c, const struct event *ev, struct effects *fx);

/* core_fault.c */
bool core_fault_of(const struct core *c, const struct core_live *l); /* a device of it failed */
void core_gang_fault(struct core *c, struct core_live *l, uint32_t rank, struct effects *fx);
void core_fault_adopt(struct core *c, struct core_live *l, struct effects *fx);
void core_fault_stuck(struct core *c, struct core_live *l, struct effects *fx);
/* A process of it is known to outlive SIGKILL. text may be NULL. */
bool core_fault_why_stuck(const struct core *c, const struct core_live *l, char *text, size_t size);
bool core_fault_awaited(struct core *c, struct core_live *l, const struct event_exit *x,
                        struct effects *fx);

/* core_client.c */
void core_client_event(struct core *c, const struct event *ev, struct effects *fx);

/* core_recall.c */
void core_recall_sweep(struct core *c, int64_t durable_s, struct effects *fx);
void core_recall_event(struct core *c, const struct event_recall *r);

/* core_restore.c */
const char *core_restore_bad_job(const struct core *c, const struct job *row);
const char *core_restore_bad_attempt(const struct attempt *row);

#endif
