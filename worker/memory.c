/* memory.c - see memory.h. */
#include "worker/memory.h"

#include <errno.h>
#include <stdio.h>

/* Seconds per token relative to a pass that keeps everything, dequantises once and has
 * endless micro-batches; reference performance 2a, 2b (computed there, not measured):
 * a layer computed again costs half of what forward and backward through a frozen base
 * cost; dequantising for each product 2.3 % at 8,192 tokens; what is paid once for a
 * micro-batch, launches and products of few rows, 0.8 % at 8,192. */
static const double recompute_cost = 0.5, per_use_cost = 188, batch_cost = 64;

enum { LOGITS_GPU = 256 << 20 };

static const int64_t budgets[] = {8192, 6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 256, 1};

struct engine_opts memory_engine(const struct memory_ask *a, const struct memory_plan *m)
{
    return (struct engine_opts){
        .ops = a->ops,
        .spec = a->spec,
        .recompute = m->recompute,
        .per_use = m->per_use,
        .logits_bytes = m->logits_bytes,
        .page = a->page,
        .params = a->adapter.n,
        .max_tokens = m->plan.max_tokens,
        .max_head = m->plan.max_head,
        .max_seqs = m->plan.max_seqs,
        .max_positions = m->plan.max_positions,
    };
}

/* What lies beside the engine, where the device's memory is the host's as well. */
static void set_host_bytes(const struct memory_ask *a, struct memory_plan *m)
{
    const struct plan *p = &m->plan;
    const bool gang = a->spec->devices > 1;
    const size_t params = (size_t)a->adapter.n * sizeof(float);

    m->eight = a->adapter.optim == SPEC_ADAMW_8BIT;
    m->adapter = 2 * params + moments_device_bytes(&a->adapter); /* p, g and the moments */
    if (a->gpu) {
        m->adapter += gang && !a->joined ? params : 0; /* what the others send of their shards */
        /* two small buffers; what rounding up the adapter's own takes */
        m->rest = (a->page > 1 ? (m->eight ? 12 : 7) : 2) * (a->page > 256 ? a->page : 256);
        m->process = a->code;
        return;
    }
    /* the gradient, and the image of a checkpoint, on the host */
    m->adapter += (gang ? params : 0) + moments_image_bytes(&a->adapter);
    /* log-probs and statistics, coefficients and hits of a micro-batch; ids, reference rows */
    m->rest = 6 * (size_t)p->max_head * sizeof(float) +
              (size_t)(p->train_tokens + p->eval_tokens) * 3 * sizeof(float) +
              (size_t)(p->n_train + p->n_eval) * sizeof(struct example);
    m->process = MEMORY_PROCESS_BYTES;
}

static int measure(const struct memory_ask *a, struct memory_plan *m)
{
    const struct engine_opts o = memory_engine(a, m);
    const int r = engine_plan_bytes(&o, a->config, &m->engine);

    set_host_bytes(a, m);
    m->need = m->engine.total + m->adapter + m->rest + m->process;
    return r;
}

/* The fewest layers to compute again; false: not even all of them help. */
static bool fit(const struct memory_ask *a, struct memory_plan *m)
{
    int64_t low = 0, high = m->layers;

    m->recompute = high;
    if (measure(a, m) < 0 || m->need > a->free)
        return false;
    while (low < high) {
        m->recompute = low + (high - low) / 2;
        if (measure(a, m) == 0 && m->need <= a->free)
            high = m->recompute;
        else
            low = m->recompute + 1;
    }
    m->recompute = high;
    return measure(a, m) == 0;
}

static double cost(const struct memory_plan *m)
{
    const double tokens = (double)m->plan.max_tokens;

    return 1 + recompute_cost * (double)m->recompute / (double)m->layers +
           ((m->per_use ? per_use_cost : 0) + batch_cost) / tokens;
}

/* Everything for one size of micro-batch; the better one stays in *best. */
static int try_budget(const struct memory_ask *a, int64_t budget, struct memory_plan *best,
                      bool *found, struct err *err)
{
    struct spec spec = *a->spec;
    struct memory_plan m = {.layers = a->config->layers,
                            .free = a->free,
                            .sharing = a->sharing,
                            .gpu = a->gpu,
                            .in_4bit = a->spec->load_in_4bit,
                            .logits_bytes = a->gpu ? LOGITS_GPU : 0};

    spec.token_budget = budget;
    const int r = plan_make(&spec, a->data, a->frozen_budget, &m.plan, err);
    for (int per_use = 0; r == 0 && per_use <= (a->gpu && a->spec->load_in_4bit); per_use++) {
        m.per_use = per_use;
        if (!fit(a, &m) || (*found && cost(&m) >= cost(best)))
            continue;
        *best = m;
        *found = true;
    }
    return r;
}

/* The least this job can take, for the sentence that refuses it. */
static int refuse(const struct memory_ask *a, int64_t asked, struct err *err)
{
    struct memory_plan least = {.layers = a->config->layers,
                                .recompute = a->config->layers,
                                .per_use = a->gpu && a->spec->load_in_4bit,
                                .logits_bytes = a->gpu ? LOGITS_GPU : 0};
    struct memory_ask free = *a;
    struct spec spec = *a->spec;
    struct memory_plan fits;
    char hint[160] = "";

    spec.token_budget = asked > 0 ? asked : 1; /* examples are whole: as few as one */
    int r = plan_make(&spec, a->data, a->frozen_budget, &least.plan, err);
    if (r == 0)
        r = measure(a, &least);
    if (r < 0)
        return r;
    spec.token_budget = 0;
    free.spec = &spec;
    free.frozen_budget = 0;
    if ((asked > 0 || a->frozen_budget > 0) && memory_choose(&free, &fits, err) == 0)
        snprintf(hint, sizeof hint, "; token_budget: %lld would fit%s",
                 (long long)fits.plan.token_budget,
                 a->frozen_budget > 0 ? " (with bitwise: false: the checkpoint fixed another)"
                                      : "");
    else if (!a->spec->load_in_4bit && a->gpu)
        snprintf(hint, sizeof hint,
                 "; load_in_4bit: true needs less, so does a smaller max_length");
    else
        snprintf(hint, sizeof hint, "; a smaller max_length, lora_r or model needs less");
    return err_set(err, -ENOMEM,
                   "the job needs at least %zu MiB of the device (weights %zu, a micro-batch of "
                   "%lld tokens %zu, adapter %zu), there are %zu MiB free%s",
                   (least.need >> 20) + 1, least.engine.weights >> 20,
                   (long long)least.plan.max_tokens,
                   (least.need - least.engine.weights - least.adapter - least.process) >> 20,
                   least.adapter >> 20, a->free >> 20, hint);
}

int memory_choose(const struct memory_ask *a, struct memory_plan *ret, struct err *err)
{
    const int64_t fixed = a->frozen_budget > 0 ? a->frozen_budget : a->spec->token_budget;
    bool found = false;
    int r = 0;

    if (fixed > 0)
        r = try_budget(a, fixed, ret, &found, err);
    for (size_t i = a->gpu ? 0 : 4; fixed == 0 && r == 0 && i < sizeof budgets / sizeof *budgets;
         i++)
        r = try_budget(a, budgets[i], ret, &found, err);
    return r < 0 || found ? r : refuse(a, fixed, err);
}

/* "3.86 GB", "651 MB": one of a few buffers that a line needs at once. */
static const char *bytes_text(size_t bytes, char text[16])
{
    if (bytes >= 1000000000)
        snprintf(text, 16, "%.2f GB", (double)bytes / 1e9);
    else
        snprintf(text, 16, "%.1f MB", (double)bytes / 1e6);
    return text;
}

void memory_text(const struct memory_plan *m, char *text, size_t size)
{
    char layers[64] = "all activations kept", b[6][16], process[32] = "", share[40] = "";

    if (m->recompute > 0)
        snprintf(layers, sizeof layers, "%lld of %lld layers computed again",
                 (long long)m->recompute, (long long)m->layers);
    if (m->sharing > 1)
        snprintf(share, sizeof share, " (1/%d of this machine's)", m->sharing);
    if (m->process > 0)
        snprintf(process, sizeof process, ", %s %s", m->gpu ? "kernels" : "process",
                 bytes_text(m->process, b[5]));
    snprintf(text, size,
             "%s of %s free%s: weights %s%s, micro-batches of %lld tokens %s (%s), adapter %s%s%s",
             bytes_text(m->need, b[0]), bytes_text(m->free, b[1]), share,
             bytes_text(m->engine.weights, b[2]),
             m->per_use ? " (dequantised for each product)" : "", (long long)m->plan.max_tokens,
             bytes_text(m->need - m->engine.weights - m->adapter - m->process, b[3]), layers,
             bytes_text(m->adapter, b[4]), m->eight ? " (8-bit moments)" : "", process);
}
