/* metrics.c - see metrics.h. */
#include "worker/metrics.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    bool dpo_only;
} table[METRICS] = {
    [METRIC_LOSS] = {"loss", false},
    [METRIC_REWARDS_CHOSEN] = {"rewards/chosen", true},
    [METRIC_REWARDS_REJECTED] = {"rewards/rejected", true},
    [METRIC_REWARDS_MARGINS] = {"rewards/margins", true},
    [METRIC_REWARDS_ACCURACIES] = {"rewards/accuracies", true},
    [METRIC_LOGPS_CHOSEN] = {"logps/chosen", true},
    [METRIC_LOGPS_REJECTED] = {"logps/rejected", true},
    [METRIC_LOGITS_CHOSEN] = {"logits/chosen", true},
    [METRIC_LOGITS_REJECTED] = {"logits/rejected", true},
    [METRIC_ENTROPY] = {"entropy", false},
    [METRIC_TOKEN_ACCURACY] = {"mean_token_accuracy", false},
};

static const char *const timings[] = {
    "step_seconds",     "tokens_per_second", "samples_per_second",       "runtime",
    "steps_per_second", "train_runtime",     "train_samples_per_second", "train_steps_per_second",
    "wall_ms",
};

bool metrics_is_timing(const char *name)
{
    if (strncmp(name, "eval_", 5) == 0)
        name += 5;
    for (size_t i = 0; i < sizeof timings / sizeof timings[0]; i++)
        if (strcmp(name, timings[i]) == 0)
            return true;
    return false;
}

static double ratio(double sum, int64_t n)
{
    return n > 0 ? sum / (double)n : 0.0;
}

void metrics_mean(enum spec_method method, const double *slots, int64_t n,
                  const int64_t n_targets[2], double v[METRICS])
{
    double sum[LOSS_SLOTS] = {0}, margin = 0;

    for (int64_t i = 0; i < n; i++) {
        const double *s = slots + i * LOSS_SLOTS;
        for (int k = 0; k < LOSS_SLOTS; k++)
            sum[k] += s[k];
        margin += s[LOSS_REWARD_0] - s[LOSS_REWARD_1];
    }
    v[METRIC_LOSS] = ratio(sum[LOSS_SUM], method == SPEC_DPO ? n : n_targets[0]);
    v[METRIC_REWARDS_CHOSEN] = ratio(sum[LOSS_REWARD_0], n);
    v[METRIC_REWARDS_REJECTED] = ratio(sum[LOSS_REWARD_1], n);
    v[METRIC_REWARDS_MARGINS] = ratio(margin, n);
    v[METRIC_REWARDS_ACCURACIES] = ratio(sum[LOSS_CORRECT], n);
    v[METRIC_LOGPS_CHOSEN] = ratio(sum[LOSS_LOGP_0], n);
    v[METRIC_LOGPS_REJECTED] = ratio(sum[LOSS_LOGP_1], n);
    v[METRIC_LOGITS_CHOSEN] = ratio(sum[LOSS_LOGIT_0], n_targets[0]);
    v[METRIC_LOGITS_REJECTED] = ratio(sum[LOSS_LOGIT_1], n_targets[1]);
    v[METRIC_ENTROPY] = ratio(sum[LOSS_ENTROPY], n_targets[0] + n_targets[1]);
    v[METRIC_TOKEN_ACCURACY] = ratio(sum[LOSS_HIT_0], n_targets[0]);
}

void metrics_window_add(struct metrics_window *w, const double v[METRICS], int64_t examples)
{
    w->examples += (double)examples;
    w->steps++;
    for (int k = 0; k < METRICS && w->examples > 0; k++)
        w->mean[k] += (v[k] - w->mean[k]) * ((double)examples / w->examples);
}

void metrics_put(struct spool_row *row, const char *prefix, const char *name, double value)
{
    if (row->n_values >= LIMIT_METRICS)
        return; /* more names than the format has room for; the set is fixed and smaller */
    snprintf(row->values[row->n_values].name, sizeof row->values[0].name, "%s%s", prefix, name);
    row->values[row->n_values].value = value;
    row->n_values++;
}

void metrics_row(struct spool_row *row, enum spec_method method, const char *prefix,
                 const double v[METRICS])
{
    for (int k = 0; k < METRICS; k++)
        if (method == SPEC_DPO || !table[k].dpo_only)
            metrics_put(row, prefix, table[k].name, v[k]);
}

double metrics_get(const struct spool_row *row, const char *name)
{
    for (int i = 0; i < row->n_values; i++)
        if (strcmp(row->values[i].name, name) == 0)
            return row->values[i].value;
    return NAN;
}
