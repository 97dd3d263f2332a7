/* test_batch.c - packing: every token once, every target predicted by the right row. */
#include "tests/support/test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker/batch.h"
#include "worker/rng.h"

enum { MOST = 24, LONGEST = 40 };

struct world {
    struct example e[MOST];
    const struct example *p[MOST];
    int32_t ids[MOST][3][LONGEST];
    int n;
};

static int32_t draw(uint64_t seed, uint64_t a, uint64_t b, uint64_t below)
{
    return (int32_t)rng_below(seed, RNG_SAMPLES, a, b, below);
}

/* Pairs and single examples, short and long, with and without a prompt. */
static void make(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->n = 1 + draw(seed, 0, 0, MOST);
    for (int i = 0; i < w->n; i++) {
        struct example *e = &w->e[i];
        const int kind = draw(seed, 1, (uint64_t)i, 4); /* 0: sft, 1: text, else a pair */

        e->ordinal = (uint64_t)i * 3 + 1;
        e->n_prompt = draw(seed, 2, (uint64_t)i, LONGEST);
        if (kind >= 2 && e->n_prompt == 0)
            e->n_prompt = 1;
        e->n_reply[0] = 1 + draw(seed, 3, (uint64_t)i, LONGEST - 1);
        e->n_reply[1] = kind >= 2 ? 1 + draw(seed, 4, (uint64_t)i, LONGEST - 1) : 0;
        e->prompt_trained = kind == 1;
        for (int k = 0; k < 3; k++)
            for (int t = 0; t < LONGEST; t++)
                w->ids[i][k][t] = draw(seed, 10 + (uint64_t)k, (uint64_t)(i * LONGEST + t), 1000);
        e->prompt = w->ids[i][0];
        e->reply[0] = w->ids[i][1];
        e->reply[1] = w->ids[i][2];
        w->p[i] = e;
    }
}

/* Token at position pos of prompt + reply[half]. */
static int32_t token_at(const struct example *e, int half, int32_t pos)
{
    return pos < e->n_prompt ? e->prompt[pos] : e->reply[half][pos - e->n_prompt];
}

/* The sequence that holds a row, and the tokens the row sees are those of
 * prompt + reply up to its position. */
static void check_row_context(const struct batch *b, const struct batch_seq *s, int32_t row,
                              const struct example *e, int half)
{
    const int32_t seen = s->prefix + (row - s->row0) + 1;

    assert_int_equal(b->pos[row], seen - 1);
    for (int32_t k = 0; k < seen; k++) {
        const int32_t r = k < s->prefix ? s->prefix0 + k : s->row0 + k - s->prefix;
        assert_int_equal(b->ids[r], token_at(e, half, k));
        assert_int_equal(b->pos[r], k);
    }
}

static const struct batch_seq *seq_of(const struct batch *b, int32_t row)
{
    for (int s = 0; s < b->n_seqs; s++)
        if (row >= b->seqs[s].row0 && row < b->seqs[s].row0 + b->seqs[s].rows)
            return &b->seqs[s];
    return NULL;
}

static void check_head(const struct batch *b)
{
    int64_t h = 0;

    for (int i = 0; i < b->n_examples; i++) {
        const struct example *e = b->examples[i];
        for (int half = 0; half < 2; half++) {
            const int64_t n = batch_example_targets(e, half);
            for (int64_t k = 0; k < n; k++, h++) {
                const int32_t total = e->n_prompt + e->n_reply[half];
                const int32_t pos = total - (int32_t)n + (int32_t)k - 1; /* of the predictor */
                const int32_t row = b->head_row[h];

                assert_int_equal(b->head_example[h], i);
                assert_int_equal(b->head_half[h], half);
                assert_int_equal(b->head_index[h], k);
                assert_int_equal(b->pos[row], pos);
                assert_int_equal(b->head_target[h], token_at(e, half, pos + 1));
                check_row_context(b, seq_of(b, row), row, e, half);
            }
        }
    }
    assert_int_equal(h, b->n_head);
}

/* Sequences tile the token buffer: every row is in exactly one. */
static void check_rows(const struct batch *b, bool share)
{
    int64_t tokens = 0;
    int32_t next = 0;

    for (int s = 0; s < b->n_seqs; s++) {
        assert_int_equal(b->seqs[s].row0, next);
        assert_true(b->seqs[s].rows > 0);
        next += b->seqs[s].rows;
        if (!share)
            assert_int_equal(b->seqs[s].prefix, 0);
    }
    assert_int_equal(next, b->n_tokens);
    for (int i = 0; i < b->n_examples; i++)
        tokens += batch_example_tokens(b->examples[i], share);
    assert_int_equal(tokens, b->n_tokens);
}

static void packs(void **state)
{
    static struct world w;

    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        const bool share = seed % 2 == 0;
        const int64_t budget = 1 + draw(seed, 5, 0, 400);
        int32_t step_index[MOST];
        struct batch *v;
        int n, next = 0;

        make(&w, seed);
        for (int i = 0; i < w.n; i++)
            step_index[i] = w.n - i;
        assert_int_equal(batch_pack(w.p, step_index, w.n, budget, share, &v, &n), 0);
        for (int m = 0; m < n; m++) {
            assert_true(v[m].n_examples >= 1);
            assert_true(v[m].n_tokens <= budget || v[m].n_examples == 1);
            for (int i = 0; i < v[m].n_examples; i++, next++) {
                assert_ptr_equal(v[m].examples[i], w.p[next]);
                assert_int_equal(v[m].step_index[i], step_index[next]);
            }
            check_rows(&v[m], share);
            check_head(&v[m]);
        }
        assert_int_equal(next, w.n);
        batch_free_all(v, n);
    }
}

/* Shared and unshared say the same of every target, and a token has one dropout key
 * wherever it lies. */
static void sharing_changes_nothing(void **state)
{
    static struct world w;

    (void)state;
    for (uint64_t seed = 1000; seed < 1100; seed++) {
        struct batch *a, *b;
        int na, nb;

        make(&w, seed);
        assert_int_equal(batch_pack(w.p, NULL, w.n, INT32_MAX, true, &a, &na), 0);
        assert_int_equal(batch_pack(w.p, NULL, w.n, INT32_MAX, false, &b, &nb), 0);
        assert_int_equal(na, 1);
        assert_int_equal(nb, 1);
        assert_int_equal(a->n_head, b->n_head);
        for (int64_t h = 0; h < a->n_head; h++) {
            assert_int_equal(a->head_target[h], b->head_target[h]);
            assert_int_equal(a->head_example[h], b->head_example[h]);
            assert_int_equal(a->head_half[h], b->head_half[h]);
            assert_int_equal(a->head_index[h], b->head_index[h]);
            assert_true(a->row_key[a->head_row[h]] == b->row_key[b->head_row[h]]);
        }
        batch_free_all(a, na);
        batch_free_all(b, nb);
    }
}

static void edges(void **state)
{
    static struct world w;
    struct batch *v;
    int n;

    (void)state;
    assert_int_equal(batch_pack(NULL, NULL, 0, 10, true, &v, &n), 0);
    assert_int_equal(n, 0);
    batch_free_all(v, n);
    make(&w, 1);
    assert_int_equal(batch_pack(w.p, NULL, w.n, 0, true, &v, &n), -EINVAL);
    batch_free_all(NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs),
        cmocka_unit_test(sharing_changes_nothing),
        cmocka_unit_test(edges),
    };

    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
