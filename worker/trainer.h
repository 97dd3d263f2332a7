/* trainer.h - everything one rank trains with: opened once, then steps.
 *
 * One thread per trainer; several trainers in one process (tests) share nothing
 * but the collective's meeting place. */
#ifndef WORKER_TRAINER_H
#define WORKER_TRAINER_H

#include "kernels/kernels.h"
#include "worker/coll.h"
#include "worker/dataset.h"
#include "worker/engine.h"
#include "worker/lora.h"
#include "worker/memory.h"
#include "worker/metrics.h"
#include "worker/plan.h"
#include "worker/refcache.h"
#include "worker/sampler.h"

/* What happens before the first step, in its order. */
enum trainer_stage {
    STAGE_DEVICE,  /* the backend's module and its context                            */
    STAGE_MODEL,   /* headers of the weights                                          */
    STAGE_DATA,    /* tokenizer, rows into tokens                                     */
    STAGE_ADAPTER, /* its start, on the device                                        */
    STAGE_JOIN,    /* the ranks' devices                                              */
    STAGE_KERNELS, /* a GPU's: onto the device, by a first pass (rehearse)            */
    STAGE_PLAN,
    STAGE_WEIGHTS, /* from the files onto the device, and the memory of a step        */
    TRAINER_STAGES
};

struct trainer {
    const struct spec *spec; /* borrowed */
    struct coll *coll;       /* borrowed */
    uint32_t rank, ranks;
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    struct kn_info info;
    int threads;
    struct model *model;
    const struct dataset *data;
    struct dataset *own_data; /* data, when trainer_open read it                     */
    struct adapter *adapter;
    struct engine *engine; /* NULL until trainer_plan */
    struct memory_plan memory;
    struct plan plan;  /* memory.plan */
    uint32_t sharing;  /* ranks that the host's memory is for; 1 on a GPU             */
    size_t free;       /* the device's, before anything of ours lay there; the least of
                          all ranks'                                                   */
    size_t page, code; /* memory_ask's, likewise                                      */
    double took[TRAINER_STAGES], lap; /* seconds; when the last of them ended        */
    struct sampler sampler;
    struct refcache ref_train, ref_eval;

    struct head_out head;       /* room for one micro-batch                        */
    float *coef;                /* (plan.max_head)                                 */
    float *grad;                /* host (adapter->n); ranks > 1                    */
    struct kn_sweep *sweep;     /* device */
    struct kn_adamw_step *adam; /* device */
};

struct trainer_opts {
    const struct spec *spec;
    const char *backend;
    int threads;
    struct coll *coll;          /* NULL: one rank                                    */
    const struct dataset *data; /* read already, borrowed; NULL: read the spec's     */
    const char *uuid;           /* GPU: the one this rank was given; NULL: the first  */
    uint32_t as_of;             /* without coll: plans as one of so many ranks on this host */
};

/* Opens the backend, the model, the data set (equal on every rank, or an error) and
 * a fresh adapter. On failure *t is to be closed as well. */
int trainer_open(struct trainer *t, const struct trainer_opts *o, struct err *err);
/* Plans the run and its memory, equally on all ranks, and opens the engine.
 * frozen_budget: plan_make's. */
int trainer_plan(struct trainer *t, int64_t frozen_budget, struct err *err);
void trainer_close(struct trainer *t);

/* The adapter's parameters and moments (moments.h's image) to and from the host. */
size_t trainer_state_bytes(const struct trainer *t);
int trainer_state_get(const struct trainer *t, void *image, struct err *err);
int trainer_state_set(struct trainer *t, const void *image, struct err *err);

/* What the planner is asked for this trainer. */
struct memory_ask trainer_ask(const struct trainer *t, int64_t frozen_budget);
/* After -ENOMEM: the planner again, with what there really is; its answer goes behind
 * the sentence in err. */
void trainer_would_fit(const struct trainer *t, struct err *err);

/* Memory held now, to be held against memory.need: on a GPU since trainer_open; on a CPU by
 * the process. */
int trainer_held(const struct trainer *t, size_t *ret, struct err *err);
/* "device=0.31 model=0.01 ...", seconds: one line for a log. */
void trainer_stages_text(const struct trainer *t, char *text, size_t size);

/* True when a training pass draws dropout masks. */
bool trainer_dropout(const struct spec *spec);

#endif
