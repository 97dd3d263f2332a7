/* test_dataview.c - what is shown is JSON, and is what is trained. */
#include <jansson.h>

#include "tests/support/temp_dir.h"
#include "tests/support/test.h"
#include "tests/support/test_data.h"

#include "worker/dataview.h"

static const char rows[] =
    "{\"prompt\":\"Q \\u00e9:\",\"chosen\":\" a \\ud83d\\ude00\",\"rejected\":\" b\"}\n"
    "{\"prompt\":\"Q:\",\"chosen\":\" a\",\"rejected\":\" a\"}\n"
    "{\"prompt\":\"Q \\\"2\\\":\",\"chosen\":\" c\",\"rejected\":\" d\"}\n";

struct fixture {
    struct temp_dir d;
    struct tokenizer *tok;
    struct spec spec;
    struct dataset *set;
    char path[320];
};

static int set_up(void **state)
{
    struct fixture *f = test_calloc(1, sizeof *f);
    temp_dir_make(&f->d);
    (void)snprintf(f->path, sizeof f->path, "%s", temp_dir_path(&f->d, "a \"b\".jsonl"));
    FILE *file = fopen(f->path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(rows, 1, sizeof rows - 1, file), sizeof rows - 1);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(tokenizer_open(test_data_path("demo"), &f->tok, NULL), 0);
    f->spec.method = SPEC_DPO;
    f->spec.max_length = 512;
    f->spec.n_train = 1;
    f->spec.train[0].path = f->path;
    assert_int_equal(dataset_open(&f->spec, f->tok, 4096, &f->set, NULL), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    dataset_close(f->set);
    tokenizer_close(f->tok);
    temp_dir_remove(&f->d);
    test_free(f);
    return 0;
}

static json_t *parse(const struct text *t)
{
    json_error_t e;
    json_t *j = json_loadb(t->s, t->n, JSON_REJECT_DUPLICATES, &e);
    if (!j)
        fail_msg("%s in %s", e.text, t->s);
    return j;
}

static void test_show(void **state)
{
    const struct fixture *f = *state;
    struct text out = {0};
    assert_int_equal(dataview_show(f->set, &f->spec, f->tok, 5, &out), 0);
    json_t *j = parse(&out);
    const char *path, *format, *text, *kind;
    json_int_t n_rows, usable, selected, same, p50, max;
    assert_int_equal(json_unpack(j, "{s[{s:s,s:s,s:I,s:I,s:I}],s:{s:I},s:{s:{s:I,s:I}}}", "sources",
                                 "path", &path, "format", &format, "rows", &n_rows, "usable",
                                 &usable, "selected", &selected, "dropped", "same_reply", &same,
                                 "lengths", "pair", "p50", &p50, "max", &max),
                     0);
    assert_string_equal(path, f->path);
    assert_string_equal(format, "preference");
    assert_int_equal(n_rows, 3);
    assert_int_equal(usable, 2);
    assert_int_equal(selected, 2);
    assert_int_equal(same, 1);
    assert_int_equal(max, f->set->longest);
    assert_true(p50 <= max);

    const json_t *shown = json_object_get(j, "rows");
    assert_int_equal(json_array_size(shown), 2);
    for (int i = 0; i < 2; i++) {
        const struct example *e = &f->set->train[i];
        static const char *const names[] = {"prompt", "chosen", "rejected"};
        for (int k = 0; k < 3; k++) {
            const json_t *v = json_object_get(json_array_get(shown, (size_t)i), names[k]);
            const int32_t n = k ? e->n_reply[k - 1] : e->n_prompt;
            const int32_t *ids = k ? e->reply[k - 1] : e->prompt;
            assert_int_equal(json_array_size(v), n);
            for (int32_t t = 0; t < n; t++) {
                json_int_t id;
                int trained;
                assert_int_equal(json_unpack(json_array_get(v, (size_t)t), "[I,s,b,s]", &id, &text,
                                             &trained, &kind),
                                 0);
                assert_int_equal(id, ids[t]);
                assert_int_equal(trained, k > 0);
                assert_string_equal(kind, k == 0 ? (t ? "prompt" : "bos")
                                                 : (t + 1 == n ? "eos" : "reply"));
            }
        }
    }
    json_decref(j);
    text_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_show, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
