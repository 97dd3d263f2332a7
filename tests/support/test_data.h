/* test_data.h - where tests find files: tests/data, and ../shared/data, which is
 * not part of the project and may be absent. */
#ifndef TESTS_SUPPORT_TEST_DATA_H
#define TESTS_SUPPORT_TEST_DATA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* "<root of the sources>/tests/data/<name>", in one of a few buffers. */
static inline const char *test_data_path(const char *name)
{
    static char buf[4][1024];
    static int at;
    const char *root = getenv("ALIGND_SOURCE_ROOT");

    at = (at + 1) % 4;
    (void)snprintf(buf[at], sizeof buf[at], "%s/tests/data/%s", root ? root : ".", name);
    return buf[at];
}

/* "<shared data>/<name>", in one of a few buffers. */
static inline const char *test_data_shared(const char *name)
{
    static char buf[4][1024];
    static int at;
    const char *root = getenv("ALIGND_SOURCE_ROOT"), *data = getenv("ALIGND_SHARED_DATA");

    at = (at + 1) % 4;
    if (data)
        (void)snprintf(buf[at], sizeof buf[at], "%s/%s", data, name);
    else
        (void)snprintf(buf[at], sizeof buf[at], "%s/../shared/data/%s", root ? root : ".", name);
    return buf[at];
}

/* First in main() of a test that needs the shared data: leaves the program with 77
 * (skipped) when it is absent, with 1 when ALIGND_SHARED=required. */
static inline void test_data_need_shared(void)
{
    const char *required = getenv("ALIGND_SHARED");

    if (access(test_data_shared("README.md"), R_OK) == 0)
        return;
    const int fail = required && strcmp(required, "required") == 0;
    (void)fprintf(stderr, "%s: %s is absent\n", fail ? "FAILED" : "SKIP", test_data_shared(""));
    exit(fail ? 1 : 77);
}

/* A whole file, malloc'ed, NUL-terminated; NULL: cannot be read. */
static inline char *test_data_read(const char *path, size_t *ret_n)
{
    FILE *f = fopen(path, "rb");
    char *s = NULL;
    size_t n = 0, cap = 0;

    while (f) {
        if (n + 1 >= cap) {
            cap = cap ? 2 * cap : 4096;
            s = realloc(s, cap);
            if (!s)
                break;
        }
        const size_t k = fread(s + n, 1, cap - n - 1, f);
        n += k;
        if (k == 0)
            break;
    }
    if (f)
        (void)fclose(f);
    if (s)
        s[n] = '\0';
    if (ret_n)
        *ret_n = n;
    return s;
}

#endif
