/* loss.c - see loss.h. */
#include "worker/loss.h"

#include <errno.h>
#include <math.h>
#include <string.h>

double loss_dpo_sigmoid(double beta, double lr_c, double lr_r, double *ret_grad)
{
    const double x = beta * (lr_c - lr_r);
    const double e = exp(-fabs(x));

    /* -log sigmoid(x) without overflow; sigmoid(-x) likewise */
    *ret_grad = -beta * (x > 0 ? e / (1 + e) : 1 / (1 + e));
    return (x > 0 ? 0 : -x) + log1p(e);
}

/* Head rows [h0, h1) of one example, added up in their order. */
static void sum_example(const struct loss_opts *o, const struct batch *b,
                        const struct head_out *out, int64_t h0, int64_t h1, double *slot)
{
    for (int64_t h = h0; h < h1; h++) {
        const int half = b->head_half[h];

        slot[LOSS_LOGP_0 + half] += out->logp[h];
        slot[LOSS_LOGIT_0 + half] += (double)out->sum_z[h] / (double)o->vocab;
        slot[LOSS_ENTROPY] += (double)out->lse[h] - out->sum_pz[h];
        if (half == 0)
            slot[LOSS_HIT_0] += out->hit[h] != 0;
    }
}

static int pair(const struct loss_opts *o, const struct batch *b, int64_t h0, int64_t h1,
                const struct example *e, const float *ref, float *coef, double *slot,
                struct err *err)
{
    double rf[2] = {0, 0}, lr[2], grad;

    for (int64_t h = h0; h < h1; h++)
        rf[b->head_half[h]] += ref[h - h0];
    for (int i = 0; i < 2; i++)
        lr[i] = slot[LOSS_LOGP_0 + i] - rf[i];
    if (o->must_be_start && (lr[0] != 0 || lr[1] != 0))
        return err_set(err, -EDOM,
                       "step 0: the policy is its own reference, so every log-ratio must be 0, but "
                       "row %lld of training source %d has %.9g (chosen) and %.9g (rejected): the "
                       "backend's forward pass is not repeatable; nothing was trained",
                       (long long)e->row, e->source + 1, lr[0], lr[1]);
    slot[LOSS_SUM] = loss_dpo_sigmoid(o->beta, lr[0], lr[1], &grad);
    slot[LOSS_REWARD_0] = o->beta * lr[0];
    slot[LOSS_REWARD_1] = o->beta * lr[1];
    slot[LOSS_CORRECT] = slot[LOSS_REWARD_0] > slot[LOSS_REWARD_1];
    for (int64_t h = h0; coef != NULL && h < h1; h++)
        coef[h] = (float)((b->head_half[h] == 0 ? grad : -grad) / o->divisor);
    return 0;
}

int loss_batch(const struct loss_opts *o, const struct batch *b, const struct head_out *out,
               const float *const *ref, float *coef, double *slots, struct err *err)
{
    int64_t h0 = 0, h1;
    int r;

    memset(slots, 0, (size_t)b->n_examples * LOSS_SLOTS * sizeof *slots);
    for (int i = 0; i < b->n_examples; i++, h0 = h1) {
        double *slot = slots + (size_t)i * LOSS_SLOTS;

        for (h1 = h0; h1 < b->n_head && b->head_example[h1] == i;)
            h1++;
        sum_example(o, b, out, h0, h1, slot);
        if (o->method == SPEC_DPO) {
            r = pair(o, b, h0, h1, b->examples[i], ref[i], coef, slot, err);
            if (r < 0)
                return r;
            continue;
        }
        slot[LOSS_SUM] = -slot[LOSS_LOGP_0];
        for (int64_t h = h0; coef != NULL && h < h1; h++)
            coef[h] = (float)(-1.0 / o->divisor);
    }
    return 0;
}
