/* test_core.c - the core's rules one by one, where the simulator only sees that
 * nothing goes wrong: refusals, words, limits, and rows that cannot be. */
#include <errno.h>
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/test.h"

#include "daemon/core.h"

struct fixture {
    struct core *c;
    struct effects fx;
    int64_t now_ns;
    uint64_t client;
};

static void step(struct fixture *f, const struct event *ev)
{
    event_effects_fini(&f->fx);
    assert_int_equal(core_step(f->c, f->now_ns, 1700000000000, ev, &f->fx), 0);
}

static void setup(struct fixture *f, unsigned cpus)
{
    memset(f, 0, sizeof(*f));
    f->now_ns = 1000000000;
    assert_int_equal(core_new(&(struct core_opts){.boottime_ns = f->now_ns}, &f->c), 0);
    for (unsigned i = 0; i < cpus; i++) {
        char name[16];
        snprintf(name, sizeof(name), "cpu:%u", i);
        step(f, &(struct event){.kind = EV_DEVICE, .device = {.name = name, .type = JOB_CPU}});
    }
    step(f, &(struct event){.kind = EV_RECONCILED});
}

static void teardown(struct fixture *f)
{
    event_effects_fini(&f->fx);
    core_free(f->c);
}

static const struct effect *find(const struct fixture *f, enum effect_kind kind)
{
    for (size_t i = 0; i < f->fx.n; i++)
        if (f->fx.v[i].kind == kind)
            return &f->fx.v[i];
    return NULL;
}

static const struct fx_reply *answer(const struct fixture *f)
{
    const struct effect *e = find(f, FX_REPLY);

    assert_non_null(e);
    return &e->reply;
}

static struct event client_event(struct fixture *f, enum event_kind kind)
{
    struct event ev = {.kind = kind, .client = ++f->client, .req.uid = 1000};

    memcpy(ev.req.id, &f->client, sizeof(f->client));
    memcpy(ev.req.digest, &f->client, sizeof(f->client));
    return ev;
}

static struct event submit_event(struct fixture *f, uint32_t devices)
{
    struct event ev = client_event(f, EV_SUBMIT);

    ev.submit = (struct event_submit){.name = "harmless",
                                      .method = "dpo",
                                      .output_dir = "/runs/{name}-{id}",
                                      .devices = devices,
                                      .steps = 10,
                                      .resolved_spec = "{}",
                                      .resolved_bytes = 2};
    return ev;
}

static uint64_t submit(struct fixture *f, uint32_t devices)
{
    const struct event ev = submit_event(f, devices);

    step(f, &ev);
    assert_int_equal(answer(f)->code, EVENT_OK);
    return answer(f)->job;
}

static enum event_code worker(struct fixture *f, struct event ev, uint64_t job, uint32_t attempt)
{
    ev.client = ++f->client;
    ev.worker = (struct event_worker){job, attempt, true};
    step(f, &ev);
    return answer(f)->code;
}

static enum event_code exits(struct fixture *f, uint64_t job, uint32_t attempt, int code)
{
    return worker(
        f, (struct event){.kind = EV_EXIT_RECORD, .exit_record = {.code = code, .error = "why"}},
        job, attempt);
}

static void test_output_dirs(void **state)
{
    static const struct {
        const char *dir, *is;
        enum event_code code;
    } v[] = {
        {"/runs/{name}-{id}", "/runs/harmless-1", EVENT_OK},
        {"/runs//a/./b/../c/", "/runs/a/c", EVENT_OK},
        {"/runs/a/c", NULL, EVENT_IN_USE},
        {"/../../runs/d", "/runs/d", EVENT_OK},
        {"runs/d", NULL, EVENT_INVALID},
        {"", NULL, EVENT_INVALID},
        {"/", NULL, EVENT_INVALID},
        {"/a/..", NULL, EVENT_INVALID},
        {"{name}", NULL, EVENT_INVALID},
    };
    struct fixture f;

    (void)state;
    setup(&f, 1);
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        struct event ev = submit_event(&f, 1);
        ev.submit.output_dir = v[i].dir;
        step(&f, &ev);
        assert_int_equal(answer(&f)->code, v[i].code);
        if (v[i].is)
            assert_string_equal(core_job(f.c, answer(&f)->job)->output_dir, v[i].is);
        else
            assert_non_null(answer(&f)->text);
    }
    teardown(&f);
}

static void test_a_path_too_long_is_refused(void **state)
{
    static char dir[LIMIT_PATH];
    struct fixture f;

    (void)state;
    setup(&f, 1);
    memset(dir, 'x', sizeof(dir) - 1);
    memcpy(dir, "/{name}{name}{name}", 19);
    struct event ev = submit_event(&f, 1);
    ev.submit.output_dir = dir;
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_INVALID);
    teardown(&f);
}

static void test_refusals_are_remembered(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, 1);
    struct event ev = client_event(&f, EV_CANCEL);
    ev.cancel.job = 1;
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_NOT_FOUND);
    assert_non_null(find(&f, FX_REQUEST));
    assert_int_equal(submit(&f, 1), 1);
    step(&f, &ev); /* its copy, late: it must not hit the job that got the number */
    assert_int_equal(answer(&f)->code, EVENT_NOT_FOUND);
    assert_int_equal(core_job(f.c, 1)->state, JOB_CONFIGURING);
    ev.cancel.job = 2;
    ev.req.digest[0] ^= 1;
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_CONFLICT);
    teardown(&f);
}

static void test_only_the_owner_and_operators(void **state)
{
    static const enum event_kind kinds[] = {EV_CANCEL, EV_HOLD, EV_RELEASE, EV_RESUME};
    struct fixture f;

    (void)state;
    setup(&f, 1);
    assert_int_equal(submit(&f, 1), 1);
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct event ev = client_event(&f, kinds[i]);
        ev.req.uid = 1001;
        ev.cancel.job = ev.hold.job = ev.resume.job = 1;
        step(&f, &ev);
        assert_int_equal(answer(&f)->code, EVENT_NOT_ALLOWED);
    }
    struct event ev = client_event(&f, EV_DRAIN);
    ev.drain.device = "cpu:0";
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_NOT_ALLOWED);
    ev = client_event(&f, EV_SHUTDOWN);
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_NOT_ALLOWED);
    assert_false(core_stopping(f.c));
    ev = client_event(&f, EV_CANCEL);
    ev.req.uid = 0;
    ev.req.is_operator = true;
    ev.cancel.job = 1;
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_OK);
    teardown(&f);
}

static void test_a_full_store_changes_nothing(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, 2);
    assert_int_equal(submit(&f, 1), 1);
    step(&f, &(struct event){.kind = EV_STORE_FULL});
    struct event ev = submit_event(&f, 1);
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_RETRY);
    assert_true(find(&f, FX_REPLY)->now);
    assert_int_equal(f.fx.rows, 0);
    assert_int_equal(worker(&f, (struct event){.kind = EV_REPORT}, 1, 1), EVENT_RETRY);
    assert_int_equal(f.fx.rows, 0);
    step(&f, &(struct event){.kind = EV_STORE_OK});
    step(&f, &ev); /* the same request */
    assert_int_equal(answer(&f)->code, EVENT_OK);
    assert_int_equal(answer(&f)->job, 2);
    teardown(&f);
}

static void test_reasons_name_what_is_missing(void **state)
{
    struct fixture f;
    char text[200];

    (void)state;
    setup(&f, 2);
    submit(&f, 2);
    submit(&f, 2);
    submit(&f, 1);
    assert_int_equal(core_reason(f.c, core_job(f.c, 2), text, sizeof(text)), JOB_REASON_RESOURCES);
    assert_non_null(strstr(text, "wants 2 cpu devices: 0 free, 2 in use"));
    assert_int_equal(core_reason(f.c, core_job(f.c, 3), text, sizeof(text)), JOB_REASON_PRIORITY);
    struct event ev = client_event(&f, EV_HOLD);
    ev.hold.job = 3;
    step(&f, &ev);
    assert_int_equal(core_reason(f.c, core_job(f.c, 3), text, sizeof(text)), JOB_REASON_HELD);
    assert_int_equal(exits(&f, 1, 1, 0), EVENT_OK);
    assert_int_equal(core_job(f.c, 1)->state, JOB_COMPLETED);
    assert_int_equal(core_job(f.c, 2)->state, JOB_CONFIGURING);
    step(&f, &(struct event){.kind = EV_DEVICE,
                             .device = {.name = "cpu:1", .type = JOB_CPU, .foreign = true}});
    exits(&f, 2, 1, 1);
    assert_int_equal(core_job(f.c, 2)->state, JOB_FAILED);
    assert_string_equal(core_job(f.c, 2)->error, "why");
    submit(&f, 2);
    assert_int_equal(core_reason(f.c, core_job(f.c, 4), text, sizeof(text)),
                     JOB_REASON_DEVICES_FOREIGN);
    assert_int_equal(submit(&f, 1), 5); /* one that fits is not held up by it */
    assert_int_equal(core_job(f.c, 5)->state, JOB_CONFIGURING);
    struct event wide = submit_event(&f, 3);
    step(&f, &wide);
    assert_int_equal(answer(&f)->code, EVENT_TOO_MANY);
    assert_string_equal(answer(&f)->text, "the job wants 3 cpu devices; this alignd has 2");
    teardown(&f);
}

static void test_exit_codes(void **state)
{
    static const struct {
        int code, signal;
        enum job_state is;
        enum job_reason why;
    } v[] = {
        {0, 0, JOB_COMPLETED, JOB_REASON_NONE},
        {1, 0, JOB_FAILED, JOB_REASON_NON_ZERO_EXIT},
        {2, 0, JOB_FAILED, JOB_REASON_NON_ZERO_EXIT},
        {86, 0, JOB_OUT_OF_MEMORY, JOB_REASON_OUT_OF_MEMORY},
        {0, 11, JOB_FAILED, JOB_REASON_RAISED_SIGNAL},
        {75, 0, JOB_PENDING, JOB_REASON_NONE},
        {85, 0, JOB_PENDING, JOB_REASON_NONE},
        {INT32_MIN, 0, JOB_FAILED, JOB_REASON_NON_ZERO_EXIT},
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        struct fixture f;
        setup(&f, 1);
        submit(&f, 1);
        assert_int_equal(worker(&f,
                                (struct event){.kind = EV_EXIT_RECORD,
                                               .exit_record = {.code = v[i].code,
                                                               .signal = v[i].signal,
                                                               .step = INT64_MAX}},
                                1, 1),
                         EVENT_OK);
        assert_int_equal(core_job(f.c, 1)->state, v[i].is);
        assert_int_equal(core_job(f.c, 1)->reason, v[i].why);
        assert_true(core_job(f.c, 1)->step <= 10);
        assert_int_equal(exits(&f, 1, 1, 1), EVENT_OK); /* once more: acknowledged again */
        assert_int_equal(core_job(f.c, 1)->state, v[i].is);
        assert_int_equal(exits(&f, 1, 2, 1), EVENT_FENCED); /* an attempt never started */
        teardown(&f);
    }
}

static void test_resume(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, 1);
    submit(&f, 1);
    struct event ev = client_event(&f, EV_RESUME);
    ev.resume.job = 1;
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_BAD_STATE);
    exits(&f, 1, 1, 0);
    ev = client_event(&f, EV_RESUME);
    ev.resume.job = 1;
    ev.resume.steps = 10; /* no more than it has */
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_BAD_STATE);
    ev = client_event(&f, EV_RESUME);
    ev.resume.job = 1;
    ev.resume.steps = 20;
    ev.resume.resolved_spec = "{20}";
    ev.resume.resolved_bytes = 4;
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_OK);
    assert_int_equal(find(&f, FX_RESPEC)->spec.from_attempt, 2);
    assert_memory_equal(find(&f, FX_RESPEC)->spec.resolved, "{20}", 4);
    assert_int_equal(find(&f, FX_LAUNCH)->launch.attempt, 2);
    assert_int_equal(core_job(f.c, 1)->steps, 20);
    teardown(&f);
}

static void report(struct fixture *f, uint32_t attempt, uint32_t rows_attempt, uint64_t first,
                   uint32_t n, int64_t step_from)
{
    struct event_row rows[LIMIT_REPORT_BATCH];

    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct event_row){.kind = first + i == 1 ? JOB_REPORT_START : JOB_REPORT_TRAIN,
                                     .step = step_from + i,
                                     .loss = 0.5,
                                     .vals = "v",
                                     .bytes = 1};
    (void)worker(
        f,
        (struct event){
            .kind = EV_REPORT,
            .report = {.rows_attempt = rows_attempt, .first_n = first, .n = n, .rows = rows}},
        1, attempt);
}

static unsigned count(const struct fixture *f, enum effect_kind kind)
{
    unsigned n = 0;

    for (size_t i = 0; i < f->fx.n; i++)
        n += f->fx.v[i].kind == kind;
    return n;
}

static void test_reports(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, 1);
    submit(&f, 1);
    report(&f, 1, 0, 1, 4, 0); /* START 0, steps 1 2 3 */
    assert_int_equal(answer(&f)->expect_n, 5);
    assert_int_equal(count(&f, FX_REPORT), 4);
    assert_int_equal(core_job(f.c, 1)->state, JOB_RUNNING);
    assert_int_equal(core_job(f.c, 1)->step, 3);
    report(&f, 1, 1, 3, 4, 2); /* two known, two new */
    assert_int_equal(count(&f, FX_REPORT), 2);
    assert_int_equal(answer(&f)->expect_n, 7);
    report(&f, 1, 1, 9, 1, 8);
    assert_int_equal(answer(&f)->code, EVENT_GAP);
    assert_int_equal(answer(&f)->expect_n, 7);
    report(&f, 1, 2, 1, 1, 0); /* an attempt that is not there */
    assert_int_equal(answer(&f)->code, EVENT_INVALID);
    report(&f, 1, 1, UINT64_MAX, 3, 0);
    assert_int_equal(answer(&f)->code, EVENT_INVALID);
    report(&f, 1, 1, 0, 3, 0);
    assert_int_equal(answer(&f)->code, EVENT_INVALID);

    step(&f, &(struct event){.kind = EV_GANG_LOST, .gang = {.job = 1, .attempt = 1}});
    assert_int_equal(core_job(f.c, 1)->state, JOB_PENDING);
    assert_int_equal(core_reason(f.c, core_job(f.c, 1), NULL, 0), JOB_REASON_BEGIN_TIME);
    f.now_ns += 2000000000;
    step(&f, &(struct event){.kind = EV_TICK});
    assert_int_equal(find(&f, FX_LAUNCH)->launch.attempt, 2);
    report(&f, 2, 1, 7, 2, 6); /* what attempt 1 could not send: steps 6 7 */
    assert_int_equal(count(&f, FX_REPORT), 2);
    assert_false(find(&f, FX_REPORT)->report.superseded);
    report(&f, 2, 2, 1, 2, 4); /* back to step 4 */
    assert_int_equal(find(&f, FX_REWIND)->rewind.step, 4);
    assert_int_equal(find(&f, FX_REWIND)->rewind.attempt, 2);
    report(&f, 2, 1, 9, 1, 8); /* too late to count */
    assert_true(find(&f, FX_REPORT)->report.superseded);
    assert_int_equal(core_last_report(f.c, 1, 1), 9);
    assert_int_equal(core_last_report(f.c, 1, 2), 2);
    teardown(&f);
}

static void test_time_limit_and_kill(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, 1);
    struct event ev = submit_event(&f, 1);
    ev.submit.limit_s = 100;
    step(&f, &ev);
    f.now_ns += 99000000000;
    step(&f, &(struct event){.kind = EV_TICK});
    assert_null(find(&f, FX_STOP));
    f.now_ns += 1000000000;
    step(&f, &(struct event){.kind = EV_TICK});
    assert_non_null(find(&f, FX_STOP));
    f.now_ns += CORE_STOP_S * 1000000000LL;
    step(&f, &(struct event){.kind = EV_TICK});
    assert_non_null(find(&f, FX_KILL));
    f.now_ns -= 900000000000; /* time does not go back */
    step(&f, &(struct event){.kind = EV_TICK});
    assert_null(find(&f, FX_KILL));
    step(&f, &(struct event){.kind = EV_GANG_LOST, .gang = {.job = 1, .attempt = 1}});
    assert_int_equal(core_job(f.c, 1)->state, JOB_TIMEOUT);
    teardown(&f);
}

static void test_held_requests(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, 1);
    submit(&f, 1);
    struct event poll = {.kind = EV_POLL, .client = 99, .worker = {1, 1, true}};
    step(&f, &poll);
    assert_non_null(find(&f, FX_HOLD));
    assert_true(find(&f, FX_HOLD)->now);
    struct event ev = client_event(&f, EV_CANCEL);
    ev.cancel.job = 1;
    step(&f, &ev);
    assert_non_null(find(&f, FX_STOP));
    step(&f, &poll);
    assert_int_equal(answer(&f)->directives, EVENT_STOP);
    poll.poll.seen = EVENT_STOP;
    step(&f, &poll);
    assert_non_null(find(&f, FX_HOLD));
    ev = client_event(&f, EV_CANCEL);
    ev.cancel.job = 1;
    ev.cancel.now = true;
    step(&f, &ev);
    assert_non_null(find(&f, FX_KILL));
    step(&f, &poll);
    assert_int_equal(answer(&f)->directives, EVENT_STOP | EVENT_KILL);

    struct event get = {.kind = EV_RDV_GET, .client = 98, .worker = {1, 1, true}, .rdv.key = "k"};
    step(&f, &get);
    assert_string_equal(find(&f, FX_HOLD)->hold.key, "k");
    struct event put = {.kind = EV_RDV_PUT,
                        .client = 97,
                        .worker = {1, 1, true},
                        .rdv = {.key = "k", .value = "abc", .bytes = 3}};
    step(&f, &put);
    assert_int_equal(answer(&f)->code, EVENT_OK);
    assert_memory_equal(find(&f, FX_RDV_PUT)->rdv.value, "abc", 3);
    step(&f, &put);
    assert_int_equal(answer(&f)->code, EVENT_OK);
    assert_null(find(&f, FX_RDV_PUT));
    put.rdv.value = "abd";
    step(&f, &put);
    assert_int_equal(answer(&f)->code, EVENT_CONFLICT);
    step(&f, &get);
    assert_memory_equal(answer(&f)->value, "abc", 3);
    put.rdv.key = "";
    step(&f, &put);
    assert_int_equal(answer(&f)->code, EVENT_INVALID);
    put.rdv.key = "big";
    put.rdv.bytes = LIMIT_RDV_BYTES + 1;
    step(&f, &put);
    assert_int_equal(answer(&f)->code, EVENT_INVALID);
    teardown(&f);
}

static void test_a_stopped_daemon_is_not_stopped_again_by_a_copy(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, 1);
    struct event ev = client_event(&f, EV_SHUTDOWN);
    ev.req.is_operator = true;
    step(&f, &ev);
    assert_true(core_stopping(f.c));
    const struct fx_request row = find(&f, FX_REQUEST)->request;
    struct event late = submit_event(&f, 1);
    step(&f, &late);
    assert_int_equal(answer(&f)->code, EVENT_STOPPING);
    teardown(&f);

    setup(&f, 1); /* the next one */
    struct err err;
    assert_int_equal(core_restore_request(f.c, &row, &err), 0);
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_OK);
    assert_false(core_stopping(f.c));
    teardown(&f);
}

static void tick(struct fixture *f, int64_t seconds, int64_t durable_s)
{
    f->now_ns += seconds * 1000000000;
    step(f, &(struct event){.kind = EV_TICK, .tick.durable_s = durable_s});
}

/* Answers leave the memory after a week; those about jobs stay in the store, and are the
 * same when they come back from there. */
static void test_requests_are_forgotten_after_a_week(void **state)
{
    struct fixture f;
    uint64_t job;
    bool asked;

    (void)state;
    setup(&f, 1);
    struct event ev = client_event(&f, EV_CANCEL), of_job = submit_event(&f, 1);
    ev.cancel.job = 77;
    step(&f, &ev);
    step(&f, &of_job);
    struct fx_request row = find(&f, FX_REQUEST)->request;
    tick(&f, CORE_REQUEST_DAYS * 86400LL - CORE_SWEEP_S, INT64_MAX);
    assert_null(find(&f, FX_REQUEST_DROP));
    assert_false(core_recall_due(f.c, &of_job, &job, &asked));
    tick(&f, CORE_SWEEP_S + 1, 0); /* not durable: nothing may go */
    assert_null(find(&f, FX_REQUEST_DROP));
    tick(&f, CORE_SWEEP_S, INT64_MAX);
    assert_int_equal(count(&f, FX_REQUEST_DROP), 1); /* that of the job stays stored */
    assert_memory_equal(find(&f, FX_REQUEST_DROP)->request.id, ev.req.id, EVENT_ID_BYTES);
    assert_int_equal(core_forgets(f.c), 2);
    assert_true(core_recall_due(f.c, &of_job, &job, &asked));
    assert_true(asked);
    assert_int_equal(job, 0); /* the job has not ended */
    step(&f, &(struct event){.kind = EV_RECALL, .recall.request = &row});
    assert_false(core_recall_due(f.c, &of_job, &job, &asked));
    step(&f, &of_job);
    assert_int_equal(answer(&f)->job, 1);
    assert_null(find(&f, FX_SUBMITTED));
    teardown(&f);
}

/* An ended job leaves the memory, comes back from its rows, and can be resumed. */
static void test_ended_jobs_are_forgotten_and_recalled(void **state)
{
    struct fixture f;
    uint64_t job;
    bool asked;

    (void)state;
    setup(&f, 1);
    assert_int_equal(submit(&f, 1), 1);
    assert_int_equal(submit(&f, 1), 2);
    assert_int_equal(submit(&f, 1), 3);
    assert_int_equal(exits(&f, 1, 1, 1), EVENT_OK);
    assert_int_equal(core_job(f.c, 1)->ended_s, core_age(f.c));
    assert_int_equal(core_job(f.c, 2)->ended_s, -1);
    struct job row = *core_job(f.c, 1);
    row.name = "harmless";
    row.method = "dpo";
    row.output_dir = "/runs/harmless-1";
    row.error = "why";
    const struct attempt past[] = {{.job = 1,
                                    .attempt = 1,
                                    .state = JOB_FAILED,
                                    .last_report = 40,
                                    .resume_step = 0,
                                    .exit_known = true}};
    assert_false(core_any_forgotten(f.c));
    tick(&f, CORE_ENDED_DAYS * 86400LL + 1, 0);
    assert_non_null(core_job(f.c, 1));
    tick(&f, CORE_SWEEP_S, INT64_MAX);
    assert_null(core_job(f.c, 1));
    assert_true(core_forgotten(f.c, 1) && core_any_forgotten(f.c));
    assert_false(core_forgotten(f.c, 2) || core_forgotten(f.c, 4) || core_forgotten(f.c, 0));
    assert_int_equal(core_n_jobs(f.c), 2); /* unfinished, however old */

    struct event ev = client_event(&f, EV_RESUME);
    ev.resume.job = 1;
    assert_true(core_recall_due(f.c, &ev, &job, &asked));
    assert_int_equal(job, 1);
    const struct event_recall what = {.job = &row, .attempts = past, .n_attempts = 1};
    for (int i = 0; i < 3; i++) { /* rows that cannot be, or are not old, are ignored */
        struct job bad = row;
        struct event_recall other = what;
        other.job = &bad;
        bad.state = i == 0 ? JOB_RUNNING : i == 1 ? JOB_STATES : bad.state;
        bad.id = i == 2 ? 99 : bad.id;
        step(&f, &(struct event){.kind = EV_RECALL, .recall = other});
        assert_null(core_job(f.c, 1));
    }
    step(&f, &(struct event){.kind = EV_RECALL, .recall = what});
    assert_int_equal(f.fx.rows, 0);
    assert_int_equal(core_job_at(f.c, 0)->id, 1);
    assert_int_equal(core_last_report(f.c, 1, 1), 40);
    assert_string_equal(core_job(f.c, 1)->error, "why");
    const struct job *j = core_newest(f.c), *last = j;
    for (; j; last = j, j = core_older(f.c, j))
        assert_true(j->rev <= last->rev);
    assert_int_equal(last->id, 1); /* the oldest of all */
    step(&f, &ev);
    assert_int_equal(answer(&f)->code, EVENT_OK);
    assert_int_equal(find(&f, FX_JOB)->job.ended_s, -1);
    step(&f, &(struct event){.kind = EV_RECALL, .recall = what}); /* too late: ignored */
    assert_int_equal(core_job(f.c, 1)->state, JOB_PENDING);
    teardown(&f);
}

/* With long names: 100,000 ended jobs are in memory for a week at most. */
static void test_memory_comes_back(void **state)
{
    struct fixture f;
    size_t bytes[3];

    (void)state;
    setup(&f, 1);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 5000; i++) {
            const uint64_t job = submit(&f, 1);
            assert_int_equal(exits(&f, job, 1, 0), EVENT_OK);
        }
        tick(&f, CORE_ENDED_DAYS * 86400LL + CORE_SWEEP_S, INT64_MAX);
        event_effects_fini(&f.fx);
        assert_int_equal(core_n_jobs(f.c), 0);
        const struct mallinfo2 m = mallinfo2();
        bytes[round] = m.uordblks + m.hblkhd;
    }
    assert_true(bytes[2] <= bytes[0] + 4096);
    teardown(&f);
}

static void test_rows_that_cannot_be(void **state)
{
    const struct job good = {.id = 3,
                             .attempt = 1,
                             .devices = 1,
                             .type = JOB_CPU,
                             .state = JOB_RUNNING,
                             .name = "n",
                             .method = "dpo",
                             .output_dir = "/o"};
    const struct fx_meta meta = {.next_job = 9, .rev = 9};
    struct fixture f;
    struct err err;

    (void)state;
    for (int i = 0; i < 12; i++) {
        struct job bad = good;
        setup(&f, 1);
        assert_int_equal(core_restore_meta(f.c, &meta, &err), 0);
        bad.id = i == 0 ? 9 : i == 1 ? 0 : bad.id;
        bad.state = i == 2 ? JOB_STATES : i == 3 ? 0 : bad.state;
        bad.attempt = i == 4 ? 0 : i == 5 ? UINT32_MAX : bad.attempt;
        bad.devices = i == 6 ? 65 : bad.devices;
        bad.type = i == 7 ? 9 : bad.type;
        bad.rev = i == 8 ? 10 : bad.rev;
        bad.output_dir = i == 9 ? NULL : i == 10 ? "o" : bad.output_dir;
        bad.want = i == 11 ? JOB_WANTS : bad.want;
        assert_int_equal(core_restore_job(f.c, &bad, &err), -EINVAL);
        assert_non_null(strstr(err.text, "store: job"));
        assert_int_equal(core_restore_job(f.c, &good, &err), 0);
        assert_int_equal(core_restore_job(f.c, &good, &err), -EINVAL); /* twice */
        const char *dev[] = {"cpu:0"};
        const struct fx_gang gang = {.job = 3, .attempt = 1, .devices = dev, .n_devices = 1};
        assert_int_equal(core_restore_gang(f.c, &gang, &err), -EINVAL); /* no attempt row */
        const struct attempt a = {.job = 3, .attempt = 1, .state = JOB_RUNNING, .resume_step = -1};
        struct attempt far = a;
        far.attempt = 2;
        assert_int_equal(core_restore_attempt(f.c, &far, &err), -EINVAL);
        assert_int_equal(core_restore_attempt(f.c, &a, &err), 0);
        assert_int_equal(core_restore_gang(f.c, &gang, &err), 0);
        assert_int_equal(core_restore_gang(f.c, &gang, &err), -EINVAL); /* twice */
        teardown(&f);
    }
}

/* A job that the rows call running, without a gang: it goes on as its next attempt. */
static void test_a_missing_gang_row_is_mended(void **state)
{
    const struct fx_meta meta = {.next_job = 9, .rev = 9};
    struct err err;
    struct core *c;
    struct effects fx = {0};

    (void)state;
    assert_int_equal(core_new(&(struct core_opts){.boottime_ns = 1}, &c), 0);
    assert_int_equal(core_restore_meta(c, &meta, &err), 0);
    assert_int_equal(core_restore_job(c,
                                      &(struct job){.id = 3,
                                                    .attempt = 1,
                                                    .devices = 1,
                                                    .type = JOB_CPU,
                                                    .state = JOB_RUNNING,
                                                    .name = "n",
                                                    .method = "dpo",
                                                    .output_dir = "/o"},
                                      &err),
                     0);
    assert_int_equal(core_step(c, 1, 1, &(struct event){.kind = EV_RECONCILED}, &fx), 0);
    assert_int_equal(core_job(c, 3)->state, JOB_PENDING);
    event_effects_fini(&fx);
    core_free(c);
}

static void test_events_of_another_version_are_ignored(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, 1);
    for (int k = -2; k < 1000; k += 7) {
        if (k > 0 && k < EVENT_KINDS)
            continue;
        step(&f, &(struct event){.kind = (enum event_kind)k});
        assert_int_equal(f.fx.rows, 0);
    }
    teardown(&f);
}

/* 10,000 queued jobs with long names: what the core needs of the daemon's 20 MB. */
static void test_ten_thousand_jobs_fit(void **state)
{
    struct fixture f;
    const struct mallinfo2 before = mallinfo2();

    (void)state;
    setup(&f, 2);
    for (int i = 0; i < 10000; i++) {
        struct event ev = submit_event(&f, 2);
        ev.submit.output_dir = "/home/someone/experiments/preferences/harmless/{name}-{id}";
        ev.submit.priority = i % 7;
        step(&f, &ev);
    }
    event_effects_fini(&f.fx);
    const struct mallinfo2 after = mallinfo2();
    const size_t bytes = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
    print_message("%zu bytes per queued job\n", bytes / 10000);
    assert_true(bytes < 8u << 20);
    assert_int_equal(core_n_jobs(f.c), 10000);
    for (uint64_t id = 1; id <= 10000; id++)
        assert_int_equal(core_job(f.c, id)->id, id);
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output_dirs),
        cmocka_unit_test(test_a_path_too_long_is_refused),
        cmocka_unit_test(test_refusals_are_remembered),
        cmocka_unit_test(test_only_the_owner_and_operators),
        cmocka_unit_test(test_a_full_store_changes_nothing),
        cmocka_unit_test(test_reasons_name_what_is_missing),
        cmocka_unit_test(test_exit_codes),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_reports),
        cmocka_unit_test(test_time_limit_and_kill),
        cmocka_unit_test(test_held_requests),
        cmocka_unit_test(test_a_stopped_daemon_is_not_stopped_again_by_a_copy),
        cmocka_unit_test(test_requests_are_forgotten_after_a_week),
        cmocka_unit_test(test_ended_jobs_are_forgotten_and_recalled),
        cmocka_unit_test(test_memory_comes_back),
        cmocka_unit_test(test_rows_that_cannot_be),
        cmocka_unit_test(test_a_missing_gang_row_is_mended),
        cmocka_unit_test(test_events_of_another_version_are_ignored),
        cmocka_unit_test(test_ten_thousand_jobs_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
