/* step.h - one optimizer step: micro-batches, the gang's sum, clipping, AdamW. */
#ifndef WORKER_STEP_H
#define WORKER_STEP_H

#include "worker/trainer.h"

struct step_result {
    double v[METRICS];
    int64_t examples;
    int64_t num_tokens;   /* TRL's: both halves of every pair with their prompts     */
    int64_t tokens;       /* through the model, a pair's prompt once; all ranks      */
    double grad_norm;     /* before clipping                                         */
    double learning_rate; /* of this update                                          */
    unsigned flags;       /* the greatest of all ranks': equal on every rank         */
};

/* Runs optimizer step `step` (from 0; that many updates are done). flags: what this
 * rank was told (LINK_*). fresh: the adapter is as lora_new made it, so that
 * policy == reference is checked. Every rank returns the same result.
 *
 * Returns 0; -EDOM: the step-0 check failed, or the loss or gradient is not finite
 * (the parameters are unchanged, err names the step); or what coll or the backend
 * returned. */
int step_run(struct trainer *t, int64_t step, unsigned flags, bool fresh, struct step_result *ret,
             struct err *err);

/* The same over given examples of the training set instead of the sampler's (`try`). */
int step_run_on(struct trainer *t, int64_t step, const uint32_t *idx, int n, unsigned flags,
                bool fresh, struct step_result *ret, struct err *err);

#endif
