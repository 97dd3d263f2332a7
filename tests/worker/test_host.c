/* test_host.c - cores, threads and the counter of a control group. */
#include "tests/support/test.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "worker/host.h"

static void test_cores(void **state)
{
    cpu_set_t all, one;

    (void)state;
    unsetenv("SLURM_CPUS_PER_TASK");
    assert_true(host_cores() >= 1);
    setenv("SLURM_CPUS_PER_TASK", "1", 1);
    assert_int_equal(host_cores(), 1);
    setenv("SLURM_CPUS_PER_TASK", "nonsense", 1);
    assert_true(host_cores() >= 1);
    unsetenv("SLURM_CPUS_PER_TASK");

    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(host_cores(), 1);
    assert_int_equal(host_threads(0, 4), 1);
    assert_int_equal(host_threads(3, 4), 3);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

static long kills_in(const char *text)
{
    char path[] = "/tmp/alignd-host-XXXXXX";
    const int fd = mkstemp(path);
    long n;

    assert_true(fd >= 0);
    assert_true(dprintf(fd, "%s", text) >= 0);
    close(fd);
    n = host_oom_kills_in(path);
    unlink(path);
    return n;
}

static void test_oom_counter(void **state)
{
    (void)state;
    assert_int_equal(kills_in("low 0\nhigh 0\nmax 812\noom 3\noom_kill 2\noom_group_kill 0\n"), 2);
    assert_int_equal(kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), 7);
    assert_int_equal(kills_in(""), -1);
    assert_int_equal(kills_in("oom_kill many\n"), -1);
    assert_int_equal(host_oom_kills_in("/tmp/no/such/file"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cores),
        cmocka_unit_test(test_oom_counter),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
