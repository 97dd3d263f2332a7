/* test_buf.c - bounds, JSON texts and numbers. */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/buf.h"
#include "proto/log.h"

static void bounded(void **state)
{
    struct buf b = {.max = 10};

    (void)state;
    assert_int_equal(buf_str(&b, "12345"), 0);
    assert_int_equal(buf_printf(&b, "%d", 67890), 0);
    assert_string_equal(b.data, "1234567890");
    assert_int_equal(buf_add(&b, "", 0), 0);
    assert_int_equal(buf_str(&b, "x"), -EMSGSIZE);
    assert_int_equal(buf_add(&b, "", 0), -EMSGSIZE); /* stays */
    assert_string_equal(b.data, "1234567890");
    buf_clear(&b);
    assert_int_equal(buf_str(&b, "again"), 0);
    buf_free(&b);
    assert_int_equal(b.max, 10);
}

static void json_texts(void **state)
{
    static const char *const all[][2] = {
        {"plain", "\"plain\""},
        {"a\"b\\c\nd\te\x01", "\"a\\\"b\\\\c\\nd\\u0009e\\u0001\""},
        {"gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80", "\"gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80\""},
        {"\xff|\xc3|\xed\xa0\x80|\xc0\xaf|\xf5\x80\x80\x80",
         "\"\xef\xbf\xbd|\xef\xbf\xbd|\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd|"
         "\xef\xbf\xbd\xef\xbf\xbd|"
         "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {"", "\"\""},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        struct buf b = {.max = 1000};
        assert_int_equal(buf_json(&b, all[i][0]), 0);
        assert_string_equal(b.data, all[i][1]);
        buf_free(&b);
    }
}

static void json_numbers(void **state)
{
    static const double all[] = {0, 1, -1, 0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, 1e22};
    struct buf b = {.max = 1000};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        buf_clear(&b);
        assert_int_equal(buf_json_double(&b, all[i]), 0);
        assert_true(strtod(b.data, NULL) == all[i]);
    }
    buf_clear(&b);
    buf_json_double(&b, 0.1);
    assert_string_equal(b.data, "0.1");
    buf_clear(&b);
    buf_json_double(&b, NAN);
    buf_json_double(&b, -INFINITY);
    assert_string_equal(b.data, "nullnull");
    buf_free(&b);
}

static void caught(void *arg, enum log_level level, const char *line)
{
    char *to = arg;

    (void)level;
    strncat(to, line, 4000);
    strncat(to, "\n", 2);
}

static void lines(void **state)
{
    static char text[8192];
    enum log_level level;
    char big[4096];

    (void)state;
    log_capture(caught, text);
    log_info("event", "a=%d b=\"%s\"", 1, "two\nlines");
    log_debug("hidden", "x=%d", 1);
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    log_warn("long", "%s", big);
    log_capture(NULL, NULL);
    assert_non_null(strstr(text, "event a=1 b=\"two lines\"\n"));
    assert_null(strstr(text, "hidden"));
    assert_true(strlen(text) < 2300);
    assert_int_equal(log_level_parse("warn", &level), 0);
    assert_int_equal(level, LOG_WARN);
    assert_int_equal(log_level_parse("loud", &level), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bounded),
        cmocka_unit_test(json_texts),
        cmocka_unit_test(json_numbers),
        cmocka_unit_test(lines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
