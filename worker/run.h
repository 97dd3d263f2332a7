/* run.h - trains one job as one rank of a gang: load, train, evaluate, save.
 *
 * Directory of a run (service.md 15): everything an attempt writes lies under
 * output_dir/attempts/N/ ; checkpoint-S and, at the end, the adapter, the live
 * metric rows and the resolved spec are published to output_dir. */
#ifndef WORKER_RUN_H
#define WORKER_RUN_H

#include <stdint.h>

#include "proto/err.h"
#include "proto/spec.h"

struct coll;
struct link;

enum { /* exit codes of a rank and of `align-worker run` */
    RUN_EXIT_DONE = 0,
    RUN_EXIT_ERROR = 1,
    RUN_EXIT_USAGE = 2,
    RUN_EXIT_PEER = 75,    /* ended only because a peer vanished (service.md 17) */
    RUN_EXIT_STOPPED = 85, /* checkpoint written, resumable                      */
    RUN_EXIT_OOM = 86,     /* out of memory; the sentence says what would fit    */
};

struct run_opts {
    const struct spec *spec;   /* placed: output_dir without {...}                */
    const char *resolved_json; /* as it will be written to spec.resolved.json     */
    const char *user_json;     /* or NULL                                         */
    uint32_t attempt;          /* attempts/<attempt>/ exists already              */
    uint32_t rank, ranks;
    const char *backend;       /* "cpu", "ref", "sim", "cuda"                     */
    const char *uuid;          /* the rank's GPU; NULL on a CPU                   */
    int threads;
    struct coll *coll;         /* open, ranks == coll_ranks                       */
    struct link *link;         /* never NULL (link_open(-1) in tests)             */
};

/* Returns an exit code above; err holds the sentence unless DONE or STOPPED. */
int run_train(const struct run_opts *o, struct err *err);

#endif
