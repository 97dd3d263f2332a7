/* test_atomic_file.c - a replaced file is the old or the new one, never both.
 *
 * Method: every system call the function makes is wrapped (ld --wrap) and the
 * k-th one fails, for k = 1, 2, ... until a run has no failure left to inject.
 * After each run the directory must hold exactly one of the two contents. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "tests/support/test.h"

#include "proto/atomic_file.h"

static int calls_left = -1; /* -1: inject nothing */

static int inject(void)
{
    if (calls_left < 0 || calls_left-- > 0)
        return 0;
    calls_left = -1;
    errno = EIO;
    return 1;
}

ssize_t __real_write(int fd, const void *p, size_t n);
int __real_fsync(int fd);
int __real_close(int fd);
int __real_renameat(int d0, const char *n0, int d1, const char *n1);

ssize_t __wrap_write(int fd, const void *p, size_t n);
int __wrap_fsync(int fd);
int __wrap_close(int fd);
int __wrap_renameat(int d0, const char *n0, int d1, const char *n1);

ssize_t __wrap_write(int fd, const void *p, size_t n)
{
    /* One byte at a time: a short write is legal, so it must be survived. */
    return inject() ? -1 : __real_write(fd, p, n > 1 ? 1 : n);
}

int __wrap_fsync(int fd)
{
    return inject() ? -1 : __real_fsync(fd);
}

int __wrap_close(int fd)
{
    int r = __real_close(fd);
    return inject() ? -1 : r;
}

int __wrap_renameat(int d0, const char *n0, int d1, const char *n1)
{
    return inject() ? -1 : __real_renameat(d0, n0, d1, n1);
}

struct fixture {
    char path[64];
    int dir_fd;
};

static int set_up(void **state)
{
    struct fixture *f = test_calloc(1, sizeof *f);
    (void)snprintf(f->path, sizeof f->path, "/tmp/atomic_file.XXXXXX");
    if (!mkdtemp(f->path))
        return -1;
    f->dir_fd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *state = f;
    return f->dir_fd < 0 ? -1 : 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    (void)unlinkat(f->dir_fd, "model", 0);
    __real_close(f->dir_fd);
    (void)rmdir(f->path);
    test_free(f);
    return 0;
}

static int entries(const struct fixture *f)
{
    int n = 0;
    DIR *d = opendir(f->path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void read_model(const struct fixture *f, char *buf, size_t size)
{
    int fd = openat(f->dir_fd, "model", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    ssize_t n = read(fd, buf, size - 1);
    assert_true(n >= 0);
    buf[n] = '\0';
    __real_close(fd);
}

static void test_old_or_new_whatever_fails(void **state)
{
    const struct fixture *f = *state;
    const struct span old[] = {{"old weights", 11}}, new[] = {{"new ", 4}, {"weights", 7}};
    int failures = 0, r;

    for (int k = 0;; k++) {
        char got[32];
        calls_left = -1;
        assert_int_equal(atomic_file_replace(f->dir_fd, "model", old, 1), 0);

        calls_left = k;
        r = atomic_file_replace(f->dir_fd, "model", new, 2);
        const int injected = calls_left == -1;
        calls_left = -1;

        assert_int_equal(entries(f), 1); /* no temporary is left behind */
        read_model(f, got, sizeof got);
        if (!injected) {
            assert_int_equal(r, 0);
            assert_string_equal(got, "new weights");
            break;
        }
        failures++;
        assert_int_equal(r, -EIO);
        assert_true(!strcmp(got, "old weights") || !strcmp(got, "new weights"));
    }
    assert_int_equal(failures, 11 + 1 + 1 + 1 + 1); /* writes, fsync, close, rename, fsync */
}

static void test_name_too_long(void **state)
{
    const struct fixture *f = *state;
    char name[300];
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(atomic_file_replace(f->dir_fd, name, NULL, 0), -ENAMETOOLONG);
    assert_int_equal(entries(f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_old_or_new_whatever_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_name_too_long, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
