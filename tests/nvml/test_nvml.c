/* test_nvml.c - nvml.c and gpu_watch.c against the library that plays a file. */
#include "tests/support/test.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/gpu_watch.h"
#include "daemon/nvml.h"

static const char A[] = "GPU-aaaa0000-1111-2222-3333-444455556666";
static const char B[] = "GPU-bbbb0000-1111-2222-3333-444455556666";
static const char TWO[] = "gpu GPU-aaaa0000-1111-2222-3333-444455556666 NVIDIA_H100 81559\n"
                          "gpu GPU-bbbb0000-1111-2222-3333-444455556666 NVIDIA_H100 81559\n";

static char path[64];
static int woken;

/* Replaced, not rewritten: the library may read at any time. */
static void play(const char *first, const char *second)
{
    char part[80];
    FILE *f;

    snprintf(part, sizeof part, "%s.part", path);
    f = fopen(part, "w");
    assert_non_null(f);
    fprintf(f, "%s%s", first, second);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(rename(part, path), 0);
}

static struct nvml *opened(void)
{
    struct nvml *n;
    struct err err = {""};

    assert_int_equal(nvml_open(&n, &err), 0);
    return n;
}

static size_t sample(struct nvml *n, struct nvml_gpu *gpus)
{
    struct err err = {""};
    size_t k;

    assert_int_equal(nvml_sample(n, gpus, NVML_GPUS_MAX, &k, &err), 0);
    return k;
}

static void test_an_inventory(void **state)
{
    static struct nvml_gpu g[NVML_GPUS_MAX];
    struct nvml *n;

    (void)state;
    play(TWO, "set GPU-bbbb0000-1111-2222-3333-444455556666 used 61559\n"
              "set GPU-bbbb0000-1111-2222-3333-444455556666 util 98\n"
              "set GPU-bbbb0000-1111-2222-3333-444455556666 temp 71\n"
              "process GPU-bbbb0000-1111-2222-3333-444455556666 4711 14541\n"
              "process GPU-bbbb0000-1111-2222-3333-444455556666 4712 -1\n");
    n = opened();
    assert_string_equal(nvml_driver(n), "580.95.05");
    assert_int_equal(sample(n, g), 2);
    assert_string_equal(g[0].uuid, A);
    assert_string_equal(g[0].name, "NVIDIA H100");
    assert_string_equal(g[1].pci, "00000000:02:00.0");
    assert_true(g[1].memory_total == 81559ull << 20 && g[1].memory_used == 61559ull << 20);
    assert_int_equal(g[1].utilisation, 98);
    assert_int_equal(g[1].temperature, 71);
    assert_int_equal(g[1].slowdown, 90);
    assert_true(g[1].processes_known);
    assert_int_equal(g[1].n_processes, 2);
    assert_int_equal(g[1].process[0].pid, 4711);
    assert_true(g[1].process[1].bytes == NVML_UNKNOWN);
    assert_true(!g[1].mig && !g[1].lost && !g[1].rows_failed && g[1].uncorrected == 0);
    nvml_close(n);
}

/* A GPU that is split gives its place to its instances. */
static void test_instances(void **state)
{
    static struct nvml_gpu g[NVML_GPUS_MAX];
    static const char parts[] =
        "set GPU-aaaa0000-1111-2222-3333-444455556666 mig 1\n"
        "set GPU-aaaa0000-1111-2222-3333-444455556666 temp 55\n"
        "set GPU-aaaa0000-1111-2222-3333-444455556666 uncorrected 4\n"
        "mig GPU-aaaa0000-1111-2222-3333-444455556666 MIG-1111 H100_MIG_3g.40gb 40000\n"
        "mig GPU-aaaa0000-1111-2222-3333-444455556666 MIG-2222 H100_MIG_1g.10gb 9856\n"
        "process MIG-2222 4711 100\n";
    struct nvml *n;

    (void)state;
    play(TWO, parts);
    n = opened();
    assert_int_equal(sample(n, g), 3);
    assert_string_equal(g[0].uuid, "MIG-1111");
    assert_string_equal(g[1].uuid, "MIG-2222");
    assert_string_equal(g[2].uuid, B);
    assert_string_equal(g[0].name, "H100 MIG 3g.40gb");
    assert_true(g[1].memory_total == 9856ull << 20);
    for (int i = 0; i < 2; i++) {
        assert_string_equal(g[i].parent, A);
        assert_string_equal(g[i].pci, "00000000:01:00.0");
        assert_true(g[i].temperature == 55 && g[i].uncorrected == 4);
        assert_true(g[i].utilisation == -1 && !g[i].mig && g[i].processes_known);
    }
    assert_true(g[0].n_processes == 0 && g[1].n_processes == 1);
    assert_string_equal(g[2].parent, "");
    play(TWO, "set GPU-aaaa0000-1111-2222-3333-444455556666 mig 1\n"); /* no instance yet */
    assert_int_equal(sample(n, g), 2);
    assert_true(g[0].mig && !strcmp(g[0].uuid, A));
    nvml_close(n);
}

/* What a call does not say is not known; what it needs is said. */
static void test_calls_that_say_no(void **state)
{
    static struct nvml_gpu g[NVML_GPUS_MAX];
    struct nvml *n;

    (void)state;
    play(TWO, "missing memory\nmissing utilization\nmissing temperature\nmissing processes\n"
              "missing ecc\nmissing rows\nmissing mig\nmissing threshold\n");
    n = opened();
    assert_int_equal(sample(n, g), 2);
    assert_true(g[0].memory_total == NVML_UNKNOWN && g[0].uncorrected == NVML_UNKNOWN);
    assert_int_equal(g[0].utilisation, -1);
    assert_int_equal(g[0].slowdown, -1);
    assert_false(g[0].processes_known);
    assert_string_equal(g[0].trouble, "");
    play(TWO, "set GPU-aaaa0000-1111-2222-3333-444455556666 code 999\n");
    assert_int_equal(sample(n, g), 2);
    assert_string_equal(g[0].uuid, A); /* as it was last seen */
    assert_non_null(strstr(g[0].trouble, "handle"));
    play(TWO, "set GPU-bbbb0000-1111-2222-3333-444455556666 lost 1\n");
    assert_int_equal(sample(n, g), 2);
    assert_string_equal(g[1].uuid, B);
    assert_true(g[1].lost && !g[0].lost);
    nvml_close(n);
}

static void test_drivers_that_say_no(void **state)
{
    static const struct {
        const char *play, *says;
    } t[] = {{"init 9\n", "Driver Not Loaded"}, {"init 18\n", "version mismatch"}};
    struct nvml *n = NULL;
    struct err err;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(t); i++) {
        play(TWO, t[i].play);
        assert_int_equal(nvml_open(&n, &err), -EIO);
        assert_non_null(strstr(err.text, t[i].says));
        assert_null(n);
    }
}

static void test_events(void **state)
{
    struct nvml_event e;
    struct nvml *n;

    (void)state;
    play("", "");
    n = opened();
    assert_int_equal(nvml_wait(n, 0, &e), -EIO); /* no GPU yet */
    play(TWO, "");
    assert_int_equal(nvml_wait(n, 0, &e), 0);
    play(TWO, "event 1 GPU-bbbb0000-1111-2222-3333-444455556666 xid 79\n"
              "event 2 GPU-aaaa0000-1111-2222-3333-444455556666 ecc\n"
              "set GPU-bbbb0000-1111-2222-3333-444455556666 lost 1\n");
    assert_int_equal(nvml_wait(n, 100, &e), 1);
    assert_string_equal(e.uuid, B); /* although it is lost */
    assert_true(!e.ecc && e.xid == 79);
    assert_int_equal(nvml_wait(n, 100, &e), 1);
    assert_true(e.ecc && !strcmp(e.uuid, A));
    /* A lost GPU spoils the set; the others' events still come. */
    assert_int_equal(nvml_wait(n, 0, &e), -EIO);
    assert_int_equal(nvml_wait(n, 0, &e), 0);
    play(TWO, "event 3 GPU-aaaa0000-1111-2222-3333-444455556666 xid 48\n"
              "set GPU-bbbb0000-1111-2222-3333-444455556666 lost 1\n");
    assert_int_equal(nvml_wait(n, 100, &e), 1);
    assert_true(e.xid == 48 && !strcmp(e.uuid, A));
    nvml_close(n);
}

static void on_wake(void *arg)
{
    (void)arg;
    __atomic_add_fetch(&woken, 1, __ATOMIC_RELAXED);
}

static struct gpu_watch *watch(void)
{
    const struct gpu_watch_opts o = {
        .period_ms = 20, .hang_ms = 100, .open_ms = 100, .retry_ms = 30, .wake = on_wake};
    struct gpu_watch *w;

    assert_int_equal(gpu_watch_start(&o, &w), 0);
    return w;
}

static void until(struct gpu_watch *w, struct gpu_watch_news *n, enum gpu_watch_state s)
{
    for (int i = 0; i < 500; i++) {
        gpu_watch_take(w, n);
        if (n->state == s)
            return;
        usleep(10000);
    }
    fail_msg("state %d, not %d", n->state, s);
}

/* A call that hangs is seen, by someone who never waits; what was known stays, and when
 * it returns all goes on. */
static void test_a_driver_that_hangs(void **state)
{
    static struct gpu_watch_news n;
    struct gpu_watch *w;
    uint64_t sample_then;
    char mine[128];

    (void)state;
    snprintf(mine, sizeof mine, "process %s %d 100\nprocess %s 999999999 1\n", A, (int)getpid(), A);
    play(TWO, mine);
    w = watch();
    gpu_watch_await(w, 5000);
    until(w, &n, GPU_WATCH_OK);
    assert_int_equal(n.n_gpus, 2);
    assert_int_equal(n.gpus[0].process[0].pid, getpid());
    assert_int_equal(n.gpus[0].process[0].session, getsid(0));
    assert_string_equal(n.gpus[0].process[0].name, "test_nvml");
    assert_int_equal(n.gpus[0].process[1].pid, 0);
    play(TWO, "hang temperature\n");
    until(w, &n, GPU_WATCH_HANGS);
    assert_int_equal(n.n_gpus, 2);
    sample_then = n.sample;
    play(TWO, "event 1 GPU-aaaa0000-1111-2222-3333-444455556666 xid 48\n");
    until(w, &n, GPU_WATCH_OK);
    for (int i = 0; i < 500 && (n.sample <= sample_then + 1 || n.n_events == 0); i++) {
        usleep(10000);
        const size_t had = n.n_events;
        gpu_watch_take(w, &n);
        if (had)
            break;
    }
    assert_true(n.sample > sample_then);
    assert_true(__atomic_load_n(&woken, __ATOMIC_RELAXED) > 0);
    assert_int_equal(gpu_watch_stop(w), 0);
}

/* It hangs for good: the owner goes on without it. */
static void test_a_driver_that_never_returns(void **state)
{
    static struct gpu_watch_news n;
    struct gpu_watch *w;

    (void)state;
    play(TWO, "hang init\n");
    w = watch();
    gpu_watch_await(w, 50);
    until(w, &n, GPU_WATCH_HANGS);
    assert_int_equal(n.n_gpus, 0);
    assert_int_equal(gpu_watch_stop(w), 1);
}

static void test_a_driver_that_is_mended(void **state)
{
    static struct gpu_watch_news n;
    struct gpu_watch *w;

    (void)state;
    play(TWO, "init 18\n");
    w = watch();
    until(w, &n, GPU_WATCH_REFUSED);
    assert_non_null(strstr(n.why, "mismatch"));
    play(TWO, "");
    until(w, &n, GPU_WATCH_OK);
    assert_int_equal(n.n_gpus, 2);
    assert_int_equal(gpu_watch_stop(w), 0);
}

/* An older driver: no events, no list of processes, and all else works. */
static void test_an_older_driver(void **state)
{
    static struct nvml_gpu g[NVML_GPUS_MAX];
    struct nvml_event e;
    struct nvml *n;

    (void)state;
    play(TWO, "");
    n = opened();
    assert_int_equal(sample(n, g), 2);
    assert_true(g[0].memory_total == 81559ull << 20);
    assert_true(!g[0].processes_known && !g[0].mig);
    assert_int_equal(nvml_wait(n, 0, &e), -ENOTSUP);
    nvml_close(n);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_inventory),
        cmocka_unit_test(test_calls_that_say_no),
        cmocka_unit_test(test_instances),
        cmocka_unit_test(test_drivers_that_say_no),
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_a_driver_that_hangs),
        cmocka_unit_test(test_a_driver_that_is_mended),
    };
    const struct CMUnitTest old[] = {cmocka_unit_test(test_an_older_driver)};
    const struct CMUnitTest hang[] = {cmocka_unit_test(test_a_driver_that_never_returns)};
    const bool hangs = argc > 1 && !strcmp(argv[1], "hang");
    int fd, r;

    snprintf(path, sizeof path, "/tmp/alignd-nvml-XXXXXX");
    fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    setenv("ALIGND_PLAYED_NVML", path, 1);
    if (hangs)
        r = cmocka_run_group_tests(hang, NULL, NULL);
    else
        r = argc > 1 && !strcmp(argv[1], "old") ? cmocka_run_group_tests(old, NULL, NULL)
                                                : cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    if (hangs)
        _exit(r); /* a thread is left in the driver: nothing is tidied up under it */
    return r;
}
