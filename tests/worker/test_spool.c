/* test_spool.c - metrics.jsonl: what is appended is read back, whatever a crash left. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/rng.h"
#include "worker/spool.h"

static char dir[64], file[96];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/alignd-spool-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(file, sizeof file, "%s/metrics.jsonl", dir);
    return 0;
}

static int drop_dir(void **state)
{
    (void)state;
    unlink(file);
    return rmdir(dir);
}

static struct spool_row row_of(enum spool_kind kind, int64_t step, double loss)
{
    struct spool_row row = {.kind = kind, .global_step = step, .n_values = 2};

    snprintf(row.values[0].name, sizeof row.values[0].name, "loss");
    row.values[0].value = loss;
    snprintf(row.values[1].name, sizeof row.values[1].name, "rewards/margins");
    row.values[1].value = -loss / 3;
    return row;
}

static void append(struct spool *s, enum spool_kind kind, int64_t step, double loss)
{
    struct spool_row row = row_of(kind, step, loss);
    struct err err;

    assert_int_equal(spool_append(s, &row, &err), 0);
}

static void put_text(const char *text, size_t bytes)
{
    FILE *f = fopen(file, "a");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, bytes, f), bytes);
    fclose(f);
}

static void test_doubles_round_trip(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 20000; i++) {
        const struct kn_philox b = rng_at(3, RNG_SHUFFLE, 0, i);
        struct spool_row row = row_of(SPOOL_TRAIN, (int64_t)i, 0), back;
        char line[SPOOL_LINE_BYTES];
        uint64_t bits = (uint64_t)b.v[0] << 32 | b.v[1];
        double x;

        memcpy(&x, &bits, sizeof x);
        if (i < 4)
            x = (double[]){0.0, -0.0, 1.0, -1e22}[i];
        if (!isfinite(x))
            continue;
        row.attempt = 1;
        row.n = i + 1;
        row.values[0].value = x;
        const size_t n = spool_format(&row, line, sizeof line);
        assert_true(n < sizeof line && line[n - 1] == '\n');
        assert_int_equal(spool_parse(line, n - 1, &back), 0);
        assert_memory_equal(&back.values[0].value, &x, sizeof x);
    }
}

static void test_line(void **state)
{
    struct spool_row row = row_of(SPOOL_EVAL, 50, 0.1), back;
    char line[SPOOL_LINE_BYTES], small[20];

    (void)state;
    row.attempt = 2;
    row.n = 7;
    row.wall_ms = 1234567890123;
    row.values[1].value = INFINITY;
    const size_t n = spool_format(&row, line, sizeof line);
    assert_string_equal(line, "{\"attempt\":2,\"n\":7,\"kind\":\"eval\",\"global_step\":50,"
                              "\"wall_ms\":1234567890123,\"loss\":0.1,\"rewards/margins\":null,"
                              "\"nonfinite\":[\"rewards/margins\"]}\n");
    assert_int_equal(spool_format(&row, small, sizeof small), n);
    assert_int_equal(spool_parse(line, n - 1, &back), 0);
    assert_int_equal(back.n, 7);
    assert_int_equal(back.attempt, 2);
    assert_int_equal(back.kind, SPOOL_EVAL);
    assert_int_equal(back.n_values, 2);
    assert_true(isnan(back.values[1].value));
    for (size_t cut = 0; cut < n - 1; cut++)
        assert_int_equal(spool_parse(line, cut, &back), -EINVAL);
}

static void test_bad_lines(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "7",
        "{\"attempt\":1,\"n\":1,\"kind\":\"train\"}",
        "{\"attempt\":0,\"n\":1,\"kind\":\"train\",\"global_step\":1}",
        "{\"attempt\":1,\"n\":0,\"kind\":\"train\",\"global_step\":1}",
        "{\"attempt\":1,\"n\":1,\"kind\":\"other\",\"global_step\":1}",
        "{\"attempt\":1,\"n\":1,\"kind\":7,\"global_step\":1}",
        "{\"attempt\":1,\"n\":1,\"kind\":\"train\",\"global_step\":-1}",
        "{\"attempt\":1,\"n\":1,\"kind\":\"train\",\"global_step\":1,\"loss\":\"x\"}",
        "{\"attempt\":1,\"n\":1,\"kind\":\"train\",\"global_step\":1,\"loss\":1,\"loss\":2}",
        "{\"attempt\":99999999999,\"n\":1,\"kind\":\"train\",\"global_step\":1}",
    };
    struct spool_row row;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(spool_parse(bad[i], strlen(bad[i]), &row), -EINVAL);
}

static void test_bad_names(void **state)
{
    static const char *const bad[] = {"", "a\"b", "a\\b", "a\nb", "n", "attempt", "nonfinite"};
    struct spool *s;
    struct err err;

    (void)state;
    assert_int_equal(spool_create(dir, 1, &s, &err), 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct spool_row row = row_of(SPOOL_TRAIN, 1, 1);
        snprintf(row.values[0].name, sizeof row.values[0].name, "%s", bad[i]);
        assert_int_equal(spool_append(s, &row, &err), -EINVAL);
    }
    spool_close(s);
}

/* The reader opens before there is a file and follows it; a part of a line waits. */
static void test_follow(void **state)
{
    struct spool_tail *t;
    struct spool_row row;
    struct spool *s;
    struct err err;
    char line[SPOOL_LINE_BYTES];

    (void)state;
    assert_int_equal(spool_tail_open(dir, &t), 0);
    assert_int_equal(spool_tail_next(t, &row), 0);
    assert_int_equal(spool_create(dir, 4, &s, &err), 0);
    assert_int_equal(spool_tail_next(t, &row), 0);
    for (int i = 1; i <= 300; i++) {
        append(s, i == 1 ? SPOOL_START : SPOOL_TRAIN, i - 1, 1.0 / i);
        if (i % 7)
            continue;
        for (int k = i - 6; k <= i; k++) {
            assert_int_equal(spool_tail_next(t, &row), 1);
            assert_int_equal(row.n, k);
            assert_int_equal(row.attempt, 4);
            assert_true(row.wall_ms > 0 && row.values[0].value == 1.0 / k);
        }
        assert_int_equal(spool_tail_next(t, &row), 0);
    }
    spool_tail_seek(t, 290);
    for (int k = 290; k <= 300; k++) {
        assert_int_equal(spool_tail_next(t, &row), 1);
        assert_int_equal(row.n, k);
    }
    spool_tail_seek(t, 1);
    assert_int_equal(spool_tail_next(t, &row), 1);
    assert_int_equal(row.n, 1);
    spool_close(s);

    spool_tail_seek(t, 301);
    assert_int_equal(spool_tail_next(t, &row), 0);
    row = row_of(SPOOL_TRAIN, 301, 2);
    row.attempt = 4;
    row.n = 301;
    const size_t n = spool_format(&row, line, sizeof line);
    put_text(line, n / 2);
    assert_int_equal(spool_tail_next(t, &row), 0);
    put_text(line + n / 2, n - n / 2);
    assert_int_equal(spool_tail_next(t, &row), 1);
    assert_int_equal(row.n, 301);
    put_text("garbage\n", 8);
    assert_int_equal(spool_tail_next(t, &row), -EBADMSG);
    spool_tail_close(t);
}

/* Whatever part of the last line a crash left, the writer goes on after the line before. */
static void test_recovery(void **state)
{
    struct spool *s;
    struct err err;
    struct stat before, after;

    (void)state;
    assert_int_equal(spool_create(dir, 1, &s, &err), 0);
    for (int i = 0; i < 100; i++)
        append(s, SPOOL_TRAIN, i, 0.5);
    spool_close(s);
    assert_int_equal(stat(file, &before), 0);
    for (int k = 1; k <= 20; k++) {
        char part[32];
        snprintf(part, sizeof part, "{\"attempt\":1,\"n\":101,\"ki");
        put_text(part, (size_t)k);
        assert_int_equal(spool_create(dir, 1, &s, &err), 0);
        spool_close(s);
        assert_int_equal(stat(file, &after), 0);
        assert_int_equal(after.st_size, before.st_size);
    }
    put_text("{", 1);
    assert_int_equal(spool_create(dir, 1, &s, &err), 0);
    struct spool_row row = row_of(SPOOL_SUMMARY, 100, 1);
    assert_int_equal(spool_append(s, &row, &err), 0);
    assert_int_equal(row.n, 101);
    spool_close(s);
    put_text("nonsense\n", 9);
    assert_int_equal(spool_create(dir, 1, &s, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "metrics.jsonl"));
}

/* A disk that takes no more: the file ends with a whole line, numbers go on. */
static void test_full_disk(void **state)
{
    struct rlimit old, small;
    struct spool *s;
    struct err err;
    struct stat st;
    struct spool_row row;
    uint64_t n = 0;
    int r;

    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 1000;
    assert_int_equal(spool_create(dir, 1, &s, &err), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    do {
        row = row_of(SPOOL_TRAIN, (int64_t)n, 0.25);
        r = spool_append(s, &row, &err);
        n += r == 0;
    } while (r == 0 && n < 100);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_true(r < 0 && n > 2 && n < 20);
    assert_int_equal(stat(file, &st), 0);
    assert_true(st.st_size < 1000);
    row = row_of(SPOOL_TRAIN, (int64_t)n, 0.25);
    assert_int_equal(spool_append(s, &row, &err), 0);
    assert_int_equal(row.n, n + 1);
    assert_int_equal(spool_sync(s, &err), 0);
    spool_close(s);

    struct spool_tail *t;
    assert_int_equal(spool_tail_open(dir, &t), 0);
    for (uint64_t k = 1; k <= n + 1; k++) {
        assert_int_equal(spool_tail_next(t, &row), 1);
        assert_int_equal(row.n, k);
    }
    spool_tail_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_doubles_round_trip),
        cmocka_unit_test(test_line),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test_setup_teardown(test_bad_names, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_follow, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_recovery, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_full_disk, make_dir, drop_dir),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
