/* world.h - a hostile world around one core: clients, supervisors, ranks, a
 * launcher, a store, clocks. One seed makes all of it. See test_core_sim.c. */
#ifndef TESTS_SIM_WORLD_H
#define TESTS_SIM_WORLD_H

#include "daemon/queue.h"
#include "tests/sim/disk.h"

enum {
    WORLD_CLIENTS = 160,
    WORLD_GANGS = 400,
    WORLD_MAILS = 1400,
    WORLD_BATCHES = 6,
    WORLD_CPUS = 4,
    WORLD_GPUS = 2,
    WORLD_DEVICES = WORLD_CPUS + WORLD_GPUS,
    WORLD_SPOOL = 40,
};

struct world_spool {
    uint8_t kind;
    int64_t step;
};

/* One attempt of a job, as the machine knows it. */
struct world_gang {
    uint64_t job;
    uint32_t attempt;
    unsigned device[LIMIT_RANKS], n_devices;
    bool spawned;    /* the supervisor was spawned but has not locked yet              */
    bool lock;       /* it has, at some time                                           */
    bool sup, ranks; /* alive                                                          */
    bool drain;      /* this supervisor only sends what is left                        */
    bool deaf;       /* its ranks hang: they hear no stop                              */
    bool told;       /* FX_STOP or FX_KILL was carried out                             */
    bool stop, kill; /* the supervisor has heard                                       */
    bool hello, met, put, fenced;
    bool has_exit, ending; /* exit.json is there; or will be                           */
    bool launch_failed, rows_lost, judged, seen_over;
    struct event_exit exit;
    int64_t said_ns;    /* when its record first reached the daemon ...                */
    unsigned said_life; /* ... of this life; 0: it did not                             */
    uint8_t phase;
    int64_t start, step, steps;
    struct world_spool spool[WORLD_SPOOL];
    uint64_t n_spool, acked;
    uint32_t fill;        /* older attempt whose rest is being sent                    */
    uint64_t fill_expect; /* 0: not known                                              */
};

struct world_client {
    struct event ev;    /* as sent; strings static                                        */
    bool answered, odd; /* odd: shares its id with another request                     */
    int code;
    uint64_t job;
};

enum world_mail_kind {
    MAIL_CLIENT,
    MAIL_HELLO,
    MAIL_REPORT,
    MAIL_EXIT,
    MAIL_POLL,
    MAIL_PUT,
    MAIL_GET,
    MAIL_GANG_EXITED,
    MAIL_GANG_LOST,
    MAIL_LAUNCH_FAILED,
};

struct world_mail {
    enum world_mail_kind kind;
    unsigned who;  /* client or gang                                                   */
    unsigned life; /* of the daemon, for the launcher's mail                           */
    uint32_t rows_attempt;
    uint64_t first, n;
    uint8_t phase;
    int64_t step;
    bool bad_token;
};

struct world_job {     /* what is true of a job, whatever the daemon believes */
    int64_t saved;     /* step of its newest checkpoint                                */
    int64_t published; /* steps of the result that lies in output_dir, 0: none         */
    bool silent;       /* some attempt finished without a row                          */
    bool cancel, cancel_now;
};

struct world {
    uint64_t seed, rng;
    int64_t now_ns, wall_ms;
    int64_t newest_ns; /* the highest now_ns                                           */
    uint8_t boot;
    struct core *core; /* NULL: the daemon is down                                     */
    unsigned life, down;
    struct effects open, queue[WORLD_BATCHES];
    int64_t open_s, queue_s[WORLD_BATCHES]; /* core_age() when each was opened         */
    unsigned n_queue;
    int64_t ended_keep_s, request_keep_s, sweep_s; /* core_opts                        */
    int64_t metrics_keep_s;
    unsigned tidy_in;
    unsigned full; /* commits that will still fail for want of space                   */
    bool full_told;
    struct disk disk;
    struct world_gang gang[WORLD_GANGS];
    unsigned n_gangs;
    struct world_client client[WORLD_CLIENTS];
    unsigned n_clients, submits;
    struct world_mail mail[WORLD_MAILS];
    unsigned n_mails;
    struct {
        bool foreign, fenced, gone, unfit;
        bool fault;       /* at some time                                                */
        int64_t clean_ns; /* since when nobody else is on it                             */
        unsigned life;    /* of the daemon that saw that                                 */
    } device[WORLD_DEVICES];
    struct world_job job[DISK_JOBS + 1];
    bool quiet; /* no new faults: everything must come to an end                       */
    /* this world's fault rates: one in ... */
    unsigned crash_in, repeat_in, death_in, fail_in, launch_in, full_in, unknown_in, device_in,
        reboot_in, request_in;
    bool trace;
    unsigned long jobs_recalled, answers_recalled; /* over all worlds                  */
};

/* One world from its beginning to its end; fails the running test if a rule breaks. */
void world_run(struct world *w, uint64_t seed, bool trace);

/* gangs.c */
uint64_t world_rnd(struct world *w);
bool world_one_in(struct world *w, unsigned n); /* always false when quiet            */
void world_post(struct world *w, struct world_mail m);
const char *world_device(unsigned i);
bool world_device_fault(const struct world *w, const char *name); /* stored, of this boot */
struct world_gang *world_gang(struct world *w, uint64_t job, uint32_t attempt, bool make);
void world_launch(struct world *w, const struct fx_launch *l);
void world_tell(struct world *w, const struct fx_gang_ref *r, bool kill);
void world_gang_turn(struct world *w, struct world_gang *g);
void world_gang_reply(struct world *w, const struct fx_reply *r);
void world_gang_event(struct world *w, const struct world_mail *m, struct event *ev,
                      struct event_row *rows, int64_t *vals);
bool world_gang_alive(const struct world_gang *g);
void world_reboot(struct world *w);

#endif
