/* vec_logprob.c - log-probabilities of a chunk of logits, rows of one call.
 *
 * Sums over the vocabulary run in two levels, 32 vectors to a partial sum, so
 * that rounding grows with 32 + V / (32 VW) terms and not with V / VW. */
#include <math.h>

#include "vec.h"

enum { LEVEL = 32 };

struct logprob_sums {
    vf e, e2, z, ez;
};

static void add_sums(struct logprob_sums *to, struct logprob_sums *from)
{
    to->e += from->e;
    to->e2 += from->e2;
    to->z += from->z;
    to->ez += from->ez;
    *from = (struct logprob_sums){0};
}

static float row_max(const float *z, int64_t n)
{
    vf max = vf_set(-INFINITY);
    int64_t c = 0;

    for (; c + VW <= n; c += VW)
        max = vf_max(vf_load(z + c), max);
    float m = vf_largest(max);
    for (; c < n; c++)
        m = z[c] > m ? z[c] : m;
    return m;
}

static struct logprob_sums row_sums(const float *z, int64_t n, float max)
{
    struct logprob_sums all = {0}, part = {0};
    const vi lanes = vi_lanes();
    int count = 0;

    for (int64_t c = 0; c < n; c += VW) {
        const vf v = vf_get(z, c, n - c, KN_F32);
        vf e = vf_exp(v - vf_set(max));
        if (n - c < VW)
            e = vf_select(lanes < (vi){0} + (int32_t)(n - c), e, (vf){0});
        part.e += e;
        part.e2 = vf_fma(e, e, part.e2);
        part.z += v;
        part.ez = vf_fma(e, v, part.ez);
        if (++count == LEVEL) {
            add_sums(&all, &part);
            count = 0;
        }
    }
    add_sums(&all, &part);
    return all;
}

static bool is_argmax(const float *z, int64_t target, float max)
{
    if (z[target] != max)
        return false;
    for (int64_t c = 0; c < target; c++) {
        if (z[c] == max)
            return false;
    }
    return true;
}

/* Ascending: a narrower result never overtakes what is still read. */
static void row_grad(float *z, int64_t n, int64_t target, float lse, enum kn_dtype dtype)
{
    const float at_target = 1.0f - expf(z[target] - lse);

    for (int64_t c = 0; c < n; c += VW) {
        const vf v = vf_get(z, c, n - c, KN_F32);
        vf_put(z, c, n - c, dtype, (vf){0} - vf_exp(v - vf_set(lse)));
    }
    if (dtype == KN_BF16)
        ((bf16 *)z)[target] = bf16_from_f32(at_target);
    else
        z[target] = at_target;
}

void VNAME(vec_logprob)(const struct kn_logprob *a, int64_t r0, int64_t r1)
{
    const int64_t n = a->z.cols;

    for (int64_t r = r0; r < r1; r++) {
        float *z = vec_row(&a->z, r);
        const int64_t target = a->target[r];
        const float max = row_max(z, n);
        const struct logprob_sums s = row_sums(z, n, max);
        const float sum = vf_sum(s.e), lse = max + logf(sum);

        if (a->lse)
            a->lse[r] = lse;
        if (a->logp) /* z - max is exact where it matters most: near the maximum */
            a->logp[r] = (z[target] - max) - logf(sum);
        if (a->sum_z)
            a->sum_z[r] = vf_sum(s.z);
        if (a->sum_pz)
            a->sum_pz[r] = vf_sum(s.ez) / sum;
        if (a->lse2)
            a->lse2[r] = 2.0f * max + logf(vf_sum(s.e2));
        if (a->hit)
            a->hit[r] = is_argmax(z, target, max);
        if (a->grad)
            row_grad(z, n, target, lse, a->grad_dtype);
    }
}
