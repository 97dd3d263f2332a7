/* test_coll.c - one list of checks over every implementation of coll.h. */
#include "tests/support/test.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proto/limit.h"
#include "tests/support/shelf.h"
#include "worker/coll.h"
#include "worker/rng.h"

/* One rank's thread: what it runs, what it brings back. */
struct rank {
    const char *backend;
    uint32_t rank, ranks;
    void *local;
    struct coll_store store;
    int64_t timeout_ms;
    void (*run)(struct rank *me, struct coll *c);
    size_t nf, nd;
    float *f;
    double *d;
    int r;
    double seconds;
    struct err err;
    pthread_t thread;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *rank_main(void *arg)
{
    struct rank *me = arg;
    struct coll *c = NULL;
    const struct coll_opts o = {.backend = me->backend,
                                .rank = me->rank,
                                .ranks = me->ranks,
                                .store = &me->store,
                                .local = me->local,
                                .timeout_ms = me->timeout_ms};

    me->r = coll_open(&o, &c, &me->err);
    if (me->r == 0)
        me->run(me, c);
    coll_close(c);
    return NULL;
}

/* Runs `run` on every rank and waits for them. */
static void gang(const char *backend, struct rank *v, uint32_t ranks, int64_t timeout_ms,
                 void (*run)(struct rank *me, struct coll *c))
{
    struct shelf *s = calloc(1, sizeof *s);
    void *local = coll_local_new(ranks);

    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, NULL);
    for (uint32_t i = 0; i < ranks; i++) {
        v[i].backend = backend;
        v[i].rank = i;
        v[i].ranks = ranks;
        v[i].local = local;
        v[i].store = (struct coll_store){shelf_put, shelf_get, s};
        v[i].timeout_ms = timeout_ms;
        v[i].run = run;
        assert_int_equal(pthread_create(&v[i].thread, NULL, rank_main, &v[i]), 0);
    }
    for (uint32_t i = 0; i < ranks; i++)
        pthread_join(v[i].thread, NULL);
    coll_local_free(local);
    free(s);
}

static void run_sum(struct rank *me, struct coll *c)
{
    assert_int_equal(coll_rank(c), me->rank);
    assert_int_equal(coll_ranks(c), me->ranks);
    me->r = coll_sum(c, me->f, me->nf, me->d, me->nd, &me->err);
}

/* Values of rank r: small integers, or floats of many magnitudes. */
static void fill(struct rank *me, uint32_t r, size_t nf, size_t nd, bool integers)
{
    me->nf = nf;
    me->nd = nd;
    me->f = malloc((nf + 1) * sizeof *me->f);
    me->d = malloc((nd + 1) * sizeof *me->d);
    for (size_t i = 0; i < nf + nd; i++) {
        const struct kn_philox b = rng_at(7, RNG_SHUFFLE, r, i);
        double x = integers ? (double)(b.v[0] % 201) - 100 : (double)(int32_t)b.v[0];
        if (!integers)
            for (uint32_t k = 0; k < b.v[1] % 40; k++)
                x /= 2;
        if (i < nf)
            me->f[i] = (float)x;
        else
            me->d[i - nf] = x;
    }
    me->f[nf] = 12345;
    me->d[nd] = 12345;
}

static void drop(struct rank *v, uint32_t ranks)
{
    for (uint32_t i = 0; i < ranks; i++) {
        free(v[i].f);
        free(v[i].d);
    }
}

static const size_t sizes[][2] = {{0, 1},   {1, 0},   {1, 3},     {15, 2},
                                  {16, 16}, {17, 64}, {5000, 33}, {100003, 9}};

/* Every size in one group; what comes out is known to each rank. */
static void run_sizes(struct rank *me, struct coll *c)
{
    for (size_t k = 0; k < ARRAY_LEN(sizes) && me->r == 0; k++) {
        const size_t nf = sizes[k][0], nd = sizes[k][1];
        struct rank v = {0}, want = {0};

        fill(&v, me->rank, nf, nd, true);
        fill(&want, 0, nf, nd, true);
        for (uint32_t p = 1; p < me->ranks; p++) {
            struct rank one = {0};
            fill(&one, p, nf, nd, true);
            for (size_t e = 0; e < nf; e++)
                want.f[e] += one.f[e];
            for (size_t e = 0; e < nd; e++)
                want.d[e] += one.d[e];
            drop(&one, 1);
        }
        me->r = coll_sum(c, v.f, nf, v.d, nd, &me->err);
        assert_memory_equal(v.f, want.f, (nf + 1) * sizeof(float));
        assert_memory_equal(v.d, want.d, (nd + 1) * sizeof(double));
        drop(&v, 1);
        drop(&want, 1);
    }
}

static void check_sums(const char *backend, uint32_t ranks)
{
    struct rank v[4] = {0};

    gang(backend, v, ranks, 20000, run_sizes);
    for (uint32_t i = 0; i < ranks; i++)
        assert_int_equal(v[i].r, 0);
}

static void test_sum_exact(void **state)
{
    (void)state;
    check_sums("gloo", 1);
    for (uint32_t ranks = 2; ranks <= 4; ranks++) {
        check_sums("local", ranks);
        check_sums("gloo", ranks);
    }
}

/* Rank order, rounding after each addition, on every rank and implementation. */
static void test_sum_same_bits(void **state)
{
    (void)state;
    for (uint32_t ranks = 1; ranks <= 4; ranks++) {
        const size_t nf = 40007, nd = 129;
        struct rank a[4] = {0}, b[4] = {0}, in[4] = {0};

        for (uint32_t i = 0; i < ranks; i++) {
            fill(&a[i], i, nf, nd, false);
            fill(&b[i], i, nf, nd, false);
            fill(&in[i], i, nf, nd, false);
        }
        for (uint32_t p = 1; p < ranks; p++) {
            for (size_t e = 0; e < nf; e++)
                in[0].f[e] += in[p].f[e];
            for (size_t e = 0; e < nd; e++)
                in[0].d[e] += in[p].d[e];
        }
        gang("local", a, ranks, 20000, run_sum);
        gang("gloo", b, ranks, 20000, run_sum);
        for (uint32_t i = 0; i < ranks; i++) {
            assert_memory_equal(a[i].f, in[0].f, nf * sizeof(float));
            assert_memory_equal(a[i].d, in[0].d, nd * sizeof(double));
            assert_memory_equal(b[i].f, in[0].f, nf * sizeof(float));
            assert_memory_equal(b[i].d, in[0].d, nd * sizeof(double));
        }
        drop(a, ranks);
        drop(b, ranks);
        drop(in, ranks);
    }
}

static void run_many(struct rank *me, struct coll *c)
{
    for (int i = 0; i < 60 && me->r == 0; i++) {
        uint32_t word = me->rank == (uint32_t)i % me->ranks ? (uint32_t)i : 0xffffffffu;
        float f[3] = {1, (float)me->rank, (float)i};
        double d[2] = {(double)i, 0.5};

        me->r = coll_sum(c, f, 3, d, 2, &me->err);
        assert_true(f[0] == (float)me->ranks && d[1] == 0.5 * me->ranks);
        assert_true(f[2] == (float)(i * (int)me->ranks) && d[0] == (double)(i * (int)me->ranks));
        if (me->r == 0)
            me->r = coll_broadcast(c, &word, sizeof word, (uint32_t)i % me->ranks, &me->err);
        assert_int_equal(word, i);
    }
}

static void test_many_rounds(void **state)
{
    static const char *const backends[] = {"local", "gloo"};

    (void)state;
    for (size_t k = 0; k < ARRAY_LEN(backends); k++) {
        for (uint32_t ranks = 1; ranks <= 4; ranks++) {
            struct rank v[4] = {0};
            gang(backends[k], v, ranks, 20000, run_many);
            for (uint32_t i = 0; i < ranks; i++)
                assert_int_equal(v[i].r, 0);
        }
    }
}

/* Rank 1 leaves after one round: the others learn it at once and for good. */
static void run_leave(struct rank *me, struct coll *c)
{
    float f[64] = {1};
    double d[4] = {1};

    me->r = coll_sum(c, f, 64, d, 4, &me->err);
    if (me->rank == 1 || me->r < 0)
        return;
    const double t0 = now();
    me->r = coll_sum(c, f, 64, d, 4, &me->err);
    const int again = coll_broadcast(c, f, 4, 0, NULL);
    assert_int_equal(again, me->r);
    me->seconds = now() - t0;
}

static void test_peer_gone(void **state)
{
    static const char *const backends[] = {"local", "gloo"};

    (void)state;
    for (size_t k = 0; k < ARRAY_LEN(backends); k++) {
        for (uint32_t ranks = 2; ranks <= 4; ranks++) {
            struct rank v[4] = {0};
            gang(backends[k], v, ranks, 20000, run_leave);
            for (uint32_t i = 0; i < ranks; i++) {
                assert_int_equal(v[i].r, i == 1 ? 0 : -ECONNRESET);
                assert_true(v[i].seconds < 5);
                if (i != 1)
                    assert_non_null(strstr(v[i].err.text, "peer is gone"));
            }
        }
    }
}

/* Rank 1 is alive and does nothing. */
static void run_stall(struct rank *me, struct coll *c)
{
    float f[64] = {1};

    if (me->rank == 1) {
        nanosleep(&(struct timespec){2, 0}, NULL);
        return;
    }
    const double t0 = now();
    me->r = coll_sum(c, f, 64, NULL, 0, &me->err);
    me->seconds = now() - t0;
}

static void test_peer_stalls(void **state)
{
    static const char *const backends[] = {"local", "gloo"};

    (void)state;
    for (size_t k = 0; k < ARRAY_LEN(backends); k++) {
        struct rank v[2] = {0};
        gang(backends[k], v, 2, 500, run_stall);
        assert_int_equal(v[0].r, -ETIMEDOUT);
        assert_true(v[0].seconds > 0.4 && v[0].seconds < 1.9);
    }
}

static void test_refusals(void **state)
{
    struct coll_opts o = {.backend = "gloo", .rank = 0, .ranks = 0, .timeout_ms = 1000};
    struct coll *c = NULL;
    struct err err;

    (void)state;
    assert_int_equal(coll_open(&o, &c, &err), -EINVAL);
    o.ranks = LIMIT_RANKS + 1;
    assert_int_equal(coll_open(&o, &c, &err), -EINVAL);
    o.ranks = 2;
    assert_int_equal(coll_open(&o, &c, &err), -EINVAL); /* no store */
    o.backend = "mpi";
    assert_int_equal(coll_open(&o, &c, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "mpi"));
    o.backend = "gloo";
    o.ranks = 1;
    assert_int_equal(coll_open(&o, &c, &err), 0);
    assert_int_equal(coll_broadcast(c, &o, sizeof o, 1, &err), -EINVAL);
    coll_close(c);
    coll_close(NULL);
}

/* The second rank never comes. */
static void test_rank_missing(void **state)
{
    struct shelf *s = calloc(1, sizeof *s);
    const struct coll_store store = {shelf_put, shelf_get, s};
    const struct coll_opts o = {
        .backend = "gloo", .rank = 0, .ranks = 2, .store = &store, .timeout_ms = 300};
    struct coll *c = NULL;
    struct err err = {""};

    (void)state;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, NULL);
    assert_int_equal(coll_open(&o, &c, &err), -ETIMEDOUT);
    assert_non_null(strstr(err.text, "meet"));
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_exact),   cmocka_unit_test(test_sum_same_bits),
        cmocka_unit_test(test_many_rounds), cmocka_unit_test(test_peer_gone),
        cmocka_unit_test(test_peer_stalls), cmocka_unit_test(test_rank_missing),
        cmocka_unit_test(test_refusals),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
