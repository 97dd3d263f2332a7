/* metrics.h - what is reported, under TRL 1.x's names, and how it is averaged.
 *
 * A value of a step is the mean over its examples (rewards, logps, accuracies,
 * dpo's loss) or over its target tokens (sft's loss, logits, entropy,
 * mean_token_accuracy). A row over several steps (logging_steps > 1) is their
 * example-weighted mean (numerics.md 16); grad_norm and learning_rate are those of
 * its last update and num_tokens and epoch count up, as in the Trainer's log. */
#ifndef WORKER_METRICS_H
#define WORKER_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/loss.h"
#include "worker/spool.h"

enum metric {
    METRIC_LOSS,
    METRIC_REWARDS_CHOSEN,
    METRIC_REWARDS_REJECTED,
    METRIC_REWARDS_MARGINS,
    METRIC_REWARDS_ACCURACIES,
    METRIC_LOGPS_CHOSEN,
    METRIC_LOGPS_REJECTED,
    METRIC_LOGITS_CHOSEN,
    METRIC_LOGITS_REJECTED,
    METRIC_ENTROPY,
    METRIC_TOKEN_ACCURACY,
    METRICS
};

/* Values that measure this machine, not the training: two runs of one spec are
 * equal except for these. With or without "eval_" before it. */
bool metrics_is_timing(const char *name);

/* Means over n examples from their slots, added in the given order.
 * n_targets: target tokens of each half over all of them. */
void metrics_mean(enum spec_method method, const double *slots, int64_t n,
                  const int64_t n_targets[2], double v[METRICS]);

/* Steps since the last row; saved in checkpoints. */
struct metrics_window {
    double mean[METRICS];
    double examples; /* the weight of mean                                           */
    int64_t steps;
};
/* The first step added leaves its values unchanged, to the bit. */
void metrics_window_add(struct metrics_window *w, const double v[METRICS], int64_t examples);

/* Appends the values a method has, each name with `prefix` before it. */
void metrics_row(struct spool_row *row, enum spec_method method, const char *prefix,
                 const double v[METRICS]);
void metrics_put(struct spool_row *row, const char *prefix, const char *name, double value);
/* Value of a name in a row; NAN when it is not there. */
double metrics_get(const struct spool_row *row, const char *name);

#endif
