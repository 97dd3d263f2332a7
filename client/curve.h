/* curve.h - what a watcher knows of a job: its rows so far, the newest values. */
#ifndef CLIENT_CURVE_H
#define CLIENT_CURVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/msg.h"

struct curve_point {
    int64_t step;
    int64_t wall_ms;
    uint32_t attempt;
    double loss;
};

struct curve_value {
    char name[64];
    double value;
};

struct curve {
    struct curve_point *v;
    size_t n, room;
    struct curve_value train[LIMIT_METRICS], eval[LIMIT_METRICS]; /* the newest row's */
    size_t n_train, n_eval;
    int64_t step, eval_step; /* of those rows; -1: none yet */
    int64_t rewinds;         /* how often rows were taken back */
    int64_t rewound_to;
    bool lost; /* out of memory: points are missing */
};

void curve_init(struct curve *c);
void curve_fini(struct curve *c);
void curve_add(struct curve *c, const struct msg_row *row);

/* NAN: no such value yet. */
double curve_train(const struct curve *c, const char *name);
double curve_eval(const struct curve *c, const char *name);
/* Seconds a step takes, from the last rows' wall clock; NAN: not known yet. */
double curve_step_seconds(const struct curve *c);

#endif
