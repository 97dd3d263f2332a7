/* plan.c - see plan.h. */
#include "worker/plan.h"

#include <errno.h>
#include <math.h>

#include "worker/batch.h"
#include "worker/sampler.h"
#include "worker/schedule.h"

enum { BUDGET_CPU = 2048 }; /* enough rows for the matrix products, few for the caches */

int64_t plan_num_tokens(const struct example *e)
{
    return batch_example_tokens(e, false);
}

int64_t plan_steps(const struct spec *spec, int64_t n_train)
{
    if (spec->max_steps > 0)
        return spec->max_steps;
    return (int64_t)ceil(spec->num_train_epochs *
                         (double)sampler_steps_per_epoch(n_train, spec->train_batch_size));
}

struct extent {
    int64_t longest, shortest, tokens;
    int32_t positions;
};

static void measure(const struct example *v, int64_t n, struct extent *x, int64_t *ret_tokens)
{
    for (int64_t i = 0; i < n; i++) {
        const int64_t t = batch_example_tokens(&v[i], true);

        x->longest = t > x->longest ? t : x->longest;
        x->shortest = t < x->shortest ? t : x->shortest;
        *ret_tokens += t;
        for (int h = 0; h < 2; h++)
            if (v[i].n_prompt + v[i].n_reply[h] > x->positions)
                x->positions = v[i].n_prompt + v[i].n_reply[h];
    }
}

int plan_make(const struct spec *spec, const struct dataset *data, int64_t frozen_budget,
              struct plan *ret, struct err *err)
{
    struct extent x = {.shortest = INT64_MAX};
    struct plan p = {.n_train = data->n_train, .n_eval = data->n_eval};
    int64_t per_batch, most;

    if (data->n_train <= 0)
        return err_set(err, -EINVAL, "train: no usable row is left to train on");
    if (spec->train_batch_size <= 0)
        return err_set(err, -EINVAL, "train_batch_size: %lld, must be at least 1",
                       (long long)spec->train_batch_size);
    measure(data->train, data->n_train, &x, &p.train_tokens);
    measure(data->eval, data->n_eval, &x, &p.eval_tokens);
    if (x.shortest <= 0)
        return err_set(err, -EINVAL, "the data set holds an example without tokens");

    p.batch = spec->train_batch_size;
    p.steps_per_epoch = sampler_steps_per_epoch(p.n_train, p.batch);
    p.steps = plan_steps(spec, p.n_train);
    p.epochs = (double)p.steps / (double)p.steps_per_epoch;
    p.warmup = schedule_warmup(spec, p.steps);

    p.token_budget = frozen_budget > 0        ? frozen_budget
                     : spec->token_budget > 0 ? spec->token_budget
                                              : BUDGET_CPU;
    if (frozen_budget > 0 && frozen_budget < x.longest)
        return err_set(err, -EINVAL,
                       "the checkpoint fixed micro-batches of %lld tokens, but an example of this "
                       "data set has %lld: the data changed since; use rerun, or --overwrite",
                       (long long)frozen_budget, (long long)x.longest);
    if (p.token_budget < x.longest)
        p.token_budget = x.longest; /* examples are never split (numerics.md 13) */
    if (p.token_budget > INT32_MAX / 2)
        return err_set(err, -EINVAL, "token_budget: %lld is more than %d",
                       (long long)p.token_budget, INT32_MAX / 2);
    /* A pass never holds more examples than a step or the evaluation set. */
    most = p.batch > p.n_eval ? p.batch : p.n_eval;
    p.max_tokens = p.token_budget / x.longest < most ? p.token_budget : most * x.longest;
    p.max_head = p.max_tokens; /* a target is a row of its own, shared prompts or not */
    per_batch = p.token_budget / x.shortest;
    if (per_batch > p.n_train + p.n_eval)
        per_batch = p.n_train + p.n_eval;
    p.max_seqs = (int)(2 * (per_batch > 0 ? per_batch : 1));
    p.max_positions = x.positions;
    *ret = p;
    return 0;
}
