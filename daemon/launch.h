/* launch.h - starts, finds and ends gangs; idempotent by name.
 *
 * A gang is known by (store, job, attempt) alone and may outlive alignd: everything
 * is asked of the gang folder (docs/PROCESSES.md) and the kernel, nothing is
 * remembered here. All calls may block on the disk for a moment: they run in the
 * thread pool. Not for two threads at once about the same gang. */
#ifndef DAEMON_LAUNCH_H
#define DAEMON_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/exit_record.h"
#include "proto/err.h"
#include "proto/limit.h"
#include "proto/msg.h"

struct launch {
    char gangs_dir[LIMIT_PATH];   /* <state>/gangs                                    */
    char devices_dir[LIMIT_PATH]; /* lock files of devices, machine-wide              */
    char worker[LIMIT_PATH];      /* the program align-worker                         */
    char worker_url[LIMIT_PATH];
    char store8[9]; /* first 8 of the store's uuid                      */
    mode_t umask;   /* that alignd was started with: run folders follow it */
};

struct launch_gang {
    uint64_t job;
    uint32_t attempt;
    const char *output_dir, *device_type;
    const char *const *devices;
    uint32_t n_devices;
    int threads_per_device;
    const char *user_spec, *resolved_spec; /* JSON                                    */
    bool overwrite;
    bool drain; /* only sends what an earlier supervisor left unsent                  */
    struct msg_token token;
};

enum launch_state {
    LAUNCH_ABSENT, /* never started: no lock file                                     */
    LAUNCH_ALIVE,  /* lock held, or processes left                                    */
    LAUNCH_EXITED, /* nothing left but the record                                     */
    LAUNCH_LOST,   /* nothing left, no readable record                                */
};

struct launch_look {
    enum launch_state state;
    pid_t supervisor;    /* ALIVE and known; else 0                               */
    int pidfd;           /* of it, the caller's to close; -1                      */
    unsigned ranks_left; /* of a dead supervisor; SIGKILL was sent                */
    uint32_t n_devices;  /* from gang.json                                        */
    char devices[LIMIT_RANKS][64];
    struct exit_record record; /* EXITED                                              */
    char why[512];             /* LOST: what is wrong with the record, or ""; ABSENT: the
                                  supervisor's last words, or ""                      */
};

/* 0: started, *ret_pid, *ret_pidfd (the caller's); 1: runs already; -EBUSY: a device
 * is somebody else's, its name is in the sentence; else nothing was started. */
int launch_start(const struct launch *l, const struct launch_gang *g, pid_t *ret_pid,
                 int *ret_pidfd, struct err *err);

/* Looks; ends ranks that outlived their supervisor. */
void launch_look(const struct launch *l, uint64_t job, uint32_t attempt, struct launch_look *ret);

/* SIGTERM to the supervisor, or SIGKILL to it and the ranks. -ESRCH: none is left. */
int launch_stop(const struct launch *l, uint64_t job, uint32_t attempt);
int launch_kill(const struct launch *l, uint64_t job, uint32_t attempt);

/* Calls fn for every gang folder of this store. */
int launch_scan(const struct launch *l, void (*fn)(void *arg, uint64_t job, uint32_t attempt),
                void *arg);
/* Removes the folder of a gang that is gone. */
void launch_forget(const struct launch *l, uint64_t job, uint32_t attempt);

#endif
