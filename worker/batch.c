/* batch.c - see batch.h. Next fit in the given order; one block of memory per micro-batch. */
#include "worker/batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool is_pair(const struct example *e)
{
    return e->n_reply[1] > 0;
}

int64_t batch_example_tokens(const struct example *e, bool share)
{
    int64_t n = (int64_t)e->n_prompt + e->n_reply[0];

    if (is_pair(e))
        n += (int64_t)e->n_reply[1] + (share ? 0 : e->n_prompt);
    return n;
}

int64_t batch_example_targets(const struct example *e, int half)
{
    if (half == 1 && !is_pair(e))
        return 0;
    if (half == 0 && e->prompt_trained) {
        const int64_t n = (int64_t)e->n_prompt + e->n_reply[0] - 1;
        return n > 0 ? n : 0;
    }
    /* The first token of a reply without a prompt has no row that predicts it. */
    return e->n_prompt > 0 || e->n_reply[half] == 0 ? e->n_reply[half] : e->n_reply[half] - 1;
}

/* What one micro-batch will hold, counted before anything is taken. */
struct sizes {
    int64_t tokens, head;
    int seqs, examples;
};

static int batch_new(const struct sizes *s, struct batch *ret)
{
    const size_t t = (size_t)s->tokens, h = (size_t)s->head, e = (size_t)s->examples;
    const size_t bytes = t * sizeof(uint64_t) + e * sizeof(struct example *) +
                         (2 * t + 4 * h + e) * sizeof(int32_t) +
                         (size_t)s->seqs * sizeof(struct batch_seq) + h;
    char *p = malloc(bytes > 0 ? bytes : 1);

    if (p == NULL)
        return -ENOMEM;
    /* By falling alignment; row_key stands first and is what is freed. */
    *ret = (struct batch){.n_tokens = s->tokens, .n_head = s->head};
    ret->row_key = (uint64_t *)p;
    p += t * sizeof(uint64_t);
    ret->examples = (const struct example **)p;
    p += e * sizeof(struct example *);
    ret->seqs = (struct batch_seq *)p;
    p += (size_t)s->seqs * sizeof(struct batch_seq);
    ret->ids = (int32_t *)p;
    ret->pos = ret->ids + t;
    ret->head_row = ret->pos + t;
    ret->head_target = ret->head_row + h;
    ret->head_example = ret->head_target + h;
    ret->head_index = ret->head_example + h;
    ret->step_index = ret->head_index + h;
    ret->head_half = (uint8_t *)(ret->step_index + e);
    return 0;
}

/* Where the next row, head row and sequence go while a micro-batch is filled. */
struct fill {
    struct batch *b;
    int32_t row;
    int64_t head;
};

static void put_tokens(struct fill *f, const struct example *e, const int32_t *ids, int32_t n,
                       int32_t pos0, int half)
{
    struct batch *b = f->b;

    for (int32_t i = 0; i < n; i++, f->row++) {
        b->ids[f->row] = ids[i];
        b->pos[f->row] = pos0 + i;
        b->row_key[f->row] =
            e->ordinal << 32 | (uint64_t)half << 31 | (uint64_t)(uint32_t)(pos0 + i);
    }
}

static void put_head(struct fill *f, int32_t row, int32_t target, int half, int32_t index)
{
    struct batch *b = f->b;

    b->head_row[f->head] = row;
    b->head_target[f->head] = target;
    b->head_example[f->head] = b->n_examples;
    b->head_half[f->head] = (uint8_t)half;
    b->head_index[f->head] = index;
    f->head++;
}

/* Head rows of one reply whose tokens begin at row reply0. prompt_row predicts its
 * first token; -1: there is none. */
static void put_reply_head(struct fill *f, const struct example *e, int half, int32_t prompt_row,
                           int32_t reply0, int32_t index)
{
    for (int32_t i = 0; i < e->n_reply[half]; i++) {
        const int32_t row = i == 0 ? prompt_row : reply0 + i - 1;
        if (row >= 0)
            put_head(f, row, e->reply[half][i], half, index++);
    }
}

static void put_seq(struct fill *f, int32_t row0, int32_t prefix0, int32_t prefix)
{
    f->b->seqs[f->b->n_seqs++] = (struct batch_seq){
        .row0 = row0, .rows = f->row - row0, .prefix0 = prefix0, .prefix = prefix};
}

static void put_example(struct fill *f, const struct example *e, int32_t step_index, bool share)
{
    struct batch *b = f->b;
    const int32_t p0 = f->row, np = e->n_prompt;
    int32_t index = 0;

    put_tokens(f, e, e->prompt, np, 0, 0);
    put_tokens(f, e, e->reply[0], e->n_reply[0], np, 0);
    put_seq(f, p0, 0, 0);
    if (e->prompt_trained)
        for (int32_t i = 1; i < np; i++)
            put_head(f, p0 + i - 1, e->prompt[i], 0, index++);
    put_reply_head(f, e, 0, np > 0 ? p0 + np - 1 : -1, p0 + np, index);

    if (is_pair(e)) {
        const int32_t r0 = f->row;
        int32_t last = np > 0 ? p0 + np - 1 : -1;

        if (!share && np > 0) {
            put_tokens(f, e, e->prompt, np, 0, 0); /* the same key: the same dropout mask */
            last = r0 + np - 1;
        }
        put_tokens(f, e, e->reply[1], e->n_reply[1], np, 1);
        put_seq(f, r0, share ? p0 : 0, share ? np : 0);
        put_reply_head(f, e, 1, last, f->row - e->n_reply[1], 0);
    }
    b->examples[b->n_examples] = e;
    b->step_index[b->n_examples] = step_index;
    b->n_examples++;
}

static void count_example(struct sizes *s, const struct example *e, bool share)
{
    s->tokens += batch_example_tokens(e, share);
    s->head += batch_example_targets(e, 0) + batch_example_targets(e, 1);
    s->seqs += is_pair(e) ? 2 : 1;
    s->examples++;
}

/* Examples from `first` on that fit into one micro-batch; at least one. */
static struct sizes next_fit(const struct example *const *examples, int first, int n,
                             int64_t budget, bool share)
{
    struct sizes s = {0};

    for (int i = first; i < n; i++) {
        if (i > first && s.tokens + batch_example_tokens(examples[i], share) > budget)
            break;
        count_example(&s, examples[i], share);
    }
    return s;
}

int batch_pack(const struct example *const *examples, const int32_t *step_index, int n,
               int64_t budget, bool share, struct batch **ret, int *ret_n)
{
    struct batch *v;
    int n_batches = 0, done = 0, r;

    if (n < 0 || budget <= 0)
        return -EINVAL;
    v = calloc(n > 0 ? (size_t)n : 1, sizeof *v);
    if (v == NULL)
        return -ENOMEM;
    while (done < n) {
        const struct sizes s = next_fit(examples, done, n, budget, share);
        struct fill f = {.b = &v[n_batches]};

        if (s.tokens > INT32_MAX) {
            r = -E2BIG;
            goto fail;
        }
        r = batch_new(&s, f.b);
        if (r < 0)
            goto fail;
        n_batches++;
        for (int i = 0; i < s.examples; i++, done++)
            put_example(&f, examples[done], step_index != NULL ? step_index[done] : done, share);
    }
    *ret = v;
    *ret_n = n_batches;
    return 0;

fail:
    batch_free_all(v, n_batches);
    return r;
}

void batch_free_all(struct batch *b, int n)
{
    if (b == NULL)
        return;
    for (int i = 0; i < n; i++)
        free(b[i].row_key);
    free(b);
}
