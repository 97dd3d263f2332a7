/* plan.h - every count of a run, from the spec and the data set alone, before
 * anything is allocated. Pure. */
#ifndef WORKER_PLAN_H
#define WORKER_PLAN_H

#include <stdint.h>

#include "proto/err.h"
#include "proto/spec.h"
#include "worker/dataset.h"

struct plan {
    int64_t n_train, n_eval;
    int64_t batch;           /* examples of a full optimizer step                    */
    int64_t steps_per_epoch; /* the last one of an epoch may be short                */
    int64_t steps;           /* optimizer steps of the whole run                     */
    int64_t warmup;
    double epochs;        /* steps / steps_per_epoch                              */
    int64_t token_budget; /* tokens of one micro-batch                            */
    int64_t max_tokens, max_head;
    int max_seqs;
    int32_t max_positions;
    int64_t train_tokens; /* tokens of the training set, a pair's prompt once        */
    int64_t eval_tokens;
};

/* frozen_budget: of the checkpoint resumed from, 0: none (numerics.md 6). -EINVAL
 * says what does not fit. */
int plan_make(const struct spec *spec, const struct dataset *data, int64_t frozen_budget,
              struct plan *ret, struct err *err);

/* Optimizer steps of a run over n examples: max_steps, else ceil(epochs * steps per epoch). */
int64_t plan_steps(const struct spec *spec, int64_t n_train);

/* TRL's num_tokens of one example: both halves with their prompts. */
int64_t plan_num_tokens(const struct example *e);

#endif
