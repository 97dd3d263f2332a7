/* rehearse.h - a pass on a GPU before anything is planned: what code takes of its memory. */
#ifndef WORKER_REHEARSE_H
#define WORKER_REHEARSE_H

#include "worker/engine.h"

/* CUDA puts a kernel's code onto the device when it is first launched, cuBLASLt's among them.
 * A forward and a backward pass over a few tokens through the base's first layer and its head,
 * in a context of its own, launch what training will: products are chosen by the matrix, never
 * by the rows. *ret is the memory that is gone afterwards although all of the pass's own went
 * back. 0 where there is too little memory for it: the planner says so better. */
int rehearse(const struct kn_ops *ops, struct kn_ctx *ctx, const char *uuid, struct model *model,
             struct adapter *adapter, const struct spec *spec, size_t *ret, struct err *err);

#endif
