/* test_queue.c - the queue's order, against sorting; and that it stays quick. */
#include <stdlib.h>

#include "tests/support/test.h"

#include "daemon/queue.h"

enum { N = 2000 };

static uint64_t next(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return *s >> 33;
}

static int by_order(const void *a, const void *b)
{
    const struct job *x = *(const struct job *const *)a, *y = *(const struct job *const *)b;

    if (x->priority != y->priority)
        return x->priority > y->priority ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

static void test_any_inserts_and_removes_keep_it_sorted(void **state)
{
    static struct job job[N];
    static const struct job *want[N];
    struct queue q = {0};
    uint64_t s = 1;
    bool in[N] = {0};

    (void)state;
    for (int i = 0; i < N; i++)
        job[i] = (struct job){
            .id = (uint64_t)i + 1, .order = (uint64_t)i, .priority = (int64_t)(next(&s) % 5) - 2};
    for (int round = 0; round < 20000; round++) {
        const size_t i = next(&s) % N;
        if (in[i])
            assert_true(queue_remove(&q, &job[i]));
        else
            assert_int_equal(queue_insert(&q, &job[i]), 0);
        in[i] = !in[i];
        if (round % 500)
            continue;
        size_t n = 0;
        for (int k = 0; k < N; k++)
            if (in[k])
                want[n++] = &job[k];
        qsort(want, n, sizeof(want[0]), by_order);
        for (size_t k = 0; k < n; k++)
            assert_ptr_equal(queue_at(&q, k), want[k]);
        assert_null(queue_at(&q, n));
    }
    queue_fini(&q);
}

static void test_twice_in_and_never_in(void **state)
{
    struct job a = {.id = 1}, b = {.id = 2};
    struct queue q = {0};

    (void)state;
    assert_false(queue_remove(&q, &a));
    assert_int_equal(queue_insert(&q, &a), 0);
    assert_int_equal(queue_insert(&q, &a), 0);
    assert_false(queue_remove(&q, &b));
    assert_true(queue_remove(&q, &a));
    assert_false(queue_remove(&q, &a));
    assert_null(queue_at(&q, 0));
    queue_fini(&q);
}

/* 100,000 in at the end and out at the front: the memory stays what the queue needs. */
static void test_a_long_life_does_not_grow_it(void **state)
{
    static struct job job[100];
    struct queue q = {0};

    (void)state;
    for (uint64_t i = 0; i < 100000; i++) {
        struct job *j = &job[i % 100];
        if (i >= 100)
            assert_true(queue_remove(&q, j));
        *j = (struct job){.id = i + 1, .order = i};
        assert_int_equal(queue_insert(&q, j), 0);
    }
    assert_true(q.cap <= 512);
    queue_fini(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_inserts_and_removes_keep_it_sorted),
        cmocka_unit_test(test_twice_in_and_never_in),
        cmocka_unit_test(test_a_long_life_does_not_grow_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
