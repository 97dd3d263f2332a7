/* bench.h - the trainer that bench_gpu.c's commands measure: opened, stepped, timed. */
#ifndef TESTS_GPU_BENCH_H
#define TESTS_GPU_BENCH_H

#include "tests/gpu/bench_rows.h"
#include "worker/step.h"

enum { BENCH_STEPS_MAX = 400 };

/* Another choice than the memory planner's. */
struct bench_engine {
    int64_t recompute; /* layers; -1: as planned                                     */
    int per_use;       /* -1: as planned                                             */
    bool whole_logits; /* the logits of a micro-batch in one piece                   */
    bool all_rows;     /* room for the logits of every token                         */
};

struct bench {
    const char *backend;
    struct spec spec;
    struct bench_rows rows;
    struct dataset data;
    struct trainer t;
    int steps, from;
    bool ref_each, no_passes, only_near;
    struct bench_engine engine;
    /* Called when the trainer is open and its engine is not; or NULL. */
    int (*opened)(struct bench *b, void *arg, struct err *err);
    void *opened_arg;
    size_t free_before, free_least;      /* of the device                                 */
    double began;                        /* the process, on bench_now's clock             */
    double main_seconds, device_seconds; /* from its start to main; of opening the device     */
    double ready_seconds;          /* from the process's start to that of the first step       */
    char adapter[1024], ids[1024]; /* where the start is written for another program */
};

struct bench_device {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
};

struct bench_pass {
    int pairs;
    int64_t tokens, head_rows;
    double reference, forward, backward; /* seconds                                  */
    bool same;                           /* log-probs are those of the pass before    */
};
enum bench_rows_kind { BENCH_SHARED, BENCH_UNSHARED, BENCH_ALL_ROWS };

double bench_now(void);
int bench_fails(const char *what, const char *why);
int bench_device_open(const char *backend, struct bench_device *d);

int bench_open(struct bench *b, struct err *err);
void bench_close(struct bench *b);
/* The engine once more, with b->engine. */
int bench_reopen_engine(struct bench *b, struct err *err);
int bench_write_start(struct bench *b, struct err *err);
/* One optimizer step over batch `step % BENCH_BATCHES`; step 0 starts from a fresh adapter. */
int bench_step(struct bench *b, int step, struct step_result *ret, double *ret_seconds,
               struct err *err);
/* One micro-batch of the first optimizer step, as often as it takes: the least seconds of
 * each pass. 0 pairs: it does not fit. first: log-probs to compare with, or NULL; kept in
 * *first where that is empty. */
int bench_time_passes(struct bench *b, enum bench_rows_kind kind, struct bench_pass *ret,
                      struct head_out *first, struct err *err);

#endif
