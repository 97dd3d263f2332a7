/* test_place.c - which devices a gang gets, and the reason when it gets none. All
 * states of four devices are tried: 7^4 machines. */
#include "tests/support/test.h"

#include <string.h>

#include "daemon/place.h"

enum { FREE, USED, FOREIGN, FENCED, DRAINED, GONE, OTHER, KINDS };

static struct place_device device(int kind)
{
    struct place_device d = {.type = kind == OTHER ? JOB_GPU : JOB_CPU};

    d.job = kind == USED ? 7 : 0;
    d.foreign = kind == FOREIGN;
    d.fenced = kind == FENCED; /* `unfit` and `fault` count as it: place_is_fenced */
    d.drained = kind == DRAINED;
    d.gone = kind == GONE;
    return d;
}

static enum job_reason expected(const unsigned n[KINDS], uint32_t want)
{
    const unsigned used = n[FREE] + n[USED], foreign = used + n[FOREIGN],
                   fenced = foreign + n[FENCED], drained = fenced + n[DRAINED];

    return n[FREE] >= want   ? JOB_REASON_NONE
           : used >= want    ? JOB_REASON_RESOURCES
           : foreign >= want ? JOB_REASON_DEVICES_FOREIGN
           : fenced >= want  ? JOB_REASON_DEVICES_FENCED
           : drained >= want ? JOB_REASON_DEVICES_DRAINED
                             : JOB_REASON_DEVICES_MISSING;
}

static void test_every_machine_of_four(void **state)
{
    (void)state;
    for (int code = 0; code < KINDS * KINDS * KINDS * KINDS; code++) {
        struct place_device d[4];
        unsigned n[KINDS] = {0};
        for (int i = 0, c = code; i < 4; i++, c /= KINDS) {
            d[i] = device(c % KINDS);
            n[c % KINDS]++;
        }
        const struct place_count count = place_count(d, 4, JOB_CPU);
        assert_int_equal(count.all, 4 - n[GONE] - n[OTHER]);
        for (uint32_t want = 1; want <= 5; want++) {
            uint16_t got[5] = {99, 99, 99, 99, 99};
            const bool ok = place_pick(d, 4, JOB_CPU, want, got);
            assert_int_equal(place_reason(&count, want), expected(n, want));
            assert_int_equal(ok, n[FREE] >= want);
            for (uint32_t i = 0; i < want; i++) {
                if (!ok) {
                    assert_int_equal(got[i], 99);
                    continue;
                }
                assert_true(place_is_free(&d[got[i]]));
                assert_int_equal(d[got[i]].type, JOB_CPU);
                assert_true(i == 0 || got[i] > got[i - 1]); /* lowest first, none twice */
            }
        }
    }
}

/* In whatever order they became known: cpu:1 before cpu:10, and the lowest that are free. */
static void test_lowest_names_first(void **state)
{
    static const char *const names[] = {"cpu:10", "cpu:1", "cpu:3", "cpu:0", "gpu:0", "cpu:2"};
    struct place_device d[6];
    uint16_t got[4];

    (void)state;
    for (int i = 0; i < 6; i++) {
        d[i] = (struct place_device){.type = i == 4 ? JOB_GPU : JOB_CPU};
        strncpy(d[i].name, names[i], sizeof(d[i].name) - 1);
    }
    assert_true(place_pick(d, 6, JOB_CPU, 1, got));
    assert_int_equal(got[0], 3);
    d[1].job = 7;
    assert_true(place_pick(d, 6, JOB_CPU, 4, got));
    assert_int_equal(got[0], 3);
    assert_int_equal(got[1], 5);
    assert_int_equal(got[2], 2);
    assert_int_equal(got[3], 0);
    assert_true(place_pick(d, 6, JOB_CPU, 3, got));
    assert_int_equal(got[2], 2);
}

static void test_a_stray_is_a_use(void **state)
{
    struct place_device d = {.type = JOB_CPU, .strays = 1};

    (void)state;
    assert_false(place_is_free(&d));
    assert_int_equal(place_count(&d, 1, JOB_CPU).used, 1);
}

static void test_wants_that_cannot_be(void **state)
{
    struct place_device d = {.type = JOB_CPU};
    uint16_t got[1];

    (void)state;
    assert_false(place_pick(&d, 1, JOB_CPU, 0, got));
    assert_false(place_pick(&d, 1, JOB_CPU, UINT32_MAX, got));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_machine_of_four),
        cmocka_unit_test(test_lowest_names_first),
        cmocka_unit_test(test_a_stray_is_a_use),
        cmocka_unit_test(test_wants_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
