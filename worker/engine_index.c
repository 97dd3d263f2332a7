/* engine_index.c - a micro-batch's index arrays: checked, laid out, sent to the device. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "worker/engine_impl.h"

int engine_batch_check(const struct engine *e, const struct batch *b, int64_t *ret_kv,
                       struct err *err)
{
    int64_t kv = 0, rows = 0;
    bool shared = false;

    if (b->n_tokens < 1 || b->n_tokens > e->max_tokens || b->n_head < 0 ||
        b->n_head > e->max_head || b->n_seqs < 1 || b->n_seqs > e->max_seqs)
        return err_set(err, -EINVAL,
                       "a micro-batch of %lld tokens, %lld head rows, %d sequences; the engine was "
                       "opened for %lld, %lld, %d",
                       (long long)b->n_tokens, (long long)b->n_head, b->n_seqs,
                       (long long)e->max_tokens, (long long)e->max_head, e->max_seqs);
    for (int i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *s = &b->seqs[i];
        if (s->row0 != rows || s->rows < 0 || s->prefix < 0 || s->prefix0 < 0 ||
            (int64_t)s->prefix0 + s->prefix > s->row0)
            return err_set(err, -EINVAL, "sequence %d of a micro-batch is out of order", i);
        rows += s->rows;
        kv += (int64_t)s->rows + s->prefix;
        shared |= s->prefix > 0;
    }
    if (rows != b->n_tokens || kv > e->max_kv)
        return err_set(err, -EINVAL, "the sequences of a micro-batch do not cover its tokens");
    for (int64_t i = 0; i < b->n_tokens; i++)
        if (b->ids[i] < 0 || b->ids[i] >= e->c.vocab || b->pos[i] < 0 ||
            b->pos[i] >= e->max_positions)
            return err_set(err, -EINVAL,
                           "token %d at position %d: the model has %lld tokens, the engine was "
                           "opened for %lld positions",
                           b->ids[i], b->pos[i], (long long)e->c.vocab,
                           (long long)e->max_positions);
    for (int64_t i = 0; i < b->n_head; i++)
        if (b->head_row[i] < 0 || b->head_row[i] >= b->n_tokens || b->head_target[i] < 0 ||
            b->head_target[i] >= e->c.vocab)
            return err_set(err, -EINVAL, "head row %lld of a micro-batch is out of range",
                           (long long)i);
    *ret_kv = shared ? kv : 0;
    return 0;
}

/* Where each array begins in a block at `base`; returns the block's bytes. */
static size_t index_lay(const struct batch *b, int64_t kv, char *base, struct engine_index *ix)
{
    const int64_t t = b->n_tokens, h = b->n_head;
    int32_t *at = (int32_t *)(base + 8 * t);

    ix->row_key = (uint64_t *)base;
    ix->ids = at;
    ix->pos = ix->ids + t;
    ix->cu_q = ix->pos + t;
    ix->cu_k = ix->cu_q + b->n_seqs + 1;
    ix->kv_idx = ix->cu_k + b->n_seqs + 1;
    ix->kv_start = ix->kv_idx + kv;
    ix->kv_back = ix->kv_start + t + 1;
    ix->head_row = ix->kv_back + kv;
    ix->head_target = ix->head_row + h;
    ix->head_start = ix->head_target + h;
    ix->head_back = ix->head_start + t + 1;
    return (size_t)((char *)(ix->head_back + h) - base);
}

/* start, back: for each of rows, which j have of[j] == row, ascending. */
static void invert(const int32_t *of, int64_t n, int64_t rows, int32_t *start, int32_t *back)
{
    memset(start, 0, (size_t)(rows + 1) * sizeof *start);
    for (int64_t j = 0; j < n; j++)
        start[of[j] + 1]++;
    for (int64_t r = 0; r < rows; r++)
        start[r + 1] += start[r];
    for (int64_t j = 0; j < n; j++)
        back[start[of[j]]++] = (int32_t)j;
    memmove(start + 1, start, (size_t)rows * sizeof *start); /* each stands at its end now */
    start[0] = 0;
}

static void index_fill(const struct batch *b, int64_t kv, const struct engine_index *ix,
                       struct kn_attn_shape *shape)
{
    int32_t rows = 0, keys_at = 0;

    memcpy(ix->row_key, b->row_key, (size_t)b->n_tokens * sizeof *ix->row_key);
    memcpy(ix->ids, b->ids, (size_t)b->n_tokens * sizeof *ix->ids);
    memcpy(ix->pos, b->pos, (size_t)b->n_tokens * sizeof *ix->pos);
    if (b->n_head > 0) {
        memcpy(ix->head_row, b->head_row, (size_t)b->n_head * sizeof *ix->head_row);
        memcpy(ix->head_target, b->head_target, (size_t)b->n_head * sizeof *ix->head_target);
    }
    invert(b->head_row, b->n_head, b->n_tokens, ix->head_start, ix->head_back);
    for (int i = 0; i < b->n_seqs; i++) {
        const struct batch_seq *s = &b->seqs[i];
        const int32_t n = s->prefix + s->rows;
        ix->cu_q[i] = rows;
        ix->cu_k[i] = keys_at;
        for (int32_t j = 0; kv > 0 && j < n; j++)
            ix->kv_idx[keys_at + j] = j < s->prefix ? s->prefix0 + j : s->row0 + j - s->prefix;
        rows += s->rows;
        keys_at += n;
        shape->max_q = s->rows > shape->max_q ? s->rows : shape->max_q;
        shape->max_k = n > shape->max_k ? n : shape->max_k;
    }
    ix->cu_q[b->n_seqs] = rows;
    ix->cu_k[b->n_seqs] = keys_at;
    if (kv > 0)
        invert(ix->kv_idx, kv, b->n_tokens, ix->kv_start, ix->kv_back);
}

int engine_index_send(struct pass *p)
{
    struct engine *e = p->e;
    const struct batch *b = p->b;
    struct engine_index host;

    const size_t bytes = index_lay(b, p->kv, e->host_index, &host);
    (void)index_lay(b, p->kv, e->index, &p->ix);
    p->shape = (struct kn_attn_shape){
        .cu_q = p->ix.cu_q,
        .cu_k = p->ix.cu_k,
        .n_seqs = b->n_seqs,
        .heads = (int)e->c.heads,
        .kv_heads = (int)e->c.kv_heads,
        .head_dim = (int)e->c.head_dim,
        .window = (int)e->c.sliding_window,
        .scale = (float)(1.0 / sqrt((double)e->c.head_dim)),
    };
    index_fill(b, p->kv, &host, &p->shape);
    if (b->n_head > 0)
        memcpy(e->host_head_back, host.head_back, (size_t)b->n_head * sizeof(int32_t));
    const int r = e->ops->copy(e->ctx, e->index, e->host_index, bytes, KN_TO_DEVICE);
    return r < 0 ? err_set(p->err, r, "copying a micro-batch: %s", strerror(-r)) : 0;
}
