/* test_kills.c - kill -9 of alignd, over and over: nothing acknowledged is lost or doubled, a
 * gang trains on, no metric is missing or doubled. */
#include "tests/support/test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/world.h"

enum { KILLS = 100, JOBS_MAX = 100000 };

/* ---- in the middle of submits ---- */

struct client {
    struct world *w;
    _Atomic bool stop;
    _Atomic unsigned n; /* submitted and answered     */
    uint64_t *ids;      /* what the answers said      */
};

static struct msg numbered(unsigned n, char dir[64])
{
    struct msg m = {.type = MSG_T_submit};

    snprintf(dir, 64, "/nowhere/%u", n);
    m.submit = (struct msg_submit){.name = "many",
                                   .user_spec = "{}",
                                   .resolved = "{}",
                                   .output_dir = dir,
                                   .method = "dpo",
                                   .device_type = "cpu",
                                   .devices = 1,
                                   .hold = true};
    memcpy(m.submit.key.b, &n, sizeof n);
    return m;
}

static void *submits(void *arg)
{
    struct client *c = arg;

    while (!atomic_load(&c->stop) && c->n < JOBS_MAX) {
        char dir[64];
        const struct msg m = numbered(c->n, dir);
        struct msg *r = world_ask(c->w, &m);
        assert_int_equal(r->type, MSG_T_submitted);
        c->ids[c->n++] = r->submitted.job;
        codec_free(r);
    }
    return NULL;
}

static size_t count_jobs(struct world *w)
{
    struct msg m = {.type = MSG_T_list};
    size_t n = 0;

    do {
        struct msg *r = world_ask(w, &m);
        json_t *list = json_loads(r->json.text, 0, NULL), *j;
        size_t i;
        json_array_foreach(list, i, j)
        {
            char dir[64];
            snprintf(dir, sizeof dir, "/nowhere/%zu", n);
            /* one client, one after the other: the order of ids is the order of keys */
            assert_string_equal(world_text_of(j, "output_dir"), dir);
            n++;
        }
        m.list.after = r->json.next;
        json_decref(list);
        codec_free(r);
    } while (m.list.after);
    return n;
}

static void during_submits(void **state)
{
    struct world *w = *state;
    struct client c = {.w = w, .ids = calloc(JOBS_MAX, sizeof(uint64_t))};
    uint32_t seed = 1;
    pthread_t t;

    assert_non_null(c.ids);
    assert_int_equal(pthread_create(&t, NULL, submits, &c), 0);
    for (int i = 0; i < KILLS; i++) {
        const unsigned before = c.n;
        for (int k = 0; k < 10000 && c.n < before + 2; k++)
            usleep(1000); /* it is at work again */
        usleep((seed = seed * 1664525u + 1013904223u) % 20000);
        world_finish(w, SIGKILL);
        world_start(w);
    }
    atomic_store(&c.stop, true);
    pthread_join(t, NULL);
    print_message("%d kills, %u submits acknowledged\n", KILLS, c.n);
    assert_true(c.n > KILLS);
    assert_int_equal(count_jobs(w), c.n);
    for (unsigned i = 0; i < c.n; i++) { /* again: the same answers */
        char dir[64];
        const struct msg m = numbered(i, dir);
        if (i % 50 != 0 && i != c.n - 1)
            continue;
        struct msg *r = world_ask(w, &m);
        assert_int_equal(r->submitted.job, c.ids[i]);
        codec_free(r);
    }
    assert_int_equal(count_jobs(w), c.n);
    free(c.ids);
}

/* ---- in every phase of a run ---- */

enum moment { AT_CONFIGURING, AT_RUNNING, AT_EVALUATING, AT_COMPLETING, MOMENTS };

static int moment_of(const json_t *o)
{
    const char *s = world_text_of(o, "state");

    if (!strcmp(s, "CONFIGURING"))
        return AT_CONFIGURING;
    if (!strcmp(s, "COMPLETING"))
        return AT_COMPLETING;
    if (!strcmp(s, "RUNNING"))
        return !strcmp(world_text_of(o, "phase"), "evaluating") ? AT_EVALUATING : AT_RUNNING;
    return -1;
}

/* The supervisor of attempt 1, from its gang's folder; 0: not there (yet). */
static json_int_t supervisor(struct world *w, uint64_t job)
{
    char command[256], text[32] = "";
    FILE *f;

    snprintf(command, sizeof command,
             "sed -n 's/.*supervisor\":{\"pid\":\\([0-9]*\\).*/\\1/p' "
             "%s/gangs/alignd-*-%llu-1/pids.json 2>/dev/null",
             w->state, (unsigned long long)job);
    f = popen(command, "r");
    assert_non_null(f);
    if (!fgets(text, sizeof text, f))
        text[0] = 0;
    pclose(f);
    return strtoll(text, NULL, 10);
}

static void in_every_phase(void **state)
{
    struct world *w = *state;
    int kills[MOMENTS] = {0}, total = 0;

    for (uint64_t job = 1; total < KILLS; job++) {
        json_int_t pid = 0;
        int last = -1;
        assert_true(job <= KILLS); /* or the moments are never met */
        assert_int_equal(world_submit(w, (uint8_t)job, "run",
                                      "{\"play\":{\"steps\":20,\"delay_ms\":15,\"load_ms\":250,"
                                      "\"eval_ms\":250,\"complete_ms\":250}}"),
                         job);
        for (bool over = false; !over;) {
            json_t *o = world_show(w, job);
            const int at = moment_of(o);
            over = !strcmp(world_text_of(o, "state"), "COMPLETED");
            if (!over)
                assert_int_not_equal(strcmp(world_text_of(o, "state"), "FAILED"), 0);
            if (at >= 0)
                assert_int_equal(world_int_of(o, "attempt"), 1);
            json_decref(o);
            if (at < 0 || at == last || total == KILLS) {
                usleep(3000);
                continue;
            }
            const json_int_t now = supervisor(w, job);
            if (now == 0)
                continue;
            assert_true(pid == 0 || now == pid); /* the same gang all along */
            pid = now;
            world_finish(w, SIGKILL);
            world_start(w);
            kills[at]++;
            total++;
            last = at;
        }
        world_expect_rows(w, job, 22);
        world_expect_log(w, job, "hello from rank 0\ndone\n");
    }
    print_message("kills: %d CONFIGURING, %d RUNNING, %d evaluating, %d COMPLETING\n",
                  kills[AT_CONFIGURING], kills[AT_RUNNING], kills[AT_EVALUATING],
                  kills[AT_COMPLETING]);
    for (int i = 0; i < MOMENTS; i++)
        assert_true(kills[i] >= 10);
}

/* A request for a value that nobody puts is held, then answered with "not there". */
static void held_ends(void **state)
{
    struct world *w = *state;
    const uint64_t job =
        world_submit(w, 1, "alone", "{\"play\":{\"steps\":1,\"meet_ms\":1,\"alone\":1}}");

    world_wait_for(w, job, "COMPLETED", 1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(during_submits, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(in_every_phase, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(held_ends, world_setup, world_teardown),
    };

    if (argc == 2)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
