/* test_core_sim.c - the scheduler's core against a hostile world.
 *
 * Whatever the order of messages, and wherever the daemon is killed,
 *   1. no device is shared by two live gangs, and no two attempts of a job live;
 *   2. nothing is acted upon or answered before it is on the disk;
 *   3. every accepted job ends, once, and as what really happened to it;
 *   4. in the end nothing runs and every device is free;
 *   5. no seq is given twice, no metric is lost or doubled;
 *   6. a job that was told to stop has a gang that was told;
 *   7. the same request id gets the same answer, and nothing idles that could run;
 *   8. what has left the core's memory comes back from the store as it was.
 *
 * One seed makes a world: gangs whose supervisors die apart from their ranks, stops
 * that take time or are not heard, jobs that finish before they were heard of or
 * while the daemon is away, launches that fail, clocks that jump, reboots, messages
 * lost, late and repeated, a disk that is full, commits of unknown outcome, and a
 * daemon killed between any two effects. Each seed draws its own fault rates.
 *
 * ALIGND_SEED=1234 replays one world, ALIGND_SIM_TRACE=1 prints it;
 * ALIGND_SEEDS=n changes how many are run. */
#include <stdlib.h>

#include "tests/support/test.h"

#include "tests/sim/world.h"

enum { SEEDS = 8000 };

static struct world w;

static int say_seed(void **state)
{
    (void)state;
    if (w.seed)
        print_message("replay with ALIGND_SEED=%llu\n", (unsigned long long)w.seed);
    return 0;
}

static void test_no_seed_breaks_the_rules(void **state)
{
    const char *only = getenv("ALIGND_SEED"), *many = getenv("ALIGND_SEEDS");
    const uint64_t first = only ? strtoull(only, NULL, 10) : 1;
    const uint64_t n = only ? 1 : many ? strtoull(many, NULL, 10) : SEEDS;

    (void)state;
    for (uint64_t seed = first; seed < first + n; seed++) {
        w.seed = seed;
        if (n > 1 && seed % 500 == 0)
            print_message("seed %llu\n", (unsigned long long)seed);
        world_run(&w, seed, getenv("ALIGND_SIM_TRACE") != NULL);
    }
    w.seed = 0;
    print_message("%lu jobs and %lu answers came back from the store\n", w.jobs_recalled,
                  w.answers_recalled);
    if (n >= 1000)
        assert_true(w.jobs_recalled > n / 4 && w.answers_recalled > n / 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_no_seed_breaks_the_rules, say_seed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
