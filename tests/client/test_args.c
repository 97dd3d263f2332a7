/* test_args.c - options of verbs. */
#include "tests/support/test.h"

#include <string.h>

#include "client/args.h"

struct got {
    bool watch, follow;
    const char *key;
    unsigned long long rank;
    struct args_sets sets;
    const char *rest[2];
    size_t n_rest;
    struct cli cli;
};

static int parse(struct got *g, int argc, const char *const *argv, size_t min)
{
    memset(g, 0, sizeof *g);
    const struct args_option options[] = {
        {"watch", 0, ARGS_FLAG, &g->watch}, {"follow", 'f', ARGS_FLAG, &g->follow},
        {"key", 'k', ARGS_TEXT, &g->key},   {"rank", 'r', ARGS_COUNT, &g->rank},
        {"set", 0, ARGS_SETS, &g->sets},    {NULL, 0, ARGS_FLAG, NULL}};
    return args_parse(&g->cli, argc, (char **)argv, options, g->rest, min, 2, &g->n_rest);
}

static void test_good(void **state)
{
    (void)state;
    struct got g;
    static const char *const a[] = {"v",      "7",        "-f", "--key=abc", "--set",
                                    "a=1=2",  "--rank",   "3",  "--json",    "--set=b.0=x",
                                    "--host", "ipc:///x", "--", "--watch"};
    assert_int_equal(parse(&g, ARRAY_LEN(a), a, 1), CLI_OK);
    assert_true(g.follow && !g.watch && g.cli.json);
    assert_string_equal(g.key, "abc");
    assert_string_equal(g.cli.host, "ipc:///x");
    assert_int_equal(g.rank, 3);
    assert_int_equal(g.sets.n, 2);
    assert_string_equal(g.sets.v[0].text, "a=1=2");
    assert_string_equal(g.sets.v[1].text, "b.0=x");
    assert_int_equal(g.n_rest, 2);
    assert_string_equal(g.rest[1], "--watch");
    static const char *const b[] = {"v", "-kxyz", "-r0", "-"};
    assert_int_equal(parse(&g, ARRAY_LEN(b), b, 1), CLI_OK);
    assert_string_equal(g.key, "xyz");
    assert_string_equal(g.rest[0], "-");
}

static void test_bad(void **state)
{
    (void)state;
    static const struct {
        const char *v[4];
        const char *says;
    } bad[] = {
        {{"v", NULL}, "missing"},
        {{"v", "1", "2", "3"}, "one too many"},
        {{"v", "--nope", NULL}, "--nope"},
        {{"v", "-x", NULL}, "-x"},
        {{"v", "1", "--key", NULL}, "needs a value"},
        {{"v", "1", "--watch=1", NULL}, "no value"},
        {{"v", "1", "--rank=-1", NULL}, "whole number"},
        {{"v", "1", "--rank=1x", NULL}, "whole"},
        {{"v", "1", "--rank=", NULL}, "whole"},
        {{"v", "1", "--rank=99999999999999999999", NULL}, "whole"},
        {{"v", "1", "--set=abc", NULL}, "key=value"},
        {{"v", "1", "--set==1", NULL}, "key=value"},
        {{"v", "1", "-ff", NULL}, "no value"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct got g;
        int n = 0;
        while (n < 4 && bad[i].v[n])
            n++;
        assert_int_equal(parse(&g, n, bad[i].v, 1), CLI_USAGE);
        if (!strstr(g.cli.err.text, bad[i].says))
            fail_msg("case %zu: %s", i, g.cli.err.text);
    }
}

static void test_job(void **state)
{
    (void)state;
    struct cli cli = {0};
    unsigned long long id = 0;
    assert_int_equal(args_job(&cli, "17", &id), CLI_OK);
    assert_int_equal(id, 17);
    static const char *const bad[] = {"", "0", "-1", "x", "1x", " 1", "99999999999999999999"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(args_job(&cli, bad[i], &id), CLI_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_job),
    };
    return cmocka_run_group_tests_name("args", tests, NULL, NULL);
}
