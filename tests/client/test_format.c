/* test_format.c - numbers and texts for people, tables, bars. */
#include "tests/support/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/format.h"
#include "client/screen.h"
#include "client/table.h"

static void test_numbers(void **state)
{
    (void)state;
    format_buf b;
    static const struct {
        int64_t n;
        const char *text;
    } counts[] = {{0, "0"},
                  {7, "7"},
                  {999, "999"},
                  {1000, "1,000"},
                  {1596, "1,596"},
                  {-1596, "-1,596"},
                  {-999, "-999"},
                  {1234567, "1,234,567"},
                  {INT64_MIN, "-9,223,372,036,854,775,808"}};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++)
        assert_string_equal(format_count(b, counts[i].n), counts[i].text);
    assert_string_equal(format_value(b, 0.69314718), "0.6931");
    assert_string_equal(format_value(b, 5e-6), "5e-06");
    assert_string_equal(format_value(b, 0), "0");
    assert_string_equal(format_value(b, 12345), "12,345");
    assert_string_equal(format_value(b, NAN), "nan");
    assert_string_equal(format_value(b, -INFINITY), "-inf");
    assert_string_equal(format_fixed(b, 0.69314, 4), "0.6931");
    assert_string_equal(format_fixed(b, NAN, 4), "-");
    assert_string_equal(format_bytes(b, 0), "0 B");
    assert_string_equal(format_bytes(b, 1.2e9), "1.2 GB");
    assert_string_equal(format_bytes(b, 999600), "1.0 MB");
    assert_string_equal(format_bytes(b, 123e6), "123 MB");
}

static void test_times(void **state)
{
    (void)state;
    format_buf b;
    assert_string_equal(format_about(b, 3.14), "3.1 s");
    assert_string_equal(format_about(b, 45), "45 s");
    assert_string_equal(format_about(b, 240), "4 min");
    assert_string_equal(format_about(b, 3600 * 3.5), "3.5 h");
    assert_string_equal(format_about(b, 86400 * 3), "3.0 days");
    assert_string_equal(format_about(b, NAN), "-");
    assert_string_equal(format_clock(b, 0), "0:00");
    assert_string_equal(format_clock(b, 65), "1:05");
    assert_string_equal(format_clock(b, 3661), "1:01:01");
    assert_string_equal(format_clock(b, 86400 + 2 * 3600 + 184), "1-02:03:04");
    assert_string_equal(format_clock(b, -1), "0:00");
    assert_string_equal(format_clock(b, NAN), "0:00");
    assert_string_equal(format_when(b, 0), "-");
    assert_int_equal(strlen(format_when(b, 1700000000000)), 19);
    assert_true(format_when(b, INT64_MAX) != NULL);
}

static void test_texts(void **state)
{
    (void)state;
    char b[64];
    assert_int_equal(format_width("gr\xc3\xbc\xc3\x9f"), 4);
    assert_string_equal(format_plain(b, sizeof b, "plain", 10), "plain");
    assert_string_equal(format_plain(b, sizeof b, "longer than that", 6), "longe~");
    assert_string_equal(format_plain(b, sizeof b, "exact!", 6), "exact!");
    assert_string_equal(format_plain(b, sizeof b, "a\x1b[2Jb\nc\rd", 40), "a [2Jb c d");
    assert_string_equal(format_plain(b, sizeof b, "\xff\xc3", 40), "??");
    assert_string_equal(format_plain(b, sizeof b,
                                     "\xc2\x9b"
                                     "2J",
                                     40),
                        "?2J"); /* CSI in C1 */
    assert_string_equal(format_plain(b, sizeof b,
                                     "gr\xc3\xbc\xc3\x9f"
                                     "e",
                                     4),
                        "gr\xc3\xbc~");
    assert_string_equal(format_plain(b, 8, "0123456789", 40), "012");
}

static char *printed(const struct table *t)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_int_equal(table_print(t, f), 0);
    (void)fclose(f);
    return text;
}

static void test_table(void **state)
{
    (void)state;
    static const struct table_column columns[] = {
        {"JOBID", true, 0}, {"NAME", false, 6}, {"REASON", false, 0}};
    struct table *t = table_new(columns, 3);
    table_cell(t, "%d", 7);
    table_cell(t, "a-long-name");
    table_cell(t, "None");
    table_cell(t, "%d", 123456);
    table_cell(t, "gr\xc3\xbc\xc3\x9f");
    table_cell(t, "Resources: \x1b[31m2 of 4");
    char *text = printed(t);
    assert_string_equal(text, " JOBID NAME   REASON\n"
                              "     7 a-lon~ None\n"
                              "123456 gr\xc3\xbc\xc3\x9f   Resources:  [31m2 of 4\n");
    free(text);
    table_free(t);
    table_free(NULL);
}

static void test_bar(void **state)
{
    (void)state;
    struct buf b = {.max = 4096};
    screen_bar(0.5, 8, false, &b);
    assert_string_equal(b.data, "####----");
    buf_clear(&b);
    screen_bar(1.5, 4, true, &b);
    assert_string_equal(b.data, "\xe2\x96\x88\xe2\x96\x88\xe2\x96\x88\xe2\x96\x88");
    buf_clear(&b);
    screen_bar(1.0 / 16, 2, true, &b); /* one eighth of the first character */
    assert_string_equal(b.data, "\xe2\x96\x8f\xc2\xb7");
    buf_clear(&b);
    screen_bar(NAN, 2, false, &b);
    assert_string_equal(b.data, "--");
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers), cmocka_unit_test(test_times), cmocka_unit_test(test_texts),
        cmocka_unit_test(test_table),   cmocka_unit_test(test_bar),
    };
    return cmocka_run_group_tests_name("format", tests, NULL, NULL);
}
