/* memory.h - the memory planner: what a rank's device will hold, chosen by arithmetic alone
 * before anything is allocated.
 *
 * It picks the micro-batch's size, how many layers compute their activations again in the
 * backward instead of keeping them, and whether 4-bit weights are dequantised once or for
 * each product: of what fits, that with the least predicted time. None of it but the
 * micro-batch changes a bit of a result, and that one only the order of sums. */
#ifndef WORKER_MEMORY_H
#define WORKER_MEMORY_H

#include "worker/engine.h"
#include "worker/moments.h"
#include "worker/plan.h"

/* Of a rank on a CPU, beside all that is counted: libraries' data, the kernels that oneDNN
 * compiles, rows as text. Measured (kn_info.held) with the bundled models: 3 to 4 MB. */
enum { MEMORY_PROCESS_BYTES = 4 << 20 };

struct memory_ask {
    const struct spec *spec;
    const struct kn_ops *ops;
    const struct model_config *config;
    const struct dataset *data;
    struct moments_shape adapter; /* lora_shape's                                   */
    bool gpu;                     /* device memory is not the host's                       */
    bool joined;                  /* what joins the ranks' devices lies there already       */
    size_t free;                  /* for this rank, before anything of it lies there       */
    size_t page;                  /* kn_info's; 0 as 1                                      */
    size_t code;                  /* a GPU's: what kernels' code takes (rehearse)           */
    int sharing;                  /* ranks among which the host's memory was divided; 0, 1: none */
    int64_t frozen_budget;        /* of the checkpoint resumed from; 0: none               */
};

struct memory_plan {
    struct plan plan;
    bool per_use;
    int64_t recompute, layers; /* the first `recompute` of the layers are not kept    */
    size_t logits_bytes;
    struct engine_plan engine;
    size_t adapter; /* parameters, gradient, moments and copies of them              */
    bool eight;     /* moments in 8 bits                                             */
    size_t rest;    /* buffers of a step, data                                       */
    size_t process; /* what any rank takes, whatever it trains: of the host's memory; of a
                       GPU's the kernels' code                                        */
    size_t need, free;
    int sharing; /* memory_ask's */
    bool gpu;    /* likewise     */
    bool in_4bit;
};

/* -ENOMEM: nothing fits; err has the figures and what would. -EINVAL as plan_make. */
int memory_choose(const struct memory_ask *a, struct memory_plan *ret, struct err *err);

/* The engine of a plan; ctx and model are the caller's to set. */
struct engine_opts memory_engine(const struct memory_ask *a, const struct memory_plan *m);

/* "weights 3.9 GB in 4 bits, ...": one line for people. */
void memory_text(const struct memory_plan *m, char *text, size_t size);

#endif
