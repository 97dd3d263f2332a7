/* history.h - the live rows of a run over its attempts, and trainer_state.json.
 *
 * When attempt b began at step s, rows of earlier attempts beyond s are superseded
 * (service.md 12); what is left, in order, is the run's one history. */
#ifndef WORKER_HISTORY_H
#define WORKER_HISTORY_H

#include <stdint.h>

#include "proto/err.h"
#include "proto/spec.h"
#include "worker/plan.h"
#include "worker/rundir.h"
#include "worker/spool.h"
#include "worker/text_out.h"

/* Calls fn for each live row, oldest attempt first, of attempts up to `last`; line is
 * the row's text without its newline. `start` rows are passed over, and a summary that
 * a later attempt went on from. resume: the step at which an attempt `last` that has
 * no spool yet will begin; -1: none. A negative return of fn ends it and is returned. */
int history_read(const struct rundir *d, uint32_t last, int64_t resume,
                 int (*fn)(void *arg, const struct spool_row *row, const char *line, size_t bytes),
                 void *arg, struct err *err);

/* The Trainer's log_history, ready to be printed. */
struct history {
    struct text_out log;
};
void history_add(struct history *h, const struct spool_row *row);
/* Rows of the attempts before this one, for an attempt that begins at `resume`. */
int history_load(struct history *h, const struct rundir *d, int64_t resume, struct err *err);
void history_free(struct history *h);

/* trainer_state.json as transformers writes it. */
struct history_state {
    const struct spec *spec;
    const struct plan *plan;
    int64_t global_step;
    int64_t num_tokens;
    double total_flos;
};
void history_print(const struct history *h, const struct history_state *s, struct text_out *out);

#endif
