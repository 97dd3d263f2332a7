/* skips_some.c - a program of tests, two of which skip: what count.py has to see. */
#include "tests/support/test.h"

static void here(void **state)
{
    (void)state;
}

static void not_here(void **state)
{
    (void)state;
    skip();
}

static void nor_here(void **state)
{
    (void)state;
    skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(here),
        cmocka_unit_test(not_here),
        cmocka_unit_test(nor_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
