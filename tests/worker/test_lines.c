/* test_lines.c - rows out of files: plain, compressed, arrays, cut short, hostile. */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>

#include "tests/support/temp_dir.h"
#include "tests/support/test.h"

#include "proto/limit.h"
#include "worker/lines.h"

static int set_up(void **state)
{
    struct temp_dir *d = test_calloc(1, sizeof *d);
    temp_dir_make(d);
    *state = d;
    return 0;
}

static int tear_down(void **state)
{
    temp_dir_remove(*state);
    test_free(*state);
    return 0;
}

static const char *write_file(const struct temp_dir *d, const char *name, const void *data,
                              size_t n)
{
    FILE *f = fopen(temp_dir_path(d, name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return temp_dir_path(d, name);
}

/* The rows of a file as "number:text|number:text|"; what lines_next ended with. */
static int read_all(const char *path, char *out, size_t size, struct err *err)
{
    struct lines *l = NULL;
    const char *s;
    size_t n, at = 0;
    int64_t row;

    out[0] = '\0';
    int r = lines_open(path, &l, err);
    while (!r && (r = lines_next(l, &s, &n, &row, err)) == 1) {
        at += (size_t)snprintf(out + at, size - at, "%lld:%.*s|", (long long)row, (int)n, s);
        assert_true(at < size);
        r = 0;
    }
    lines_close(l);
    return r;
}

static void expect(const struct temp_dir *d, const char *text, int r, const char *rows,
                   const char *says)
{
    char out[512];
    struct err err = {{0}};
    assert_int_equal(read_all(write_file(d, "f.json", text, strlen(text)), out, sizeof out, &err),
                     r);
    assert_string_equal(out, rows);
    if (says && !strstr(err.text, says))
        fail_msg("\"%s\" does not say \"%s\"", err.text, says);
}

static void test_lines_and_arrays(void **state)
{
    const struct temp_dir *d = *state;
    expect(d, "", 0, "", NULL);
    expect(d, "\n \n", 0, "", NULL);
    expect(d, "{1}\n{2}", 0, "1:{1}|2:{2}|", NULL);
    expect(d, "\xef\xbb\xbf{1}\n\n{2}\n", 0, "1:{1}|3:{2}|", NULL);
    expect(d, "[]", 0, "", NULL);
    expect(d, " [ {\"a\":\"]},[\\\"\"} ,\n[1,[2]],3,\"x\" ] \n", 0,
           "1:{\"a\":\"]},[\\\"\"} |2:[1,[2]]|3:3|4:\"x\" |", NULL);
    expect(d, "[{}{}]", 0, "1:{}{}|", NULL); /* one bad row, for the parser of rows */
    expect(d, "[{},", -EINVAL, "1:{}|", "cut short: the array has no ']' after row 1");
    expect(d, "[{},{\"a\":", -EINVAL, "1:{}|", "cut short inside row 2");
    expect(d, "[{}]x", -EINVAL, "1:{}|", "more after the array");
    expect(d, "[,{}]", -EINVAL, "", "nothing after the comma that follows row 0");
    expect(d, "[{},]", -EINVAL, "1:{}|", "nothing after the comma that follows row 1");
}

static void test_refused(void **state)
{
    const struct temp_dir *d = *state;
    char out[64];
    struct err err = {{0}};
    assert_int_equal(read_all(temp_dir_path(d, "none.jsonl"), out, sizeof out, &err), -ENOENT);
    assert_non_null(strstr(err.text, "none.jsonl"));
    assert_int_equal(read_all(d->path, out, sizeof out, &err), -EINVAL);
    assert_int_equal(read_all(write_file(d, "a.parquet", "x", 1), out, sizeof out, &err), -EINVAL);
    assert_non_null(strstr(err.text, "read_parquet"));
    assert_int_equal(read_all(write_file(d, "a.bin", "PAR1xxxx", 8), out, sizeof out, &err),
                     -EINVAL);
    assert_non_null(strstr(err.text, "read_parquet"));
    assert_int_equal(read_all(write_file(d, "a.csv", "a,b\n", 4), out, sizeof out, &err), -EINVAL);
    assert_non_null(strstr(err.text, "read_csv"));
}

static void test_long_rows(void **state)
{
    const struct temp_dir *d = *state;
    enum { MORE = LIMIT_ROW_BYTES + 1 };
    struct err err = {{0}};
    struct lines *l = NULL;
    const char *s;
    size_t n;
    int64_t row;
    char *big = malloc(MORE + 16);

    assert_non_null(big);
    memset(big, 'a', MORE + 16);
    memcpy(big, "{}\n", 3);
    big[3 + LIMIT_ROW_BYTES] = '\n'; /* just fits */
    assert_int_equal(lines_open(write_file(d, "a.jsonl", big, MORE + 3), &l, &err), 0);
    assert_int_equal(lines_next(l, &s, &n, &row, &err), 1);
    assert_int_equal(lines_next(l, &s, &n, &row, &err), 1);
    assert_int_equal(n, LIMIT_ROW_BYTES);
    lines_close(l);
    big[3 + LIMIT_ROW_BYTES] = 'a';
    assert_int_equal(lines_open(write_file(d, "a.jsonl", big, MORE + 3), &l, &err), 0);
    assert_int_equal(lines_next(l, &s, &n, &row, &err), 1);
    assert_int_equal(lines_next(l, &s, &n, &row, &err), -E2BIG);
    assert_non_null(strstr(err.text, "row 2"));
    lines_close(l);
    memcpy(big, "[\"a", 3);
    assert_int_equal(lines_open(write_file(d, "a.json", big, MORE + 3), &l, &err), 0);
    assert_int_equal(lines_next(l, &s, &n, &row, &err), -E2BIG);
    assert_non_null(strstr(err.text, "row 1"));
    lines_close(l);
    free(big);
}

enum { ROWS = 20000 };

/* Compresses ROWS rows with a filter of libarchive. */
static const char *write_compressed(const struct temp_dir *d, const char *name, int filter)
{
    struct archive *a = archive_write_new();
    struct archive_entry *e = archive_entry_new();
    assert_true(a && e);
    assert_int_equal(archive_write_add_filter(a, filter), ARCHIVE_OK);
    assert_int_equal(archive_write_set_format_raw(a), ARCHIVE_OK);
    assert_int_equal(archive_write_open_filename(a, temp_dir_path(d, name)), ARCHIVE_OK);
    archive_entry_set_filetype(e, AE_IFREG);
    assert_int_equal(archive_write_header(a, e), ARCHIVE_OK);
    for (int i = 0; i < ROWS; i++) {
        char line[64];
        const int n = snprintf(line, sizeof line, "{\"row\": %d, \"hash\": %u}\n", i,
                               (unsigned)i * 2654435761u);
        assert_int_equal(archive_write_data(a, line, (size_t)n), n);
    }
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_entry_free(e);
    archive_write_free(a);
    return temp_dir_path(d, name);
}

static int64_t count(const char *path, int *ret_r, struct err *err)
{
    struct lines *l = NULL;
    const char *s;
    size_t n;
    int64_t row = 0, rows = 0;
    *ret_r = lines_open(path, &l, err);
    while (!*ret_r && (*ret_r = lines_next(l, &s, &n, &row, err)) == 1) {
        rows++;
        assert_int_equal(row, rows);
        assert_true(n > 10 && s[0] == '{' && s[n - 1] == '}');
        *ret_r = 0;
    }
    lines_close(l);
    return rows;
}

static void test_compressed(void **state)
{
    const struct temp_dir *d = *state;
    static const int filters[] = {ARCHIVE_FILTER_GZIP, ARCHIVE_FILTER_XZ, ARCHIVE_FILTER_ZSTD,
                                  ARCHIVE_FILTER_BZIP2};
    for (size_t i = 0; i < ARRAY_LEN(filters); i++) {
        int r;
        struct err err = {{0}};
        struct stat st;
        const char *path = write_compressed(d, "a.jsonl.z", filters[i]);
        assert_int_equal(count(path, &r, &err), ROWS);
        assert_int_equal(r, 0);
        /* Cut short: what is whole is delivered, then the sentence names the row. */
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(truncate(path, st.st_size * 3 / 4), 0);
        const int64_t rows = count(path, &r, &err);
        assert_true(rows < ROWS);
        assert_int_equal(r, -EINVAL);
        char says[64];
        (void)snprintf(says, sizeof says, "cut short after row %lld", (long long)rows);
        if (!strstr(err.text, says))
            fail_msg("\"%s\" does not say \"%s\"", err.text, says);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {T(test_lines_and_arrays), T(test_refused), T(test_long_rows),
                                       T(test_compressed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
