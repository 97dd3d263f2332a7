/* test_plot.c - curves as text: shape, size, and what is no number. */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/plot.h"

static size_t lines(const char *s)
{
    size_t n = 0;
    for (; *s; s++)
        n += *s == '\n';
    return n;
}

static void test_stars(void **state)
{
    (void)state;
    static const double x[] = {0, 1, 2, 3, 4}, y[] = {4, 3, 2, 1, 0};
    struct buf b = {.max = 1 << 16};
    struct plot p = {.x = x, .y = y, .n = 5, .width = 9 + 5, .height = 5};
    plot_draw(&p, &b);
    assert_string_equal(b.data, "       4|*    \n"
                                "        | *   \n"
                                "        |  *  \n"
                                "        |   * \n"
                                "       0|    *\n");
    buf_free(&b);
}

static void test_braille(void **state)
{
    (void)state;
    static const double x[] = {0, 1}, y[] = {1, 0};
    struct buf b = {.max = 1 << 16};
    struct plot p = {.x = x, .y = y, .n = 2, .width = 9 + 3, .height = 1, .utf8 = true};
    plot_draw(&p, &b);
    /* six columns of dots, four rows, from the upper left to the lower right */
    assert_int_equal(lines(b.data), 1);
    assert_non_null(strstr(b.data, "\xe2\x94\x82\xe2\xa0"));
    const unsigned char *cell = (unsigned char *)strstr(b.data, "\xe2\x94\x82") + 3;
    unsigned first = ((cell[1] & 3u) << 6) | (cell[2] & 0x3fu);
    assert_true(first & 0x01); /* the first point: upper left dot */
    const unsigned char *last = cell + 6;
    unsigned bits = ((last[1] & 3u) << 6) | (last[2] & 0x3fu);
    assert_true(bits & 0x80); /* the last one: lower right */
    buf_free(&b);
}

static void test_odd(void **state)
{
    (void)state;
    static const double x[] = {1, 2, 3}, y[] = {NAN, INFINITY, 2};
    struct buf b = {.max = 1 << 20};
    struct plot p = {.x = x, .y = y, .n = 3, .width = 30, .height = 6, .utf8 = true};
    plot_draw(&p, &b);
    assert_int_equal(lines(b.data), 6);
    p.n = 0;
    buf_clear(&b);
    plot_draw(&p, &b);
    assert_int_equal(lines(b.data), 6);
    p.n = 1; /* nothing finite */
    buf_clear(&b);
    plot_draw(&p, &b);
    assert_int_equal(lines(b.data), 6);
    static const size_t sizes[] = {0, 1, 9, 11, 12, 100000};
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
        p = (struct plot){.x = x, .y = y, .n = 3, .width = sizes[i], .height = 3};
        buf_clear(&b);
        plot_draw(&p, &b);
        assert_int_equal(b.r, 0);
        assert_int_equal(lines(b.data), 3);
    }
    p.height = 0;
    buf_clear(&b);
    plot_draw(&p, &b);
    assert_int_equal(b.bytes, 0);
    buf_free(&b);
}

/* 100,000 points in 40 columns: every column stays within the values' range. */
static void test_many(void **state)
{
    (void)state;
    enum { N = 100000 };
    double *x = malloc(2 * N * sizeof *x), *y = x + N;
    for (int i = 0; i < N; i++) {
        x[i] = i;
        y[i] = sin(i * 0.001) + (i % 2 ? 0.1 : -0.1);
    }
    struct buf b = {.max = 1 << 20};
    struct plot p = {.x = x, .y = y, .n = N, .x_from = 0, .x_to = 2 * N, .width = 49, .height = 8};
    plot_draw(&p, &b);
    assert_int_equal(lines(b.data), 8);
    char *row = b.data; /* the right half is empty: those steps are still to come */
    for (int r = 0; r < 8; r++, row = strchr(row, '\n') + 1)
        assert_null(memchr(row + 9 + 22, '*', 18));
    buf_free(&b);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stars),
        cmocka_unit_test(test_braille),
        cmocka_unit_test(test_odd),
        cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests_name("plot", tests, NULL, NULL);
}
