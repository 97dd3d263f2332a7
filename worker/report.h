/* report.h - rows of the spool and their one line in rank 0's log. */
#ifndef WORKER_REPORT_H
#define WORKER_REPORT_H

#include "worker/history.h"
#include "worker/metrics.h"
#include "worker/spool.h"
#include "worker/step.h"

/* Where rank 0's rows go. On other ranks spool is NULL and nothing is written. */
struct report {
    const struct spec *spec;
    const struct plan *plan;
    struct spool *spool;
    struct history *history;
    /* since the last row: measured, not kept in checkpoints */
    double seconds;
    int64_t steps, tokens, examples;
};

double report_now(void); /* seconds of the monotonic clock */

/* One finished step's time and size. */
void report_timed(struct report *r, double seconds, const struct step_result *s);

int report_start(struct report *r, int64_t step, struct err *err);
int report_train(struct report *r, int64_t step, const struct metrics_window *w,
                 const struct step_result *s, int64_t num_tokens, struct err *err);
int report_eval(struct report *r, int64_t step, const double v[METRICS], double seconds,
                int64_t num_tokens, struct err *err);
/* seconds and steps of this attempt alone. */
int report_summary(struct report *r, int64_t step, double loss, double seconds, int64_t steps,
                   int64_t examples, double total_flos, struct err *err);

#endif
