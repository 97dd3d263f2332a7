/* test_rows.c - every format: what is the prompt, what the replies, what is dropped. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/test.h"

#include "worker/rows.h"

#define HH "\\n\\nHuman: Hi \\n\\nAssistant: Yes?\\n\\nHuman: Go\\n\\nAssistant:"

static struct row row;

static int tear_down(void **state)
{
    (void)state;
    rows_free(&row);
    return 0;
}

static int parse(enum spec_format format, enum spec_method method, enum spec_preference pref,
                 const char *json, enum drop_reason *reason)
{
    const struct rows_rule rule = {format, pref, method};
    struct err err = {{0}};
    return rows_parse(&rule, json, strlen(json), &row, reason, &err);
}

static void check_slice(struct slice s, const char *want)
{
    assert_non_null(s.s);
    assert_int_equal(s.n, strlen(want));
    assert_memory_equal(s.s, want, s.n);
}

/* turns: "u:Hi|a:Yes?|" */
static void check_turns(const char *want)
{
    char got[512] = "";
    for (size_t i = 0; i < row.n_turns; i++) {
        const size_t n = strlen(got);
        (void)snprintf(got + n, sizeof got - n, "%c:%.*s|", "sua"[row.turns[i].role],
                       (int)row.turns[i].text.n, row.turns[i].text.s);
    }
    assert_string_equal(got, want);
}

struct good {
    enum spec_format format;
    enum spec_preference pref;
    const char *json, *turns, *prompt, *chosen, *rejected; /* prompt NULL: messages */
};

static void test_pairs(void **state)
{
    (void)state;
    static const struct good cases[] = {
        {SPEC_FORMAT_HH_RLHF, 0, "{\"chosen\":\"" HH " I go.\",\"rejected\":\"" HH " No\"}",
         "u:Hi|a:Yes?|u:Go|",
         "\n\nHuman: Hi \n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant:", " I go.", " No"},
        /* cut at the LAST mark, whatever the replies share */
        {SPEC_FORMAT_HH_RLHF, 0,
         "{\"chosen\":\"" HH " I x\\n\\nHuman: b\",\"rejected\":\"" HH " I y\"}",
         "u:Hi|a:Yes?|u:Go|", NULL, " I x\n\nHuman: b", " I y"},
        /* a speaker twice, and a blank turn */
        {SPEC_FORMAT_HH_RLHF, 0,
         "{\"chosen\":\"\\n\\nHuman: a\\n\\nHuman: b\\n\\nAssistant: \\n\\nAssistant: c\","
         "\"rejected\":\"\\n\\nHuman: a\\n\\nHuman: b\\n\\nAssistant: \\n\\nAssistant: d\"}",
         "u:a\n\nb|", NULL, " c", " d"},
        {SPEC_FORMAT_PKU, SPEC_PREF_BETTER,
         "{\"prompt\":\"p\",\"response_0\":\"x\",\"response_1\":\"y\",\"better_response_id\":1}",
         "u:p|", "p", "y", "x"},
        {SPEC_FORMAT_PKU, SPEC_PREF_SAFE,
         "{\"prompt\":\"p\",\"response_0\":\"x\",\"response_1\":\"y\",\"better_response_id\":1,"
         "\"is_response_0_safe\":true,\"is_response_1_safe\":false}",
         "u:p|", "p", "x", "y"},
        {SPEC_FORMAT_PKU_PAIRS, 0, "{\"prompt\":\"p\",\"response\":[\"x\",\"y\"]}", "u:p|", "p",
         "x", "y"},
        {SPEC_FORMAT_PREFERENCE, 0, "{\"prompt\":\"p\",\"chosen\":\" x\",\"rejected\":\" y\"}",
         "u:p|", "p", " x", " y"},
        {SPEC_FORMAT_PREFERENCE, 0,
         "{\"prompt\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":"
         "\"p\"}],\"chosen\":[{\"role\":\"assistant\",\"content\":\"x\"}],\"rejected\":[{\"role\":"
         "\"assistant\",\"content\":\"y\"}]}",
         "s:s|u:p|", NULL, "x", "y"},
        /* UltraFeedback: the prompt stands in the lists too */
        {SPEC_FORMAT_PREFERENCE, 0,
         "{\"prompt\":\"p\",\"chosen\":[{\"role\":\"user\",\"content\":\"p\"},{\"role\":"
         "\"assistant\",\"content\":\"x\"}],\"rejected\":[{\"role\":\"user\",\"content\":\"p\"},"
         "{\"role\":\"assistant\",\"content\":\"y\"}]}",
         "u:p|", NULL, "x", "y"},
        {SPEC_FORMAT_IMPLICIT, 0,
         "{\"chosen\":[{\"from\":\"human\",\"value\":\"p\"},{\"from\":\"gpt\",\"value\":\"x\"}],"
         "\"rejected\":[{\"from\":\"human\",\"value\":\"p\"},{\"from\":\"gpt\",\"value\":\"y\"}]}",
         "u:p|", NULL, "x", "y"},
        {SPEC_FORMAT_IMPLICIT, 0, "{\"chosen\":\"" HH " x\",\"rejected\":\"" HH " y\"}",
         "u:Hi|a:Yes?|u:Go|", NULL, " x", " y"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        enum drop_reason reason = DROP_REASONS;
        assert_int_equal(parse(cases[i].format, SPEC_DPO, cases[i].pref, cases[i].json, &reason),
                         0);
        check_turns(cases[i].turns);
        if (cases[i].prompt)
            check_slice(row.prompt, cases[i].prompt);
        check_slice(row.reply[0], cases[i].chosen);
        check_slice(row.reply[1], cases[i].rejected);
    }
}

static void test_sft(void **state)
{
    (void)state;
    enum drop_reason reason;
    assert_int_equal(parse(SPEC_FORMAT_TEXT, SPEC_SFT, 0, "{\"text\":\"t\"}", &reason), 0);
    assert_int_equal(row.kind, ROW_TEXT);
    check_slice(row.reply[0], "t");
    assert_int_equal(parse(SPEC_FORMAT_TEXT, SPEC_SFT, 0,
                           "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":"
                           "\"assistant\",\"content\":\"b\"}]}",
                           &reason),
                     0);
    assert_int_equal(row.kind, ROW_MESSAGES);
    check_turns("u:a|");
    check_slice(row.reply[0], "b");
    assert_int_equal(parse(SPEC_FORMAT_PROMPT_COMPLETION, SPEC_SFT, 0,
                           "{\"prompt\":\"p\",\"completion\":\"c\"}", &reason),
                     0);
    assert_int_equal(row.kind, ROW_COMPLETION);
    /* Preference rows: chosen alone counts. */
    assert_int_equal(parse(SPEC_FORMAT_HH_RLHF, SPEC_SFT, 0, "{\"chosen\":\"" HH " x\"}", &reason),
                     0);
    check_slice(row.reply[0], " x");
    assert_int_equal(parse(SPEC_FORMAT_PREFERENCE, SPEC_SFT, 0,
                           "{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"c\"}", &reason),
                     0);
}

static void test_drops(void **state)
{
    (void)state;
#define PCR(p, c, r) "{\"prompt\":\"" p "\",\"chosen\":\"" c "\",\"rejected\":\"" r "\"}"
    static const struct {
        enum spec_format format;
        enum drop_reason reason;
        const char *json;
    } cases[] = {
        {SPEC_FORMAT_PREFERENCE, DROP_BAD_JSON, "[]"},
        {SPEC_FORMAT_PREFERENCE, DROP_BAD_JSON, "{\"prompt\":\"p\""},
        {SPEC_FORMAT_PREFERENCE, DROP_BAD_JSON, "{\"prompt\":\"\xff\",\"chosen\":\"a\"}"},
        {SPEC_FORMAT_PREFERENCE, DROP_BAD_JSON, "{\"a\":1,\"a\":2}"},
        {SPEC_FORMAT_PREFERENCE, DROP_MISSING_KEY, "{\"prompt\":\"p\",\"chosen\":\"a\"}"},
        {SPEC_FORMAT_PREFERENCE, DROP_MISSING_KEY, "{\"prompt\":1}"},
        {SPEC_FORMAT_PREFERENCE, DROP_MISSING_KEY,
         "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":[]}"},
        {SPEC_FORMAT_PREFERENCE, DROP_EMPTY_PROMPT, PCR(" ", "a", "b")},
        {SPEC_FORMAT_PREFERENCE, DROP_EMPTY_REPLY, PCR("p", " ", "b")},
        {SPEC_FORMAT_PREFERENCE, DROP_EMPTY_REPLY, PCR("p", "a", "")},
        {SPEC_FORMAT_PREFERENCE, DROP_SAME_REPLY, PCR("p", " a", "a ")},
        {SPEC_FORMAT_PREFERENCE, DROP_EMPTY_REPLY,
         "{\"prompt\":\"p\",\"chosen\":[],\"rejected\":[]}"},
        {SPEC_FORMAT_HH_RLHF, DROP_EMPTY_PROMPT, "{\"chosen\":\"x\",\"rejected\":\"y\"}"},
        {SPEC_FORMAT_HH_RLHF, DROP_EMPTY_PROMPT,
         "{\"chosen\":\"\\n\\nAssistant: x\",\"rejected\":\"\\n\\nAssistant: y\"}"},
        {SPEC_FORMAT_HH_RLHF, DROP_PROMPT_DIFFERS,
         "{\"chosen\":\"" HH " x\",\"rejected\":\"\\n\\nHuman: b\\n\\nAssistant: y\"}"},
        {SPEC_FORMAT_PKU, DROP_NO_PREFERENCE,
         "{\"prompt\":\"p\",\"response_0\":\"x\",\"response_1\":\"y\",\"better_response_id\":2}"},
        {SPEC_FORMAT_PKU, DROP_MISSING_KEY,
         "{\"prompt\":\"p\",\"response_0\":\"x\",\"response_1\":\"y\"}"},
        {SPEC_FORMAT_PKU_PAIRS, DROP_MISSING_KEY, "{\"prompt\":\"p\",\"response\":[\"x\"]}"},
        {SPEC_FORMAT_IMPLICIT, DROP_PROMPT_DIFFERS,
         "{\"chosen\":[{\"role\":\"user\",\"content\":\"p\"},{\"role\":\"assistant\",\"content\":"
         "\"x\"}],\"rejected\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\","
         "\"content\":\"y\"}]}"},
        {SPEC_FORMAT_IMPLICIT, DROP_ROLES,
         "{\"chosen\":[{\"role\":\"user\",\"content\":\"p\"}],"
         "\"rejected\":[{\"role\":\"user\",\"content\":\"q\"}]}"},
        {SPEC_FORMAT_IMPLICIT, DROP_ROLES,
         "{\"chosen\":[{\"role\":\"tool\",\"content\":\"p\"},{\"role\":\"assistant\",\"content\":"
         "\"x\"}],\"rejected\":[{\"role\":\"tool\",\"content\":\"p\"},{\"role\":\"assistant\","
         "\"content\":\"y\"}]}"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        enum drop_reason reason = DROP_REASONS;
        assert_int_equal(parse(cases[i].format, SPEC_DPO, SPEC_PREF_BETTER, cases[i].json, &reason),
                         1);
        if (reason != cases[i].reason)
            fail_msg("case %zu: %s, not %s", i, drop_reason_name(reason),
                     drop_reason_name(cases[i].reason));
    }
    /* safe: both or none safe does not choose. */
    static const char *const both[] = {"true", "false"};
    for (int i = 0; i < 2; i++) {
        char json[256];
        enum drop_reason reason = DROP_REASONS;
        (void)snprintf(json, sizeof json,
                       "{\"prompt\":\"p\",\"response_0\":\"x\",\"response_1\":\"y\","
                       "\"is_response_0_safe\":%s,\"is_response_1_safe\":%s}",
                       both[i], both[i]);
        assert_int_equal(parse(SPEC_FORMAT_PKU, SPEC_DPO, SPEC_PREF_SAFE, json, &reason), 1);
        assert_int_equal(reason, DROP_NO_PREFERENCE);
    }
    enum drop_reason reason;
    assert_int_equal(parse(SPEC_FORMAT_IMPLICIT, SPEC_DPO, 0,
                           "{\"chosen\":\"ab\",\"rejected\":\"ac\"}", &reason),
                     -EINVAL);
}

static void test_detect(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        enum spec_method method;
        int r;
        enum spec_format format;
    } cases[] = {
        {PCR("p", "a", "b"), SPEC_DPO, 0, SPEC_FORMAT_PREFERENCE},
        {"{\"chosen\":\"" HH "\",\"rejected\":\"b\"}", SPEC_DPO, 0, SPEC_FORMAT_HH_RLHF},
        {"{\"chosen\":[],\"rejected\":[]}", SPEC_DPO, 0, SPEC_FORMAT_IMPLICIT},
        {"{\"response_0\":1,\"response_1\":1}", SPEC_DPO, 0, SPEC_FORMAT_PKU},
        {"{\"prompt\":\"\",\"response\":[]}", SPEC_DPO, 0, SPEC_FORMAT_PKU_PAIRS},
        {"{\"prompt\":\"\",\"completion\":\"\"}", SPEC_SFT, 0, SPEC_FORMAT_PROMPT_COMPLETION},
        {"{\"prompt\":\"\",\"completion\":\"\"}", SPEC_DPO, -EINVAL, 0},
        {"{\"text\":\"\"}", SPEC_SFT, 0, SPEC_FORMAT_TEXT},
        {"{\"text\":\"\"}", SPEC_DPO, -EINVAL, 0},
        {"{\"conversations\":[]}", SPEC_SFT, 0, SPEC_FORMAT_TEXT},
        {"{\"question\":1,\"answer\":2}", SPEC_SFT, -EINVAL, 0},
        {"3", SPEC_SFT, 1, 0},
        {"{", SPEC_SFT, 1, 0},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        enum spec_format f = SPEC_FORMAT_AUTO;
        struct err err = {{0}};
        assert_int_equal(
            rows_detect(cases[i].json, strlen(cases[i].json), cases[i].method, &f, &err),
            cases[i].r);
        if (cases[i].r == 0)
            assert_int_equal(f, cases[i].format);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_pairs, tear_down),
        cmocka_unit_test_teardown(test_sft, tear_down),
        cmocka_unit_test_teardown(test_drops, tear_down),
        cmocka_unit_test_teardown(test_detect, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
