/* report.c - see report.h. */
#include "worker/report.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "proto/log.h"

double report_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void report_timed(struct report *r, double seconds, const struct step_result *s)
{
    r->seconds += seconds;
    r->steps++;
    r->tokens += s->tokens;
    r->examples += s->examples;
}

static struct spool_row *new_row(enum spool_kind kind, int64_t step)
{
    struct spool_row *row = calloc(1, sizeof *row);

    if (row != NULL) {
        row->kind = kind;
        row->global_step = step;
    }
    return row;
}

/* Appends and frees the row. */
static int send(struct report *r, struct spool_row *row, struct err *err)
{
    const int n = spool_append(r->spool, row, err);

    if (n == 0)
        history_add(r->history, row);
    free(row);
    return n;
}

static double epoch_of(const struct report *r, int64_t step)
{
    return (double)step / (double)r->plan->steps_per_epoch;
}

int report_start(struct report *r, int64_t step, struct err *err)
{
    struct spool_row *row;

    if (r->spool == NULL)
        return 0;
    row = new_row(SPOOL_START, step);
    return row != NULL ? send(r, row, err) : err_set(err, -ENOMEM, "out of memory");
}

static void log_train(const struct report *r, const struct spool_row *row)
{
    const double per_step = metrics_get(row, "step_seconds");

    if (r->spec->method == SPEC_DPO)
        log_info("step",
                 "step=%lld/%lld epoch=%.2f loss=%.4f rewards/accuracies=%.3f rewards/margins=%.4f "
                 "grad_norm=%.4g learning_rate=%.3g seconds=%.3f tokens/s=%.0f",
                 (long long)row->global_step, (long long)r->plan->steps, metrics_get(row, "epoch"),
                 metrics_get(row, "loss"), metrics_get(row, "rewards/accuracies"),
                 metrics_get(row, "rewards/margins"), metrics_get(row, "grad_norm"),
                 metrics_get(row, "learning_rate"), per_step,
                 metrics_get(row, "tokens_per_second"));
    else
        log_info("step",
                 "step=%lld/%lld epoch=%.2f loss=%.4f mean_token_accuracy=%.3f grad_norm=%.4g "
                 "learning_rate=%.3g seconds=%.3f tokens/s=%.0f",
                 (long long)row->global_step, (long long)r->plan->steps, metrics_get(row, "epoch"),
                 metrics_get(row, "loss"), metrics_get(row, "mean_token_accuracy"),
                 metrics_get(row, "grad_norm"), metrics_get(row, "learning_rate"), per_step,
                 metrics_get(row, "tokens_per_second"));
}

int report_train(struct report *r, int64_t step, const struct metrics_window *w,
                 const struct step_result *s, int64_t num_tokens, struct err *err)
{
    struct spool_row *row;

    if (r->spool == NULL)
        return 0;
    row = new_row(SPOOL_TRAIN, step);
    if (row == NULL)
        return err_set(err, -ENOMEM, "out of memory");
    metrics_row(row, r->spec->method, "", w->mean);
    metrics_put(row, "", "grad_norm", s->grad_norm);
    metrics_put(row, "", "learning_rate", s->learning_rate);
    metrics_put(row, "", "num_tokens", (double)num_tokens);
    metrics_put(row, "", "epoch", epoch_of(r, step));
    metrics_put(row, "", "step_seconds", r->steps > 0 ? r->seconds / (double)r->steps : 0);
    metrics_put(row, "", "samples_per_second",
                r->seconds > 0 ? (double)r->examples / r->seconds : 0);
    metrics_put(row, "", "tokens_per_second", r->seconds > 0 ? (double)r->tokens / r->seconds : 0);
    r->seconds = 0;
    r->steps = r->tokens = r->examples = 0;
    log_train(r, row);
    return send(r, row, err);
}

int report_eval(struct report *r, int64_t step, const double v[METRICS], double seconds,
                int64_t num_tokens, struct err *err)
{
    const double n = (double)r->plan->n_eval;
    /* as the Trainer counts evaluation steps; how rows are packed here is nobody's business */
    const double batch = (double)r->spec->eval_batch_size * (double)r->spec->devices;
    struct spool_row *row;

    if (r->spool == NULL)
        return 0;
    row = new_row(SPOOL_EVAL, step);
    if (row == NULL)
        return err_set(err, -ENOMEM, "out of memory");
    metrics_row(row, r->spec->method, "eval_", v);
    metrics_put(row, "eval_", "num_tokens", (double)num_tokens);
    metrics_put(row, "", "epoch", epoch_of(r, step));
    metrics_put(row, "eval_", "runtime", seconds);
    metrics_put(row, "eval_", "samples_per_second", seconds > 0 ? n / seconds : 0);
    metrics_put(row, "eval_", "steps_per_second",
                seconds > 0 && batch > 0 ? ceil(n / batch) / seconds : 0);
    if (r->spec->method == SPEC_DPO)
        log_info("eval",
                 "step=%lld eval_loss=%.4f eval_rewards/accuracies=%.3f eval_rewards/margins=%.4f "
                 "seconds=%.2f",
                 (long long)step, v[METRIC_LOSS], v[METRIC_REWARDS_ACCURACIES],
                 v[METRIC_REWARDS_MARGINS], seconds);
    else
        log_info("eval", "step=%lld eval_loss=%.4f eval_mean_token_accuracy=%.3f seconds=%.2f",
                 (long long)step, v[METRIC_LOSS], v[METRIC_TOKEN_ACCURACY], seconds);
    return send(r, row, err);
}

int report_summary(struct report *r, int64_t step, double loss, double seconds, int64_t steps,
                   int64_t examples, double total_flos, struct err *err)
{
    struct spool_row *row;

    if (r->spool == NULL)
        return 0;
    row = new_row(SPOOL_SUMMARY, step);
    if (row == NULL)
        return err_set(err, -ENOMEM, "out of memory");
    metrics_put(row, "", "train_runtime", seconds);
    metrics_put(row, "", "train_samples_per_second", seconds > 0 ? (double)examples / seconds : 0);
    metrics_put(row, "", "train_steps_per_second", seconds > 0 ? (double)steps / seconds : 0);
    metrics_put(row, "", "total_flos", total_flos);
    metrics_put(row, "", "train_loss", loss);
    metrics_put(row, "", "epoch", epoch_of(r, step));
    log_info("done", "step=%lld train_loss=%.4f train_runtime=%.1f", (long long)step, loss,
             seconds);
    return send(r, row, err);
}
