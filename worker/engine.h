/* engine.h - a frozen base model in a backend's memory, and the passes over it.
 *
 * Forward: embed, layers, head rows in chunks (no logits tensor), per-row
 * log-probs. Backward: coefficients per head row in, adapter gradients out.
 * One engine serves any adapter, or none; nothing of an adapter is kept. */
#ifndef WORKER_ENGINE_H
#define WORKER_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "proto/err.h"
#include "proto/spec.h"
#include "worker/batch.h"
#include "worker/lora.h"
#include "worker/model.h"

struct engine;

struct engine_opts {
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    const struct model *model; /* borrowed until engine_close                        */
    const struct spec *spec;   /* quantisation, dtypes, lora_r (the largest to come)  */
    int64_t recompute;         /* layers, from the first on, whose activations the
                                  backward makes again instead of keeping them: the
                                  same bits, less memory                            */
    bool per_use;              /* 4-bit weights are dequantised for each product     */
    size_t logits_bytes;       /* logits there may be at a time; 0: what a processor's
                                  cache holds                                       */
    int64_t params;            /* of the adapter; only for the plan                  */
    size_t page;               /* kn_info's; 0 as 1; only for the plan               */
    int64_t max_tokens;        /* tokens of the largest micro-batch                  */
    int64_t max_head;          /* head rows of the largest micro-batch               */
    int max_seqs;
    int32_t max_positions;
};

/* Bytes an engine takes on the device, from arithmetic alone. */
struct engine_plan {
    size_t weights;     /* frozen linears and the head, in the backend's own form      */
    size_t tables;      /* embedding, norms, rotary table                              */
    size_t activations; /* kept from forward to backward                               */
    size_t scratch;     /* used within a pass                                          */
    size_t context;     /* what the backend itself comes to hold                       */
    size_t total;
    int64_t head_chunk; /* head rows whose logits exist at a time                      */
};
/* o->model and o->ctx are not looked at; config is the model's. -EINVAL: a size
 * that is not positive. */
int engine_plan_bytes(const struct engine_opts *o, const struct model_config *config,
                      struct engine_plan *ret);

/* Host arrays, n_head long each, filled by engine_forward. */
struct head_out {
    float *logp, *lse, *sum_z, *sum_pz;
    int32_t *hit;
    int64_t cap;
};
int head_out_reserve(struct head_out *h, int64_t n);
void head_out_free(struct head_out *h);

/* Loads, quantises and packs the base and allocates every buffer at once: after this
 * only the backend's own buffers may still grow (engine_plan.context). -ENOMEM: it
 * does not fit, err has the figures. */
int engine_open(const struct engine_opts *o, struct engine **ret, struct err *err);
void engine_close(struct engine *e);
size_t engine_bytes(const struct engine *e); /* device bytes held                    */

/* Runs the batch with adapter a (NULL: off). keep: a backward pass follows. drop:
 * dropout seed of this step, used when a->dropout > 0 and keep; 0: none. */
int engine_forward(struct engine *e, const struct batch *b, const struct adapter *a, bool keep,
                   uint64_t drop, struct head_out *out, struct err *err);

/* a->g += d loss / d parameters, where coef[i] (host, n_head) = d loss / d logp[i]
 * of the kept forward of the same batch. */
int engine_backward(struct engine *e, const struct batch *b, struct adapter *a, uint64_t drop,
                    const float *coef, struct err *err);

#endif
