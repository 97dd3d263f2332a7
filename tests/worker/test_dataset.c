/* test_dataset.c - files to examples: what is kept, dropped, cut, drawn and refused. */
#include <errno.h>

#include "tests/support/temp_dir.h"
#include "tests/support/test.h"
#include "tests/support/test_data.h"

#include "worker/dataset.h"

struct fixture {
    struct temp_dir d;
    struct tokenizer *tok;
    struct spec spec;
};

static int set_up(void **state)
{
    struct fixture *f = test_calloc(1, sizeof *f);
    temp_dir_make(&f->d);
    assert_int_equal(tokenizer_open(test_data_path("tiny64"), &f->tok, NULL), 0);
    f->spec.method = SPEC_DPO;
    f->spec.max_length = 512;
    f->spec.completion_only_loss = true;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < f->spec.n_train; i++)
        free(f->spec.train[i].path);
    tokenizer_close(f->tok);
    temp_dir_remove(&f->d);
    test_free(f);
    return 0;
}

/* A training source with this text. */
static struct spec_source *add_source(struct fixture *f, const char *name, const char *text)
{
    struct spec_source *s = &f->spec.train[f->spec.n_train++];
    FILE *file = fopen(temp_dir_path(&f->d, name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
    s->path = strdup(temp_dir_path(&f->d, name));
    return s;
}

static struct dataset *open_set(const struct fixture *f)
{
    struct dataset *d = NULL;
    struct err err = {{0}};
    if (dataset_open(&f->spec, f->tok, tokenizer_vocab(f->tok), &d, &err))
        fail_msg("%s", err.text);
    return d;
}

static void expect_error(const struct fixture *f, int32_t vocab, const char *says)
{
    struct dataset *d = NULL;
    struct err err = {{0}};
    assert_int_equal(dataset_open(&f->spec, f->tok, vocab, &d, &err), -EINVAL);
    if (!strstr(err.text, says))
        fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

/* n rows of prompt/chosen/rejected, each with its number in it. */
static char *numbered_rows(int n)
{
    const size_t room = 96;
    char *s = malloc((size_t)n * room + 1);
    size_t at = 0;
    assert_non_null(s);
    for (int i = 0; i < n; i++)
        at += (size_t)snprintf(s + at, room,
                               "{\"prompt\":\"Q %d:\",\"chosen\":\" a %d\",\"rejected\":\" b\"}\n",
                               i, i);
    return s;
}

/* What is trained is the text, with BOS before and EOS after it. */
static void check_text(const struct fixture *f, const struct example *e, int half, const char *want)
{
    char text[1024] = "", piece[64];
    for (int k = 0; k < 2; k++) {
        const int32_t *ids = k == 0 ? e->prompt : e->reply[half];
        const int32_t n = k == 0 ? e->n_prompt : e->n_reply[half];
        if (k == 1)
            (void)strncat(text, "|", sizeof text - strlen(text) - 1);
        for (int32_t i = 0; i < n; i++) {
            (void)tokenizer_piece(f->tok, ids[i], piece, sizeof piece);
            (void)strncat(text, piece, sizeof text - strlen(text) - 1);
        }
    }
    assert_string_equal(text, want);
}

static void test_vicuna_pairs(void **state)
{
    struct fixture *f = *state;
    struct spec_source *s = add_source(
        f, "a.jsonl",
        "{\"chosen\":\"\\n\\nHuman: Hi\\n\\nAssistant: Yes?\\n\\nHuman: Go\\n\\nAssistant: I go.\","
        "\"rejected\":\"\\n\\nHuman: Hi\\n\\nAssistant: Yes?\\n\\nHuman: Go\\n\\nAssistant: "
        "No\"}\n");
    s->template = SPEC_TEMPLATE_VICUNA;
    struct dataset *d = open_set(f);
    assert_int_equal(d->n_train, 1);
    assert_int_equal(d->n_rows[0], 1);
    assert_int_equal(d->n_usable[0], 1);
    assert_int_equal(d->train[0].row, 1);
#define BEGIN                                                                                    \
    "<s> A chat between a curious user and an artificial intelligence assistant. The assistant " \
    "gives helpful, detailed, and polite answers to the user's questions. USER: Hi ASSISTANT: "  \
    "Yes?</s> USER: Go ASSISTANT:|"
    check_text(f, d->train, 0, BEGIN " I go.</s>");
    check_text(f, d->train, 1, BEGIN " No</s>");
    dataset_close(d);
}

static void test_none_and_auto(void **state)
{
    struct fixture *f = *state;
    add_source(f, "a.json",
               "[{\"prompt\":\"Q:\",\"chosen\":\" a\",\"rejected\":\" b\"},\n"
               "{\"prompt\":\"Q:\",\"chosen\":\" a</s>\",\"rejected\":\" c\"}]");
    struct dataset *d = open_set(f);
    assert_int_equal(d->n_train, 2);
    check_text(f, &d->train[0], 0, "<s> Q:| a</s>");
    check_text(f, &d->train[0], 1, "<s> Q:| b</s>");
    check_text(f, &d->train[1], 0, "<s> Q:| a</s>"); /* has its EOS already */
    assert_int_equal(d->train[1].ordinal, 1);
    dataset_close(d);
}

static void test_sft(void **state)
{
    struct fixture *f = *state;
    f->spec.method = SPEC_SFT;
    add_source(f, "a.jsonl", "{\"text\":\"One text\"}\n{\"text\":\" \"}\n");
    add_source(f, "b.jsonl", "{\"prompt\":\"Q:\",\"completion\":\" a\"}\n")->template =
        SPEC_TEMPLATE_MISTRAL;
    add_source(f, "c.jsonl",
               "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},"
               "{\"role\":\"assistant\",\"content\":\"Yes\"}]}\n")
        ->template = SPEC_TEMPLATE_MISTRAL;
    add_source(f, "d.jsonl", "{\"prompt\":\"P\",\"chosen\":\" c\",\"rejected\":\" c\"}\n");
    struct dataset *d = open_set(f);
    assert_int_equal(d->n_train, 4);
    check_text(f, &d->train[0], 0, "<s>| One text</s>");
    assert_true(d->train[0].prompt_trained);
    check_text(f, &d->train[1], 0, "<s> [INST] Q: [/INST]| a </s>");
    assert_false(d->train[1].prompt_trained);
    check_text(f, &d->train[2], 0, "<s> [INST] Hi [/INST]| Yes </s>");
    check_text(f, &d->train[3], 0, "<s> P| c</s>"); /* chosen; rejected is not looked at */
    assert_int_equal(d->train[3].n_reply[1], 0);
    assert_int_equal(d->n_dropped, 1);
    assert_int_equal(d->dropped[0].reason, DROP_EMPTY_REPLY);
    dataset_close(d);
}

static void test_cut_and_drop(void **state)
{
    struct fixture *f = *state;
    f->spec.max_length = 12;
    add_source(
        f, "a.jsonl",
        "{\"prompt\":\"Q:\",\"chosen\":\" abcdefghijklmnopqrstuvwxyz\",\"rejected\":\" b\"}\n"
        "\n"
        "{\"prompt\":\"zyxwvutsrqponmlkjihgfedcba\",\"chosen\":\" a\",\"rejected\":\" b\"}\n"
        "{\"prompt\":\"Q:\",\"chosen\":\" a\"\n"
        "{\"prompt\":\"Q:\",\"chosen\":\" a\"}\n");
    struct dataset *d = open_set(f);
    assert_int_equal(d->n_train, 1);
    assert_int_equal(d->train[0].n_prompt + d->train[0].n_reply[0], 12);
    assert_true(d->train[0].cut[0]);
    assert_false(d->train[0].cut[1]);
    assert_int_equal(d->n_cut, 1);
    assert_int_equal(d->n_rows[0], 4);
    assert_int_equal(d->n_dropped, 3);
    assert_int_equal(d->dropped[0].reason, DROP_PROMPT_TOO_LONG);
    assert_int_equal(d->dropped[0].row, 3);
    assert_int_equal(d->dropped[1].reason, DROP_BAD_JSON);
    assert_int_equal(d->dropped[2].reason, DROP_MISSING_KEY);
    assert_int_equal(d->longest,
                     d->train[0].n_prompt + d->train[0].n_reply[0] + d->train[0].n_reply[1]);
    dataset_close(d);
}

static void test_draws(void **state)
{
    struct fixture *f = *state;
    char *rows = numbered_rows(100);
    struct spec_source *s = add_source(f, "a.jsonl", rows);
    add_source(f, "b.jsonl", rows);
    s->samples = 40;
    f->spec.eval_split_from_train = 30;
    f->spec.data_seed = 7;
    struct dataset *a = open_set(f), *b = open_set(f);
    f->spec.data_seed = 8;
    struct dataset *c = open_set(f);

    assert_int_equal(a->n_train, 110);
    assert_int_equal(a->n_eval, 30);
    assert_memory_equal(a->digest, b->digest, sizeof a->digest);
    assert_memory_not_equal(a->digest, c->digest, sizeof a->digest);
    int64_t seen[2][101] = {{0}}, taken = 0;
    for (int k = 0; k < 2; k++) {
        const struct example *v = k ? a->eval : a->train;
        const int64_t n = k ? a->n_eval : a->n_train;
        for (int64_t i = 0; i < n; i++) {
            assert_int_equal(v[i].ordinal, i);
            assert_int_equal(seen[v[i].source][v[i].row]++, 0); /* never twice */
            taken += v[i].source == 0;
            if (i > 0) /* file order */
                assert_true(v[i].source > v[i - 1].source ||
                            (v[i].source == v[i - 1].source && v[i].row > v[i - 1].row));
        }
    }
    assert_int_equal(taken, 40);
    dataset_close(a);
    dataset_close(b);
    dataset_close(c);
    free(rows);
}

static void test_errors(void **state)
{
    struct fixture *f = *state;
    char *rows = numbered_rows(10);
    struct spec_source *s = add_source(f, "a.jsonl", rows);

    expect_error(f, 20, "does not fit the model");
    s->samples = 11;
    expect_error(f, 512, "samples is 11");
    s->samples = 0;
    f->spec.eval_split_from_train = 10;
    expect_error(f, 512, "split_from_train");
    f->spec.eval_split_from_train = 0;
    s->format = SPEC_FORMAT_HH_RLHF;
    expect_error(f, 512, "none of its 10 rows can be used; 10 dropped as empty_prompt");
    s->format = SPEC_FORMAT_TEXT;
    expect_error(f, 512, "DPO needs two");
    s->format = SPEC_FORMAT_AUTO;
    s->template = SPEC_TEMPLATE_MODEL;
    expect_error(f, 512, "no chat template");
    s->template = SPEC_TEMPLATE_NONE;
    s = add_source(f, "b.jsonl", "");
    expect_error(f, 512, "b.jsonl: there are no rows");
    free(s->path);
    f->spec.n_train--;
    s = add_source(f, "c.jsonl", "{\"question\":1}\n");
    expect_error(f, 512, "question");
    free(s->path);
    f->spec.n_train--;
    s = add_source(f, "d.jsonl", "{\"prompt\":\"a \",\"chosen\":\"b\",\"rejected\":\"c\"}\n");
    expect_error(f, 512, "boundary");
    free(s->path);
    f->spec.n_train--;
    s = add_source(f, "e.jsonl", "{\"prompt\":\"<s> a\",\"chosen\":\" b\",\"rejected\":\" c\"}\n");
    expect_error(f, 512, "second BOS");
    free(s->path);
    f->spec.n_train--;
    s = add_source(f, "g.jsonl",
                   "{\"prompt\":[{\"role\":\"user\",\"content\":\"a\"}],\"chosen\":[{\"role\":"
                   "\"assistant\",\"content\":\"b\"}],\"rejected\":[{\"role\":\"assistant\","
                   "\"content\":\"c\"}]}\n");
    expect_error(f, 512, "message lists");
    free(s->path);
    f->spec.n_train--;
    s = add_source(f, "h.jsonl", "{\"chosen\":\"b\",\"rejected\":\"c\"}\n");
    expect_error(f, 512, "where the prompt ends");
    free(rows);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(test_vicuna_pairs), T(test_none_and_auto), T(test_sft),
        T(test_cut_and_drop), T(test_draws),         T(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
