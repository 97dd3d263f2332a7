/* step.c - see step.h. */
#include "worker/step.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "worker/deal.h"
#include "worker/rng.h"
#include "worker/schedule.h"

static uint64_t dropout_seed(const struct trainer *t, int64_t step)
{
    const struct kn_philox b = rng_at(t->spec->seed, RNG_DROPOUT, (uint64_t)step, 0);
    const uint64_t seed = (uint64_t)b.v[1] << 32 | b.v[0];

    return !trainer_dropout(t->spec) ? 0 : seed != 0 ? seed : 1; /* 0 means off */
}

/* Forward, loss, backward of one micro-batch; its slots go to their examples' places. */
static int micro_batch(struct trainer *t, struct deal *d, const uint32_t *idx,
                       const struct batch *b, const struct loss_opts *lo, uint64_t drop,
                       struct err *err)
{
    int r = engine_forward(t->engine, b, t->adapter, true, drop, &t->head, err);

    if (r < 0)
        return r;
    for (int i = 0; i < b->n_examples; i++)
        d->ref[i] =
            lo->method == SPEC_DPO ? refcache_get(&t->ref_train, idx[b->step_index[i]]) : NULL;
    r = loss_batch(lo, b, &t->head, d->ref, t->coef, d->local, err);
    if (r < 0)
        return r;
    deal_put(d, b);
    return engine_backward(t->engine, b, t->adapter, drop, t->coef, err);
}

/* The gradient goes from device to device, or through the hosts; with one rank it stays where it
 * is. */
static int gang_sum(struct trainer *t, struct deal *d, struct err *err)
{
    const size_t bytes = (size_t)t->adapter->n * sizeof *t->grad;
    int r;

    if (t->ranks == 1)
        return 0;
    if (coll_attached(t->coll))
        return coll_sum_device(t->coll, t->adapter->g, (size_t)t->adapter->n, d->slots,
                               (size_t)d->n * LOSS_SLOTS + t->ranks, err);
    r = t->ops->copy(t->ctx, t->grad, t->adapter->g, bytes, KN_TO_HOST);
    if (r == 0)
        r = t->ops->sync(t->ctx);
    if (r < 0)
        return err_set(err, r, "copying the gradient failed: %s", strerror(-r));
    r = coll_sum(t->coll, t->grad, (size_t)t->adapter->n, d->slots,
                 (size_t)d->n * LOSS_SLOTS + t->ranks, err);
    if (r < 0)
        return r;
    r = t->ops->copy(t->ctx, t->adapter->g, t->grad, bytes, KN_TO_DEVICE);
    return r < 0 ? err_set(err, r, "copying the gradient failed: %s", strerror(-r)) : 0;
}

static int update(struct trainer *t, int64_t step, double loss, struct step_result *ret,
                  struct err *err)
{
    const struct spec *s = t->spec;
    struct adapter *a = t->adapter;
    const double lr = s->learning_rate *
                      schedule_factor(s->lr_scheduler_type, step, t->plan.warmup, t->plan.steps);
    const struct kn_adamw_step adam = {
        .lr = (float)lr,
        .beta1 = (float)s->adam_beta1,
        .beta2 = (float)s->adam_beta2,
        .eps = (float)s->adam_epsilon,
        .weight_decay = (float)s->weight_decay,
        .max_grad_norm = (float)s->max_grad_norm,
        .bias1 = (float)(1 - pow(s->adam_beta1, (double)(step + 1))),
        .bias2 = (float)(1 - pow(s->adam_beta2, (double)(step + 1))),
    };
    struct kn_sweep sweep;
    int r = t->ops->copy(t->ctx, t->adam, &adam, sizeof adam, KN_TO_DEVICE);

    if (r == 0)
        r = t->ops->grad_sweep(t->ctx,
                               &(struct kn_grad_sweep){.g = a->g, .n = a->n, .sweep = t->sweep});
    if (r == 0 && isfinite(loss)) /* adamw itself does nothing about a bad gradient */
        r = moments_update(t->ops, t->ctx, &a->moments, a->g, t->sweep, t->adam);
    if (r == 0)
        r = t->ops->copy(t->ctx, &sweep, t->sweep, sizeof sweep, KN_TO_HOST);
    if (r == 0)
        r = t->ops->sync(t->ctx);
    if (r < 0)
        return err_set(err, r, "step %lld: the update failed: %s", (long long)step + 1,
                       strerror(-r));
    ret->learning_rate = lr;
    ret->grad_norm = sqrt(sweep.sum_sq);
    if (sweep.nonfinite != 0 || !isfinite(loss))
        return err_set(err, -EDOM,
                       "step %lld: %lld of %lld gradient values are not finite and the loss is %g; "
                       "this update was not applied; try a lower learning_rate",
                       (long long)step + 1, (long long)sweep.nonfinite, (long long)a->n, loss);
    return 0;
}

static void collect(const struct trainer *t, const struct deal *d, const uint32_t *idx,
                    struct step_result *ret)
{
    const double *flags = d->slots + (size_t)d->n * LOSS_SLOTS;

    metrics_mean(t->spec->method, d->slots, d->n, d->targets, ret->v);
    ret->examples = d->n;
    for (int i = 0; i < d->n; i++) {
        ret->tokens += d->tokens[i];
        ret->num_tokens += plan_num_tokens(&t->data->train[idx[i]]);
    }
    for (uint32_t k = 0; k < t->ranks; k++)
        if (flags[k] > ret->flags)
            ret->flags = (unsigned)flags[k];
}

/* All micro-batches of this rank's share: slots and the gradient are filled. */
static int passes(struct trainer *t, struct deal *d, const uint32_t *idx, int64_t step, bool fresh,
                  struct err *err)
{
    const uint64_t drop = dropout_seed(t, step);
    const struct loss_opts lo = {
        .method = t->spec->method,
        .beta = t->spec->beta,
        .divisor = t->spec->method == SPEC_DPO ? d->n : (double)d->targets[0],
        .vocab = t->model->config.vocab,
        .must_be_start = fresh && drop == 0,
    };
    int r = 0;

    if (lo.method == SPEC_DPO)
        r = refcache_fill(&t->ref_train, t->engine, d->mine_idx, d->n_mine, t->plan.token_budget,
                          &t->head, err);
    if (r < 0)
        return r;
    r = t->ops->zero(t->ctx, t->adapter->g, (size_t)t->adapter->n * sizeof *t->adapter->g);
    if (r < 0)
        return err_set(err, r, "step %lld: the device failed: %s", (long long)step + 1,
                       strerror(-r));
    for (int i = 0; r == 0 && i < d->n_batches; i++)
        r = micro_batch(t, d, idx, &d->batches[i], &lo, drop, err);
    return r;
}

int step_run_on(struct trainer *t, int64_t step, const uint32_t *idx, int n, unsigned flags,
                bool fresh, struct step_result *ret, struct err *err)
{
    struct deal d;
    int r = deal_init(&d, t->data->train, idx, n, t->rank, t->ranks, t->plan.token_budget,
                      (int)t->ranks);

    *ret = (struct step_result){0};
    if (r < 0)
        err_set(err, r, "step %lld: out of memory while packing", (long long)step + 1);
    if (r == 0)
        r = passes(t, &d, idx, step, fresh, err);
    if (r == 0) {
        d.slots[(size_t)n * LOSS_SLOTS + t->rank] = flags;
        r = gang_sum(t, &d, err);
    }
    if (r == 0) {
        collect(t, &d, idx, ret);
        r = update(t, step, ret->v[METRIC_LOSS], ret, err);
    }
    deal_fini(&d);
    return r;
}

int step_run(struct trainer *t, int64_t step, unsigned flags, bool fresh, struct step_result *ret,
             struct err *err)
{
    const uint32_t *idx;
    int n;

    sampler_step(&t->sampler, step, &idx, &n);
    return step_run_on(t, step, idx, n, flags, fresh, ret, err);
}
