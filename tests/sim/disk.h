/* disk.h - what the simulated store holds: the rows of every committed batch. */
#ifndef TESTS_SIM_DISK_H
#define TESTS_SIM_DISK_H

#include "daemon/core.h"

enum {
    DISK_JOBS = 20,
    DISK_ATTEMPTS = 64,
    DISK_REQUESTS = 256,
    DISK_DEVICES = 16,
    DISK_VALUES = 2,
    DISK_NAME = 48,
};

struct disk_row { /* a report, or a rewind (n == 0) */
    uint64_t seq, n;
    uint32_t attempt;
    uint8_t kind;
    bool superseded;
    int64_t step;
};

struct disk_job {
    bool there;
    struct job row;
    char name[DISK_NAME], dir[DISK_NAME];
    struct attempt attempt[DISK_ATTEMPTS + 1]; /* .attempt == 0: none                 */
    bool has_gang;
    bool faulty; /* a device of that gang failed                                       */
    struct fx_gang gang;
    char gang_device[LIMIT_RANKS][16];
    const char *gang_name[LIMIT_RANKS];
    struct disk_row *rows;
    uint64_t last_n[DISK_ATTEMPTS + 1]; /* newest report of each attempt               */
    size_t n_rows, cap_rows;
    int n_values;
    struct {
        uint32_t attempt;
        char key[8];
        uint64_t value;
    } value[DISK_VALUES];
    uint64_t thin_seq;      /* rows up to it were thinned                                  */
    unsigned ends, resumes; /* how often it went to an end, and back                  */
    unsigned node_fails;    /* since then, but those that a faulty device explains    */
};

struct disk {
    struct disk_job job[DISK_JOBS + 1];
    struct fx_request request[DISK_REQUESTS];
    size_t n_requests;
    struct fx_request dropped[DISK_REQUESTS]; /* the newest of those that were stored once */
    size_t n_dropped;
    struct fx_device device[DISK_DEVICES];
    char device_name[DISK_DEVICES][16];
    size_t n_devices;
    struct fx_meta meta;
};

/* Writes a batch's rows. Fails the running test if they break a rule of the store:
 * a seq or a report twice, a gap, an end that is not one. */
void disk_apply(struct disk *d, const struct effects *fx);
/* A new core from the rows. */
struct core *disk_restore(struct disk *d, const struct core_opts *opts);
/* The request was answered, and the answer was stored, though it may be gone by now. */
bool disk_stored(const struct disk *d, const struct event_request *r);
/* An answer to this id was stored and is not kept any more. */
bool disk_dropped(const struct disk *d, const struct event_request *r);
/* What the store says when the core asks (store_read_recall). */
void disk_recall(struct disk *d, uint64_t job, const struct event_request *req,
                 struct event_recall *ret);
/* What the store's thread does between two commits: thins some rows of a job that ended
 * keep_s ago, one training row in `every` staying. */
void disk_tidy(struct disk *d, uint64_t job, int64_t age_s, int64_t keep_s, uint64_t every,
               uint64_t rows);
void disk_fini(struct disk *d);

struct disk_job *disk_job(struct disk *d, uint64_t id);

#endif
