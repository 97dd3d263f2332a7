/* test_coll_nccl.c - sums from device to device over the simulation's twin of NCCL:
 * ranks are processes, as they are on GPUs; they are killed, stopped and misled. */
#include "tests/support/test.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/support/shelf.h"
#include "worker/coll.h"
#include "worker/nccl_abi.h"
#include "worker/rng.h"

#ifdef HAVE_NCCL_HEADER
#include <nccl.h>
_Static_assert(sizeof(struct nccl_id) == sizeof(ncclUniqueId), "ncclUniqueId");
_Static_assert(offsetof(struct nccl_config, magic) == offsetof(ncclConfig_t, magic), "magic");
_Static_assert(offsetof(struct nccl_config, version) == offsetof(ncclConfig_t, version), "version");
_Static_assert(offsetof(struct nccl_config, blocking) == offsetof(ncclConfig_t, blocking), "mode");
_Static_assert((int)NCCL_SUCCESS == (int)ncclSuccess, "ncclSuccess");
_Static_assert((int)NCCL_REMOTE_ERROR == (int)ncclRemoteError, "ncclRemoteError");
_Static_assert((int)NCCL_IN_PROGRESS == (int)ncclInProgress, "ncclInProgress");
_Static_assert((int)NCCL_INT8 == (int)ncclInt8, "ncclInt8");
#endif

enum { RANKS = 4 };

struct world { /* shared by the processes */
    struct shelf shelf;
    atomic_int lost;
    bool hide_id; /* rank 0's id never arrives                                     */
    struct {
        int r, again, bad, attached;
        double seconds;
        char text[512];
    } of[RANKS];
};

struct me {
    struct world *w;
    uint32_t rank, ranks;
    struct coll *c;
    const struct kn_ops *ops;
    struct kn_ctx *ctx;
    struct err err;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int world_put(void *arg, const char *key, const void *value, size_t bytes)
{
    struct world *w = arg;

    return w->hide_id && strcmp(key, "nccl") == 0 ? 0 : shelf_put(&w->shelf, key, value, bytes);
}

static int world_get(void *arg, const char *key, void *value, size_t cap, size_t *ret_bytes,
                     int64_t timeout_ms)
{
    struct world *w = arg;

    return shelf_get(&w->shelf, key, value, cap, ret_bytes, timeout_ms);
}

static bool world_lost(void *arg)
{
    struct world *w = arg;

    return atomic_load(&w->lost) != 0;
}

static struct world *world_new(void)
{
    struct world *w =
        mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_t m;
    pthread_condattr_t c;

    assert_true(w != MAP_FAILED);
    pthread_mutexattr_init(&m);
    pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&w->shelf.mutex, &m);
    pthread_condattr_init(&c);
    pthread_condattr_setpshared(&c, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&w->shelf.changed, &c);
    return w;
}

/* One rank, in a process of its own. */
static int rank_main(struct me *me, const char *backend, int64_t timeout_ms,
                     void (*run)(struct me *me))
{
    const struct coll_store store = {world_put, world_get, me->w};
    const struct coll_opts o = {.backend = "nccl",
                                .rank = me->rank,
                                .ranks = me->ranks,
                                .store = &store,
                                .timeout_ms = timeout_ms,
                                .lost = world_lost,
                                .lost_arg = me->w};
    char why[256];
    int r = kn_backend(backend, &me->ops, why, sizeof why);

    if (r == 0)
        r = me->ops->open(&(struct kn_open){.threads = 1, .compute = KN_F32}, &me->ctx);
    if (r == 0)
        r = coll_open(&o, &me->c, &me->err);
    if (r == 0) {
        const double t0 = now();
        r = coll_attach(me->c, me->ops, me->ctx, &me->err);
        me->w->of[me->rank].seconds = now() - t0;
    }
    me->w->of[me->rank].attached = coll_attached(me->c);
    me->w->of[me->rank].r = r;
    if (r == 0)
        run(me);
    snprintf(me->w->of[me->rank].text, sizeof me->w->of[0].text, "%s", me->err.text);
    coll_detach(me->c);
    coll_close(me->c);
    me->ops->close(me->ctx);
    return 0;
}

static void gang(struct world *w, uint32_t ranks, const char *backend, int64_t timeout_ms,
                 void (*run)(struct me *me), pid_t *pids)
{
    for (uint32_t i = 0; i < ranks; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0) {
            struct me me = {.w = w, .rank = i, .ranks = ranks};
            exit(rank_main(&me, backend, timeout_ms, run));
        }
    }
}

static int reap(pid_t pid)
{
    int status = 0;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void run_gang(struct world *w, uint32_t ranks, const char *backend, int64_t timeout_ms,
                     void (*run)(struct me *me))
{
    pid_t pids[RANKS];

    gang(w, ranks, backend, timeout_ms, run, pids);
    for (uint32_t i = 0; i < ranks; i++)
        (void)reap(pids[i]);
}

/* Value i of rank r: floats of many magnitudes, zeros of both signs. */
static double value(uint32_t r, size_t i)
{
    const struct kn_philox b = rng_at(11, RNG_SHUFFLE, r, i);
    double x = (double)(int32_t)b.v[0];

    if (b.v[2] % 64 == 0)
        return b.v[2] & 64 ? 0.0 : -0.0;
    for (uint32_t k = 0; k < b.v[1] % 40; k++)
        x /= 2;
    return x;
}

/* A sum of nf floats on the device and nd doubles: bits against additions in rank order. */
static int sum_once(struct me *me, size_t nf, size_t nd)
{
    const size_t bytes = (nf + 16) * sizeof(float);
    float *host = malloc(bytes), *want = malloc(bytes), *dev = NULL;
    double *d = malloc((nd + 1) * sizeof *d), *want_d = malloc((nd + 1) * sizeof *d);
    int r = me->ops->alloc(me->ctx, bytes, (void **)&dev);

    for (size_t i = 0; i < nf + 16; i++)
        host[i] = want[i] = i < nf ? (float)value(me->rank, i) : 12345.0f;
    for (size_t i = 0; i < nf; i++) {
        want[i] = (float)value(0, i);
        for (uint32_t p = 1; p < me->ranks; p++)
            want[i] += (float)value(p, i);
    }
    for (size_t i = 0; i < nd; i++) {
        d[i] = value(me->rank, nf + i);
        want_d[i] = value(0, nf + i);
        for (uint32_t p = 1; p < me->ranks; p++)
            want_d[i] += value(p, nf + i);
    }
    if (r == 0)
        r = me->ops->copy(me->ctx, dev, host, bytes, KN_TO_DEVICE);
    if (r == 0)
        r = coll_sum_device(me->c, dev, nf, d, nd, &me->err);
    if (r == 0)
        r = me->ops->copy(me->ctx, host, dev, bytes, KN_TO_HOST);
    if (r == 0)
        me->w->of[me->rank].bad +=
            memcmp(host, want, bytes) != 0 || memcmp(d, want_d, nd * sizeof *d) != 0;
    me->ops->free(me->ctx, dev);
    free(host);
    free(want);
    free(d);
    free(want_d);
    return r;
}

static void run_sizes(struct me *me)
{
    static const size_t sizes[][2] = {{1, 0},     {16, 1},    {17, 3},    {1023, 2},
                                      {5000, 33}, {40007, 9}, {16384, 1}, {1, 70}};
    int r = 0;

    for (size_t k = 0; k < ARRAY_LEN(sizes) && r == 0; k++)
        r = sum_once(me, sizes[k][0], sizes[k][1]);
    me->w->of[me->rank].r = r;
}

static void test_same_bits(void **state)
{
    (void)state;
    for (uint32_t ranks = 2; ranks <= RANKS; ranks++) {
        struct world *w = world_new();
        run_gang(w, ranks, "sim", 20000, run_sizes);
        for (uint32_t i = 0; i < ranks; i++) {
            if (w->of[i].r != 0)
                fail_msg("rank %u of %u: %s", i, ranks, w->of[i].text);
            assert_int_equal(w->of[i].bad, 0);
        }
        munmap(w, sizeof *w);
    }
}

/* Sums of the devices and of the hosts take turns. */
static void run_turns(struct me *me)
{
    int r = 0;

    for (int i = 0; i < 20 && r == 0; i++) {
        uint32_t word = me->rank == (uint32_t)i % me->ranks ? (uint32_t)i : 0xffffffffu;
        double d = me->rank;
        r = sum_once(me, 100 + (size_t)i % 3, 2);
        if (r == 0)
            r = coll_broadcast(me->c, &word, sizeof word, (uint32_t)i % me->ranks, &me->err);
        if (r == 0)
            r = coll_sum(me->c, NULL, 0, &d, 1, &me->err);
        me->w->of[me->rank].bad += word != (uint32_t)i || d != 1.0;
    }
    me->w->of[me->rank].r = r;
}

static void test_turns(void **state)
{
    struct world *w = world_new();

    (void)state;
    run_gang(w, 2, "sim", 20000, run_turns);
    for (int i = 0; i < 2; i++) {
        if (w->of[i].r != 0)
            fail_msg("rank %d: %s", i, w->of[i].text);
        assert_int_equal(w->of[i].bad, 0);
    }
    munmap(w, sizeof *w);
}

/* After a failure: the same error at once, and the device's stream comes to an end. */
static void note_failure(struct me *me, int r, double t0)
{
    double d = 0;

    me->w->of[me->rank].r = r;
    me->w->of[me->rank].seconds = now() - t0;
    me->w->of[me->rank].again = coll_sum(me->c, NULL, 0, &d, 1, NULL);
    me->w->of[me->rank].bad = me->ops->sync(me->ctx) != 0;
}

/* Rank 1 dies or stops after the first sum; the others are in the second. */
static void run_then_signal(struct me *me, int number)
{
    int r = sum_once(me, 3000, 4);

    if (r == 0 && me->rank == 1)
        (void)raise(number);
    const double t0 = now();
    if (r == 0)
        r = sum_once(me, 3000, 4);
    note_failure(me, r, t0);
}

static void run_killed(struct me *me)
{
    run_then_signal(me, SIGKILL);
}

static void run_stopped(struct me *me)
{
    run_then_signal(me, SIGSTOP);
}

static void test_rank_killed(void **state)
{
    (void)state;
    for (uint32_t ranks = 2; ranks <= 3; ranks++) {
        struct world *w = world_new();
        run_gang(w, ranks, "sim", 20000, run_killed);
        for (uint32_t i = 0; i < ranks; i++) {
            if (i == 1)
                continue;
            assert_int_equal(w->of[i].r, -ECONNRESET);
            assert_int_equal(w->of[i].again, -ECONNRESET);
            assert_int_equal(w->of[i].bad, 0);
            assert_true(w->of[i].seconds < 5);
            assert_non_null(strstr(w->of[i].text, "peer is gone"));
        }
        munmap(w, sizeof *w);
    }
}

/* Between GPUs of one machine NCCL notices nothing; the supervisor does. */
static void test_killed_unnoticed(void **state)
{
    struct world *w = world_new();
    pid_t pids[2];

    (void)state;
    setenv("CUSIM_NCCL", "deaf", 1);
    gang(w, 2, "sim", 20000, run_killed, pids);
    unsetenv("CUSIM_NCCL");
    assert_int_equal(WTERMSIG(reap(pids[1])), SIGKILL);
    nanosleep(&(struct timespec){0, 100000000}, NULL);
    assert_int_equal(waitpid(pids[0], NULL, WNOHANG), 0); /* it waits */
    atomic_store(&w->lost, 1);
    (void)reap(pids[0]);
    assert_int_equal(w->of[0].r, -ECONNRESET);
    assert_int_equal(w->of[0].bad, 0);
    assert_non_null(strstr(w->of[0].text, "supervisor"));
    munmap(w, sizeof *w);
}

static void test_rank_stopped(void **state)
{
    struct world *w = world_new();
    pid_t pids[2];

    (void)state;
    gang(w, 2, "sim", 600, run_stopped, pids);
    (void)reap(pids[0]);
    kill(pids[1], SIGKILL);
    (void)reap(pids[1]);
    assert_int_equal(w->of[0].r, -ETIMEDOUT);
    assert_int_equal(w->of[0].again, -ETIMEDOUT);
    assert_int_equal(w->of[0].bad, 0);
    assert_true(w->of[0].seconds > 0.5 && w->of[0].seconds < 5);
    munmap(w, sizeof *w);
}

static void run_disagree(struct me *me)
{
    const double t0 = now();

    note_failure(me, sum_once(me, me->rank == 1 ? 3200 : 3000, 4), t0);
}

static void test_sizes_disagree(void **state)
{
    struct world *w = world_new();

    (void)state;
    run_gang(w, 2, "sim", 1500, run_disagree);
    assert_true(w->of[0].r == -EIO || w->of[1].r == -EIO);
    for (int i = 0; i < 2; i++)
        assert_true(w->of[i].r < 0 && w->of[i].again == w->of[i].r && w->of[i].bad == 0);
    munmap(w, sizeof *w);
}

static void run_nothing(struct me *me)
{
    (void)me;
}

static void test_never_meets(void **state)
{
    struct world *w = world_new();

    (void)state;
    w->hide_id = true;
    run_gang(w, 2, "sim", 500, run_nothing);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(w->of[i].r, -ETIMEDOUT);
        assert_int_equal(w->of[i].attached, 0);
        assert_true(w->of[i].seconds < 5);
    }
    munmap(w, sizeof *w);
}

/* Where a device has no stream the group goes on as it was. */
static void test_no_devices(void **state)
{
    struct world *w = world_new();

    (void)state;
    run_gang(w, 2, "ref", 5000, run_nothing);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(w->of[i].r, -ENOTSUP);
        assert_non_null(strstr(w->of[i].text, "NCCL"));
    }
    munmap(w, sizeof *w);
}

/* The library itself, where it lies on this machine: every name is there. */
static void test_real_names(void **state)
{
    static const char *const names[] = {"ncclGetVersion",
                                        "ncclGetUniqueId",
                                        "ncclCommInitRankConfig",
                                        "ncclCommGetAsyncError",
                                        "ncclCommFinalize",
                                        "ncclCommDestroy",
                                        "ncclCommAbort",
                                        "ncclGroupStart",
                                        "ncclGroupEnd",
                                        "ncclSend",
                                        "ncclRecv",
                                        "ncclGetErrorString"};
    const struct kn_ops *ops = NULL;

    (void)state;
    assert_int_equal(kn_backend("ref", &ops, NULL, 0), 0);
    if (!kn_symbol(ops, "libnccl.so.2", names[0]))
        skip();
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        assert_non_null(kn_symbol(ops, "libnccl.so.2", names[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),    cmocka_unit_test(test_turns),
        cmocka_unit_test(test_rank_killed),  cmocka_unit_test(test_killed_unnoticed),
        cmocka_unit_test(test_rank_stopped), cmocka_unit_test(test_sizes_disagree),
        cmocka_unit_test(test_never_meets),  cmocka_unit_test(test_no_devices),
        cmocka_unit_test(test_real_names),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
