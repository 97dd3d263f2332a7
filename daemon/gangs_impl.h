/* gangs_impl.h - a gang as the loop sees it, shared by gangs.c (which there are, what is
 * asked of them) and gangs_op.c (the launcher's calls and what comes of them). */
#ifndef DAEMON_GANGS_IMPL_H
#define DAEMON_GANGS_IMPL_H

#include "daemon/alignd.h"

enum op { OP_NONE, OP_START, OP_LOOK, OP_STOP, OP_KILL, OP_FORGET };

struct start { /* copies of what a launch needs */
    char *output_dir;
    char *devices[LIMIT_RANKS];
    uint32_t n_devices;
    uint8_t type;
    bool drain;
    int64_t since_ns;
};

struct gang {
    struct gang *next;
    struct alignd *a;
    uint64_t job;
    uint32_t attempt;
    struct gangs_log logs[LIMIT_RANKS];
    struct gangs_memory memory;
    char devices[LIMIT_RANKS][64]; /* it may hold their locks */
    uint32_t n_devices;

    uv_work_t work;
    enum op op;                                       /* in the pool now       */
    bool want_start, want_look, want_stop, want_kill; /* as soon as it is back */
    bool launched; /* started by this process, or seen alive: an end is news   */
    bool gone;     /* the core has let go of it                                */
    bool stale;    /* started anew in the folder of one that was               */
    bool taken;    /* not started: a device is another program's               */
    int64_t gone_ns;
    bool polling, closing;
    uv_poll_t poll; /* the supervisor's pidfd */
    int pidfd;
    pid_t pid;
    pid_t session;    /* the supervisor's number, also when it is dead; 0: not known */
    uv_timer_t timer; /* look again; SIGTERM */
    int handles;      /* of libuv, still open */
    bool stop_later;
    int64_t left_ns; /* since when ranks outlive their supervisor and SIGKILL; 0: none do */
    bool fenced;     /* and so its devices are                                            */

    struct start start; /* OP_START's input */
    int r, new_pidfd;   /* its result       */
    pid_t new_pid;
    struct launch_look look; /* OP_LOOK's result */
    struct err err;
};

/* gangs.c */
void gangs_start_free(struct start *s);
void gangs_drop(struct gang *g);   /* off the list; its memory when libuv lets go of it */
void gangs_closed(uv_handle_t *h); /* of a handle of a gang that was dropped */

/* gangs_op.c */
void gangs_op_next(struct gang *g); /* the call that is due, if none is in the pool */
void gangs_op_tell(struct gang *g, enum event_kind kind, const char *error); /* the core */
void gangs_op_looked(struct gang *g);                                        /* look is new */
void gangs_op_stop_later(struct gang *g); /* SIGTERM, unless a directive ends it before */

#endif
