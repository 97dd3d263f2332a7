/* evaluate.h - the evaluation set under the current adapter, dropout off. */
#ifndef WORKER_EVALUATE_H
#define WORKER_EVALUATE_H

#include "worker/trainer.h"

/* Means over eval examples [0, n) of the set: ranks share the work, sums are taken in
 * example order in double, so the result has the same bits on any number of ranks and
 * is the same on each. n <= plan.n_eval. */
int evaluate_run(struct trainer *t, int64_t n, double v[METRICS], struct err *err);

#endif
