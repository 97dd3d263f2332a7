/* test_meeting.c - the daemon killed between the put and the get of a rendezvous value, in
 * every order, each made exactly: the gang's side stops at a gate, the daemon is killed and
 * another one started, the gate is opened. */
#include "tests/support/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/daemon/world.h"

static void gang_path(struct world *w, uint64_t job, const char *name, char *path, size_t size)
{
    struct msg m = {.type = MSG_T_hello}, *r;

    m.hello.v_min = m.hello.v_max = 1;
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_welcome);
    snprintf(path, size, "%s/gangs/alignd-%.8s-%llu-1/%s", w->state, r->welcome.store,
             (unsigned long long)job, name);
    codec_free(r);
}

static void wait_at(struct world *w, uint64_t job, const char *name)
{
    char path[320];

    gang_path(w, job, name, path, sizeof path);
    for (int i = 0; i < PATIENCE_MS / 5; i++) {
        if (access(path, F_OK) == 0)
            return;
        usleep(5000);
    }
    fail_msg("nobody came to %s", path);
}

static void make(const char *path)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fclose(f), 0);
}

static uint64_t start(struct world *w, const char *order)
{
    char spec[128];
    uint64_t job;

    snprintf(spec, sizeof spec, "{\"play\":{\"steps\":1,\"meet\":\"%s\"}}", order);
    job = world_submit(w, 1, "meet", spec);
    wait_at(w, job, "at-1");
    return job;
}

/* The gang meets under its first attempt; after that the name cannot mean anything else. */
static void check_met(struct world *w, uint64_t job)
{
    char path[320];
    json_t *o;

    wait_at(w, job, "at-2");
    o = world_show(w, job);
    assert_string_equal(world_text_of(o, "state"), "CONFIGURING");
    assert_int_equal(world_int_of(o, "attempt"), 1);
    json_decref(o);
    gang_path(w, job, "go-2", path, sizeof path);
    make(path);
    world_wait_for(w, job, "COMPLETED", 1); /* it quit: gone without a record, so once more */
    o = world_show(w, job);
    if (world_int_of(o, "attempt") != 2)
        fail_msg("a second value under the same name was taken");
    json_decref(o);
}

static void put_kill_get(void **state)
{
    struct world *w = *state;
    const uint64_t job = start(w, "put-kill-get");
    char path[320];

    gang_path(w, job, "go-1", path, sizeof path);
    world_finish(w, SIGKILL);
    world_start(w);
    make(path);
    check_met(w, job);
}

/* The put is asked of nobody: it waits in the gang's wire for the next daemon. */
static void kill_put_get(void **state)
{
    struct world *w = *state;
    const uint64_t job = start(w, "kill-put-get");
    char path[320];

    gang_path(w, job, "go-1", path, sizeof path);
    world_finish(w, SIGKILL);
    make(path);
    usleep(200000);
    world_start(w);
    check_met(w, job);
}

/* A get that a daemon held when it was killed is answered by the next one. */
static void get_kill_put(void **state)
{
    struct world *w = *state;
    const uint64_t job = start(w, "get-kill-put");
    char path[320];
    json_t *o;

    gang_path(w, job, "go-1", path, sizeof path);
    world_finish(w, SIGKILL);
    world_start(w);
    make(path);
    world_wait_for(w, job, "COMPLETED", 1);
    o = world_show(w, job);
    assert_int_equal(world_int_of(o, "attempt"), 1);
    json_decref(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(put_kill_get, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(kill_put_get, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(get_kill_put, world_setup, world_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
