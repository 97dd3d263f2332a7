/* deal.h - a set of examples shared out between ranks and cut into micro-batches, and
 * the slots in which their sums come together again. */
#ifndef WORKER_DEAL_H
#define WORKER_DEAL_H

#include <stdint.h>

#include "worker/batch.h"
#include "worker/loss.h"

struct deal {
    int n;                       /* examples of the set                              */
    int64_t *tokens;             /* (n) of each, a pair's prompt once                */
    int64_t targets[2];          /* target tokens of each half over all of them      */
    int n_mine;                  /* this rank's share, longest first:                */
    const struct example **mine; /* (n_mine)                                         */
    uint32_t *mine_idx;          /* (n_mine) ... in the whole set `v`                */
    struct batch *batches;       /* of mine; step_index is the place among the n     */
    int n_batches;
    const float **ref; /* (n) scratch: reference rows of a micro-batch               */
    double *local;     /* (n * LOSS_SLOTS) scratch                                   */
    double *slots;     /* (n * LOSS_SLOTS, then `extra`) zero until put              */
};

/* v[idx[0..n)], or v[0..n) when idx is NULL. extra: doubles behind the slots.
 * Returns 0, -ENOMEM, -E2BIG. deal_fini also after a failure. */
int deal_init(struct deal *d, const struct example *v, const uint32_t *idx, int n, uint32_t rank,
              uint32_t ranks, int64_t budget, int extra);
void deal_fini(struct deal *d);

/* Moves local (as loss_batch filled it for b) to the examples' places in slots. */
void deal_put(struct deal *d, const struct batch *b);

#endif
