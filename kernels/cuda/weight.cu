/* weight.cu - frozen weights: in the compute dtype, or in 4 bits and dequantised for
 * each product.
 *
 * A context has two slots for dequantised matrices and a second stream that fills
 * them. A hint (cuda_weight_soon) fills one while the products of the other run;
 * events order a slot's filling behind the last product that read it, and a product
 * behind the filling. Both ways run the same kernel over the same codes: the same bits. */
#include "load.cuh"
#include "quant.cuh"

#include "../quant4.h"

#include <stdlib.h>
#include <string.h>

static size_t dense_bytes(const kn_weight_desc *d, kn_dtype compute)
{
    const int64_t ext = cuda_ext(d->lora_cols);
    int64_t n = 0;

    for (int i = 0; i < d->n_parts; i++)
        n += d->parts[i].n;
    return (size_t)(n + ext) * (size_t)(cuda_round(d->k) + ext) * cuda_size(compute);
}

static bool stays_small(const kn_weight_desc *d)
{
    return d->per_use && d->quant != KN_QUANT_NONE;
}

size_t cuda_weight_bytes(const kn_weight_desc *d, kn_dtype compute)
{
    size_t bytes = 0;
    cuda_quant4 q;

    if (!stays_small(d))
        return dense_bytes(d, compute);
    for (int i = 0; i < d->n_parts; i++)
        bytes += cuda_quant4_layout(&q, d->parts[i].n * d->k, d->quant, d->double_quant, NULL);
    return bytes;
}

size_t cuda_slot_bytes(const kn_weight_desc *d, kn_dtype compute)
{
    return stays_small(d) ? dense_bytes(d, compute) : 0;
}

/* Both slots hold at least so much; what they held is gone if they grow. */
static int reserve_slots(kn_ctx *ctx, size_t bytes)
{
    for (int i = 0; i < CUDA_SLOTS; i++) {
        cuda_slot *s = &ctx->slots[i];
        int r;
        if (bytes <= s->buffer.bytes)
            continue;
        s->holds = NULL;
        s->waiting = false;
        r = cuda_reserve(&s->buffer, bytes);
        if (r)
            return r;
    }
    return 0;
}

static cuda_slot *slot_of(kn_ctx *ctx, const kn_weight *w)
{
    for (int i = 0; i < CUDA_SLOTS; i++) {
        if (ctx->slots[i].holds == w)
            return &ctx->slots[i];
    }
    return NULL;
}

/* The slot that was used longest ago; one that was filled on a hint and not yet used
 * only if nothing else is left and `must`. */
static cuda_slot *slot_free(kn_ctx *ctx, bool must)
{
    cuda_slot *best = NULL;

    for (int i = 0; i < CUDA_SLOTS; i++) {
        cuda_slot *s = &ctx->slots[i];
        if (s->waiting && !must)
            continue;
        if (!best || (best->waiting && !s->waiting) ||
            (best->waiting == s->waiting && s->turn < best->turn))
            best = s;
    }
    return best;
}

static int fill_slot(kn_ctx *ctx, cuda_slot *s, const kn_weight *w)
{
    const cudaStream_t stream = ctx->without & CUDA_SIDE ? ctx->stream : ctx->side;
    char *to = (char *)s->buffer.p;
    int r = cuda_error(cudaStreamWaitEvent(stream, s->used, 0));

    if (!r)
        r = cuda_load_wait(ctx);
    s->holds = NULL;
    for (int i = 0; i < w->n_parts && r == 0; i++) {
        r = cuda_quant4_expand(stream, &w->parts[i], to, w->compute, w->ld, w->k, w->loaded);
        to += (size_t)(w->part_n[i] * w->ld) * cuda_size(w->compute);
    }
    if (!r)
        r = cuda_error(cudaEventRecord(s->filled, stream));
    if (!r)
        s->holds = w;
    return r;
}

int cuda_weight_soon(kn_ctx *ctx, const kn_weight *w)
{
    cuda_slot *s;
    int r;

    if (!w->per_use || slot_of(ctx, w))
        return 0;
    s = slot_free(ctx, false);
    if (!s)
        return 0;
    r = fill_slot(ctx, s, w);
    s->waiting = r == 0;
    return r;
}

int cuda_weight_take(kn_ctx *ctx, const kn_weight *w, kn_weight *ret)
{
    cuda_slot *s;
    int r;

    *ret = *w;
    if (!w->per_use)
        return 0;
    s = slot_of(ctx, w);
    if (!s) {
        s = slot_free(ctx, true);
        r = fill_slot(ctx, s, w);
        if (r)
            return r;
    }
    s->waiting = false;
    s->turn = ++ctx->turn;
    ret->p = s->buffer.p;
    return cuda_error(cudaStreamWaitEvent(ctx->stream, s->filled, 0));
}

int cuda_weight_give(kn_ctx *ctx, const kn_weight *w)
{
    cuda_slot *s = w->per_use ? slot_of(ctx, w) : NULL;

    return s ? cuda_error(cudaEventRecord(s->used, ctx->stream)) : 0;
}

/* What a part in 4 bits needs beside its own memory while it is loaded: the exact scales,
 * and the 4-bit form when it is not kept. */
static int part_scratch(kn_ctx *ctx, const kn_weight_desc *d, int part, const kn_weight *w,
                        cuda_quant4 *q, float **ret_absmax)
{
    const int64_t n = d->parts[part].n * d->k;
    const size_t form = cuda_quant4_layout(q, n, d->quant, d->double_quant, NULL);
    const size_t scales = ((size_t)q->blocks * sizeof(float) + 255) / 256 * 256;
    const int r = cuda_reserve(&ctx->load.scratch, scales + (w->per_use ? 0 : form));

    *ret_absmax = (float *)ctx->load.scratch.p;
    if (w->per_use)
        *q = w->parts[part];
    else if (!r)
        cuda_quant4_layout(q, n, d->quant, d->double_quant, (char *)ctx->load.scratch.p + scales);
    return r;
}

/* One part, a chunk at a time: into 4 bits when that is asked for, and from there (or
 * straight) into rows of the dense matrix at `to`, or not. Nothing waits for the device. */
static int load_part(kn_ctx *ctx, const kn_weight_desc *d, int part, kn_weight *w, char *to)
{
    const kn_weight_part *p = &d->parts[part];
    const int64_t n = p->n * d->k, step = CUDA_CHUNK / (int64_t)cuda_size(p->dtype);
    const bool small = d->quant != KN_QUANT_NONE;
    float *absmax = NULL;
    cuda_quant4 q = {};
    int r = small ? part_scratch(ctx, d, part, w, &q, &absmax) : 0;

    static_assert(CUDA_CHUNK / 4 % KN_Q4_BLOCK == 0, "a chunk ends a block");
    for (int64_t first = 0; first < n && !r; first += step) {
        cuda_source s = {NULL, p->dtype, d->load_dtype, n - first < step ? n - first : step};
        void *at = NULL;
        r = cuda_load_chunk(ctx, (const char *)p->data + (size_t)first * cuda_size(p->dtype),
                            (size_t)s.n * cuda_size(p->dtype), &at);
        s.p = at;
        if (!r)
            r = small ? cuda_quant4_piece(ctx->stream, &q, &s, first, absmax)
                      : cuda_fill_rows(ctx->stream, &s, first, to, w->compute, w->ld, w->k);
        if (!r)
            r = cuda_load_used(ctx);
    }
    if (!r && small)
        r = cuda_quant4_end(ctx->stream, &q, absmax, NULL);
    if (!r && small && !w->per_use)
        r = cuda_quant4_expand(ctx->stream, &q, to, w->compute, w->ld, w->k, w->loaded);
    return r;
}

static int load_parts(kn_ctx *ctx, const kn_weight_desc *d, kn_weight *w)
{
    char *to = (char *)w->p, *store;
    int r = cuda_take(ctx, cuda_weight_bytes(d, ctx->compute), &w->store);

    if (r)
        return r;
    store = (char *)w->store;
    if (!w->per_use)
        to = (char *)(w->p = w->store);
    for (int i = 0; i < d->n_parts && r == 0; i++) {
        if (w->per_use)
            store += cuda_quant4_layout(&w->parts[i], d->parts[i].n * d->k, d->quant,
                                        d->double_quant, store);
        r = load_part(ctx, d, i, w, to);
        if (to)
            to += (size_t)(d->parts[i].n * w->ld) * cuda_size(w->compute);
    }
    if (!r)
        r = cuda_load_done(ctx);
    if (!r && w->per_use)
        r = reserve_slots(ctx, cuda_slot_bytes(d, ctx->compute));
    return r;
}

int cuda_weight_open(kn_ctx *ctx, const kn_weight_desc *d, kn_weight **ret)
{
    int r = kn_check_weight(d);
    kn_weight *w;

    for (int i = 0; r == 0 && i < d->n_parts; i++)
        r = d->parts[i].data ? 0 : -EINVAL;
    if (r)
        return r;
    w = (kn_weight *)calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->k = d->k;
    w->n_parts = d->n_parts;
    w->compute = ctx->compute;
    w->loaded = d->load_dtype;
    w->no_backward = d->no_backward;
    w->per_use = stays_small(d);
    w->ext = cuda_ext(d->lora_cols);
    w->ld = cuda_round(d->k) + w->ext;
    for (int i = 0; i < d->n_parts; i++) {
        w->part_n[i] = d->parts[i].n;
        w->n += d->parts[i].n;
    }
    r = load_parts(ctx, d, w);
    if (r) {
        cuda_weight_close(ctx, w);
        return r;
    }
    *ret = w;
    return 0;
}

void cuda_weight_close(kn_ctx *ctx, kn_weight *w)
{
    cuda_slot *s = w ? slot_of(ctx, w) : NULL;

    if (s) {
        s->holds = NULL;
        s->waiting = false;
    }
    if (w)
        cuda_free(ctx, w->store); /* waits for what still reads it */
    free(w);
}
