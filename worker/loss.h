/* loss.h - the objectives: log-probabilities in, losses, reports and
 * d loss / d log-probability out. On the host, in double, once per micro-batch.
 *
 * dpo, sigmoid (Rafailov et al. 2023, eq. 7, arXiv:2305.18290; TRL 1.x): per pair
 * -log sigmoid(beta * (lr_c - lr_r)), lr = summed log-prob of the policy less the
 * reference's; the step's loss is the mean over its pairs.
 * sft: sum of -log p(target) over the target tokens of the step, divided by their
 * number. Both are means over the whole optimizer step (numerics.md 10), so the
 * divisor is told, not counted in the micro-batch. */
#ifndef WORKER_LOSS_H
#define WORKER_LOSS_H

#include <stdint.h>

#include "proto/spec.h"
#include "worker/batch.h"
#include "worker/engine.h"

/* What is summed per example: one slot each in the tail of the step's collective,
 * added in example order afterwards (numerics.md 7). */
enum loss_slot {
    LOSS_SUM,      /* dpo: the pair's loss; sft: sum of its token losses            */
    LOSS_LOGP_0,   /* sum of log-probs of the chosen reply (sft: of the targets)    */
    LOSS_LOGP_1,   /* ... of the rejected reply                                     */
    LOSS_REWARD_0, /* beta * log-ratio of the chosen reply                          */
    LOSS_REWARD_1,
    LOSS_CORRECT, /* 1 when the chosen reward is greater                           */
    LOSS_LOGIT_0, /* sum over target tokens of the mean logit                      */
    LOSS_LOGIT_1,
    LOSS_ENTROPY, /* sum over target tokens of both halves                         */
    LOSS_HIT_0,   /* target tokens that are the argmax, chosen (sft: all)          */
    LOSS_SLOTS
};

struct loss_opts {
    enum spec_method method;
    double beta;
    double divisor; /* dpo: pairs of the step; sft: target tokens of the step         */
    int64_t vocab;
    bool must_be_start; /* dpo: policy == reference; every log-ratio has to be 0     */
};

/* A pair's loss and its derivative by lr_c (that by lr_r is the negative). */
double loss_dpo_sigmoid(double beta, double lr_c, double lr_r, double *ret_grad);

/* ref: per example of b the reference's log-probs of its head rows, chosen then
 * rejected; NULL for sft. coef: out (n_head) or NULL (evaluation). slots: out
 * (n_examples * LOSS_SLOTS). Returns 0; -EDOM: must_be_start is violated, err names
 * the row. */
int loss_batch(const struct loss_opts *o, const struct batch *b, const struct head_out *out,
               const float *const *ref, float *coef, double *slots, struct err *err);

#endif
