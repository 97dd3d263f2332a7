/* test_devices.c - locks of devices, and who may make them. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/devices.h"

static void locks(void **state)
{
    char base[] = "/tmp/alignd-devices-XXXXXX", dir[64], path[96];
    struct err err = {""};
    struct stat st;
    int fd;

    (void)state;
    assert_non_null(mkdtemp(base));
    snprintf(dir, sizeof dir, "%s/d", base);
    assert_int_equal(device_lock_prepare(dir, &err), 0);
    assert_int_equal(device_lock_prepare(dir, &err), 0);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 07777, 01777);

    assert_false(device_lock_held(dir, "cpu:0"));
    fd = device_lock_take(dir, "cpu:0", &err);
    assert_true(fd >= 0);
    assert_true(device_lock_held(dir, "cpu:0"));
    assert_false(device_lock_held(dir, "cpu:1"));
    assert_int_equal(device_lock_take(dir, "cpu:0", &err), -EBUSY);
    assert_non_null(err.text);
    close(fd);
    assert_false(device_lock_held(dir, "cpu:0"));
    fd = device_lock_take(dir, "cpu:0", &err);
    assert_true(fd >= 0);
    close(fd);

    assert_int_equal(device_lock_take(dir, "../x", &err), -EINVAL);
    assert_int_equal(device_lock_take(dir, "", &err), -EINVAL);
    assert_int_equal(device_lock_take(dir, ".x", &err), -EINVAL);

    /* A link where a lock file should be is not followed. */
    snprintf(path, sizeof path, "%s/gpu:0.lock", dir);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_true(device_lock_take(dir, "gpu:0", &err) < 0);
    unlink(path);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/cpu:%d.lock", dir, i);
        unlink(path);
    }
    assert_int_equal(rmdir(dir), 0);

    fd = open(dir, O_WRONLY | O_CREAT, 0600);
    close(fd);
    assert_int_equal(device_lock_prepare(dir, &err), -ENOTDIR);
    unlink(dir);
    assert_int_equal(rmdir(base), 0);
}

static void counts(void **state)
{
    (void)state;
    assert_true(devices_usable_cores() >= 1);
    assert_true(devices_gpus_seen() >= 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(locks), cmocka_unit_test(counts)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
