/* gang.h - the files of a gang folder (docs/PROCESSES.md): what to run, who runs, how it
 * ended. */
#ifndef WORKER_GANG_H
#define WORKER_GANG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/err.h"
#include "proto/limit.h"

/* A rank's log is cut here and gets a closing line; what lies before never changes. */
enum { GANG_LOG_CUT = LIMIT_LOG_BYTES - 256 };

struct gang { /* gang.json */
    uint64_t job;
    uint32_t attempt;
    char *output_dir; /* absolute                                                    */
    int n_devices;
    char *devices[LIMIT_RANKS]; /* "cpu:0"                                           */
    char *device_type;
    int threads_per_device; /* 0: alignd chooses                                     */
    char *worker_url;       /* "" without a daemon                                   */
    char *spec, *user_spec; /* JSON texts; user_spec may be NULL                     */
    bool overwrite;         /* attempt 1 may remove an earlier run                   */
    int umask;              /* of all that is written into the run folder; -1: ours as it is */
    char *worker;           /* program of the ranks, NULL: our own                   */
    int64_t beat_ms;        /* how often a rank says that it lives                   */
    int64_t silence_ms;     /* a rank that says nothing so long ends the gang        */
    int64_t stall_ms;       /* least bound on the time of one step                   */
    int64_t grace_ms;       /* from the first failure to the end of all ranks        */
};

/* Reads gang.json of the folder; absent optional keys get their defaults. */
int gang_read(int dir_fd, struct gang **ret, struct err *err);
void gang_free(struct gang *g); /* NULL is a no-op */

struct gang_process {
    pid_t pid;
    uint64_t start; /* proto/proc.h: tells a reused pid apart                         */
};

/* Writes pids.json. */
int gang_write_pids(int dir_fd, const struct gang *g, const struct gang_process *ranks, int n);

struct gang_end { /* how one rank ended */
    int code, signal;
    int64_t step; /* as it last said                                                  */
};

struct gang_exit {                /* exit.json */
    int code, signal, first_rank; /* of the rank that failed first; -1: none            */
    char error[1024];
    int64_t step;
    int64_t peak_rss_kb;
    double user_s, system_s, wall_s;
    char adapter[LIMIT_PATH]; /* what can be loaded now, or ""                       */
    int n_ranks;
    struct gang_end ranks[LIMIT_RANKS];
};

/* Writes exit.json. *ret_text: its text (malloc'ed), also when writing failed; NULL without
 * memory. */
int gang_write_exit(int dir_fd, const struct gang *g, const struct gang_exit *e, char **ret_text);
/* The text of an earlier exit.json: 0, -ENOENT, -EBADMSG (no record), -errno. */
int gang_read_exit(int dir_fd, char **ret_text, struct gang_exit *ret);

#endif
