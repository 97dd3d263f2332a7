/* test_job.c - the state table as a whole: what it allows, that it can trap no job,
 * and that every state and reason has its word. Exhaustive over pairs of states. */
#include <string.h>

#include "tests/support/test.h"

#include "daemon/job.h"

#define STATES(s) for (int s = JOB_PENDING; s < JOB_STATES; s++)

static void test_moves_are_those_of_the_table(void **state)
{
    (void)state;
    STATES(from)
    {
        STATES(to)
        {
            struct job j = {.state = (uint8_t)from};
            const bool may = job_may_move(from, to);
            assert_int_equal(job_move(&j, to), may);
            assert_int_equal(j.state, may ? to : from);
        }
    }
}

static void test_every_state_can_reach_an_end(void **state)
{
    bool ends[JOB_STATES] = {0};

    (void)state;
    for (int pass = 0; pass < JOB_STATES; pass++) {
        STATES(s)
        {
            ends[s] |= job_is_over(s);
            STATES(to)
            ends[s] |= job_may_move(s, to) && ends[to];
        }
    }
    STATES(s)
    assert_true(ends[s]);
}

static void test_only_resume_leads_on_from_an_end(void **state)
{
    (void)state;
    STATES(s)
    {
        if (!job_is_over(s))
            continue;
        assert_false(job_has_gang(s));
        STATES(to)
        assert_int_equal(job_may_move(s, to), to == JOB_PENDING);
    }
}

static void test_a_gang_is_placed_before_it_runs(void **state)
{
    (void)state;
    STATES(s)
    {
        if (!job_has_gang(s))
            assert_int_equal(job_may_move(s, JOB_CONFIGURING), s == JOB_PENDING);
        assert_int_equal(job_may_move(s, JOB_RUNNING), s == JOB_CONFIGURING);
    }
}

static void test_exit_before_started_may_be_a_success(void **state)
{
    (void)state;
    assert_true(job_may_move(JOB_CONFIGURING, JOB_COMPLETED));
    assert_true(job_may_move(JOB_COMPLETING, JOB_COMPLETED)); /* a cancel that came late */
}

static void test_numbers_out_of_range_are_survived(void **state)
{
    (void)state;
    for (int s = -3; s < 300; s++) {
        assert_non_null(job_state_name(s));
        assert_non_null(job_state_short(s));
        assert_non_null(job_reason_name(s));
        assert_non_null(job_phase_name(s));
        assert_int_equal(job_state_valid(s), s >= JOB_PENDING && s < JOB_STATES);
        if (!job_state_valid(s)) {
            assert_false(job_has_gang(s));
            assert_false(job_is_over(s));
            assert_false(job_may_move(s, JOB_PENDING));
            assert_false(job_may_move(JOB_PENDING, s));
        }
    }
}

static void test_every_word_is_there_once(void **state)
{
    (void)state;
    STATES(a)
    {
        assert_string_not_equal(job_state_name(a), "?");
        STATES(b)
        if (a != b) {
            assert_string_not_equal(job_state_name(a), job_state_name(b));
            assert_string_not_equal(job_state_short(a), job_state_short(b));
        }
    }
    for (int r = 0; r < JOB_REASONS; r++)
        assert_non_null(job_reason_name(r));
    assert_string_equal(job_reason_name(JOB_REASON_HELD), "JobHeldUser");
    assert_string_equal(job_state_short(JOB_COMPLETING), "CG");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moves_are_those_of_the_table),
        cmocka_unit_test(test_every_state_can_reach_an_end),
        cmocka_unit_test(test_only_resume_leads_on_from_an_end),
        cmocka_unit_test(test_a_gang_is_placed_before_it_runs),
        cmocka_unit_test(test_exit_before_started_may_be_a_success),
        cmocka_unit_test(test_numbers_out_of_range_are_survived),
        cmocka_unit_test(test_every_word_is_there_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
