/* config.h - alignd's settings: command line over alignd.json over defaults. */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/err.h"
#include "proto/limit.h"
#include "proto/log.h"

enum {
    CONFIG_SLOTS_MAX = 256,
    CONFIG_OPERATORS = 64,
    CONFIG_MEMORY_KEEP_S = 7 * 86400, /* unless the file says otherwise */
    CONFIG_KEEP_S = 30 * 86400,
};
#define CONFIG_FOREVER (INT64_MAX / 4)

struct config_given { /* on the command line: wins over the file */
    bool slots, worker, devices, level;
};

struct config_fixed { /* what the file says of what may not change; 0, "": nothing */
    int cpu_slots;
    char worker[LIMIT_PATH], devices_dir[LIMIT_PATH];
    int64_t memory_keep_s;
};

struct config {
    bool user;       /* --user: the process launcher, everything in the state folder */
    bool foreground; /* log to standard error, not to <state>/alignd.log      */
    bool help, version;
    char state[LIMIT_PATH];  /* absolute                                             */
    char local[LIMIT_PATH];  /* where sockets, database and gangs lie: `state`, or a
                                local folder when `state` is on a network file system */
    char host[LIMIT_PATH];   /* ipc://... of the control socket; "": in `local`       */
    char worker[LIMIT_PATH]; /* the program align-worker, absolute                   */
    char devices_dir[LIMIT_PATH];
    int cpu_slots;                        /* 0: usable cores                                      */
    enum log_level log_level;             /* reloadable                                           */
    uint32_t operators[CONFIG_OPERATORS]; /* reloadable: uids that act on all jobs       */
    int n_operators;
    char note[512]; /* config_prepare's, for who asks hello                              */
    mode_t umask;   /* that alignd was started with: what gangs write follows it           */
    struct config_given given;
    struct config_fixed file;
    int64_t memory_keep_s;               /* ended jobs leave the memory after so long  */
    int64_t metrics_keep_s, logs_keep_s; /* reloadable: rows and output of ended jobs  */
};

/* "90s", "5m", "12h", "30d", "2w" or "forever" as seconds, at least 1. -EINVAL. */
int config_duration(const char *text, int64_t *ret);

/* Reads the command line, then <state>/alignd.json if it is there. -EINVAL with a
 * sentence. */
int config_read(int argc, char **argv, struct config **ret, struct err *err);
void config_free(struct config *c); /* NULL is a no-op */

/* Reads alignd.json again: takes over what may change (a key that is gone: its default),
 * names what may not. All or nothing. */
int config_reload(struct config *c, struct err *err);

/* Makes the state folder (0700), checks whose it is, and chooses `local`. *ret_note:
 * a sentence worth saying, or "". */
int config_prepare(struct config *c, char *note, size_t size, struct err *err);

extern const char config_usage[];

#endif
