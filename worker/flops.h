/* flops.h - the arithmetic a run has to do, from sizes alone. */
#ifndef WORKER_FLOPS_H
#define WORKER_FLOPS_H

#include <stdint.h>

#include "worker/dataset.h"
#include "worker/model.h"
#include "worker/plan.h"

/* Multiplications and additions of matrix products and attention over the training set once:
 * the prompt of a pair once, the head on target rows, gradients of the frozen base's inputs and
 * of the adapter (params elements), nothing for pointwise work. */
struct flops {
    double train;     /* forward and backward                                         */
    double again;     /* a forward of all layers: of which those computed again take a part */
    double reference; /* DPO: once per example of a run                               */
};

void flops_count(const struct model_config *c, const struct dataset *d, int64_t params,
                 struct flops *ret);

/* Of all ranks; recompute of c's layers are computed again. */
double flops_step(const struct flops *f, const struct plan *p, int64_t recompute, int64_t layers);
double flops_run(const struct flops *f, const struct plan *p, int64_t recompute, int64_t layers);

#endif
