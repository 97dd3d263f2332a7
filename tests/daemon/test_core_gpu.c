/* test_core_gpu.c - what the core decides about GPUs: who may have them, their faults. */
#include <stdio.h>
#include <string.h>

#include "tests/support/test.h"

#include "daemon/core.h"
#include "daemon/fault.h"

static const char A[] = "GPU-aaaa0000-1111-2222-3333-444455556666";
static const char B[] = "GPU-bbbb0000-1111-2222-3333-444455556666";
static const char BOB[] = "python of user bob, process 4711, 14.2 GiB";

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

static void later(struct fixture *f, int64_t seconds)
{
    f->now_ns += seconds * 1000000000;
    step(f, &(struct event){.kind = EV_TICK});
}

static void device(struct fixture *f, const char *name, bool foreign, bool unfit, const char *note)
{
    step(f,
         &(struct event){
             .kind = EV_DEVICE,
             .device = {
                 .name = name, .type = JOB_GPU, .foreign = foreign, .unfit = unfit, .note = note}});
}

static void fault(struct fixture *f, const char *name, uint32_t code)
{
    step(f,
         &(struct event){.kind = EV_FAULT, .fault = {.name = name, .type = JOB_GPU, .code = code}});
}

static void setup(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    f->now_ns = 1000000000;
    assert_int_equal(core_new(&(struct core_opts){.boottime_ns = f->now_ns}, &f->c), 0);
    device(f, A, false, false, NULL);
    device(f, B, false, false, NULL);
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

static struct event request(struct fixture *f, enum event_kind kind)
{
    struct event ev = {.kind = kind, .client = ++f->client, .req.uid = 1000};

    ev.req.is_operator = true;
    memcpy(ev.req.id, &f->client, sizeof(f->client));
    memcpy(ev.req.digest, &f->client, sizeof(f->client));
    return ev;
}

static uint64_t submit(struct fixture *f, uint32_t devices, uint8_t type)
{
    struct event ev = request(f, EV_SUBMIT);

    ev.submit = (struct event_submit){.name = "harmless",
                                      .method = "dpo",
                                      .output_dir = "/runs/{id}",
                                      .devices = devices,
                                      .type = type,
                                      .steps = 10,
                                      .resolved_spec = "{}",
                                      .resolved_bytes = 2};
    step(f, &ev);
    assert_int_equal(find(f, FX_REPLY)->reply.code, EVENT_OK);
    return find(f, FX_REPLY)->reply.job;
}

static enum event_code undrain(struct fixture *f, const char *name, bool drain)
{
    struct event ev = request(f, EV_DRAIN);

    ev.drain.device = name;
    ev.drain.on = drain;
    step(f, &ev);
    return find(f, FX_REPLY)->reply.code;
}

static struct core_device at(const struct fixture *f, const char *name)
{
    struct core_device d = {0};

    for (size_t i = 0; i < core_n_devices(f->c); i++) {
        core_device_at(f->c, i, &d);
        if (strcmp(d.name, name) == 0)
            return d;
    }
    fail_msg("there is no device %s", name);
    return d;
}

static void exits(struct fixture *f, uint64_t job, uint32_t attempt, int code, int signal)
{
    struct event ev = {.kind = EV_EXIT_RECORD,
                       .client = ++f->client,
                       .worker = {job, attempt, true},
                       .exit_record = {.code = code, .signal = signal, .error = "CUDA said no"}};
    step(f, &ev);
}

static enum event_code answer(const struct fixture *f)
{
    return find(f, FX_REPLY)->reply.code;
}

static enum job_state state_of(const struct fixture *f, uint64_t job)
{
    return (enum job_state)core_job(f->c, job)->state;
}

static void test_a_foreign_gpu_must_be_clean_for_a_minute(void **state)
{
    struct fixture f;
    char why[512];

    (void)state;
    setup(&f);
    device(&f, A, true, false, BOB);
    assert_int_equal(at(&f, A).state, CORE_DEVICE_FOREIGN);
    assert_string_equal(at(&f, A).reason, BOB);
    const uint64_t job = submit(&f, 2, JOB_GPU);
    assert_int_equal(core_reason(f.c, core_job(f.c, job), why, sizeof(why)),
                     JOB_REASON_DEVICES_FOREIGN);
    assert_non_null(strstr(why, A));
    assert_non_null(strstr(why, BOB));

    later(&f, 300); /* as long as it is there */
    assert_int_equal(at(&f, A).state, CORE_DEVICE_FOREIGN);
    device(&f, A, false, false, NULL);
    assert_int_equal(at(&f, A).state, CORE_DEVICE_FOREIGN);
    later(&f, 30);
    assert_non_null(strstr(at(&f, A).reason, "free in 30 s"));
    device(&f, A, true, false, BOB); /* it comes back: from the beginning */
    device(&f, A, false, false, NULL);
    later(&f, 59);
    assert_int_equal(at(&f, A).state, CORE_DEVICE_FOREIGN);
    assert_int_equal(state_of(&f, job), JOB_PENDING);
    later(&f, 1);
    assert_int_equal(state_of(&f, job), JOB_CONFIGURING);
    assert_int_equal(at(&f, A).state, CORE_DEVICE_USED);
    assert_string_equal(at(&f, A).reason, "");
    teardown(&f);
}

/* A cpu slot is somebody else's by its lock alone, and free without a wait. */
static void test_a_cpu_slot_is_free_at_once(void **state)
{
    struct fixture f;
    struct event ev = {.kind = EV_DEVICE, .device = {.name = "cpu:0", .type = JOB_CPU}};

    (void)state;
    setup(&f);
    ev.device.foreign = true;
    step(&f, &ev);
    assert_int_equal(at(&f, "cpu:0").state, CORE_DEVICE_FOREIGN);
    ev.device.foreign = false;
    step(&f, &ev);
    assert_int_equal(at(&f, "cpu:0").state, CORE_DEVICE_FREE);
    teardown(&f);
}

/* A fault in mid-training: killed, named, queued anew, and run elsewhere, however its
 * ranks ended; as often as there are devices. */
static void test_a_fault_moves_the_job(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    const uint64_t job = submit(&f, 1, 0);
    const struct effect *e = find(&f, FX_LAUNCH);
    assert_non_null(e);
    assert_string_equal(e->launch.devices[0], A);
    assert_int_equal(e->launch.type, JOB_GPU);

    fault(&f, A, 79);
    assert_int_equal(find(&f, FX_KILL)->gang_ref.job, job);
    assert_int_equal(find(&f, FX_DEVICE)->device.fault, 79);
    assert_int_equal(state_of(&f, job), JOB_COMPLETING);
    fault(&f, A, 48); /* what follows is not news */
    assert_null(find(&f, FX_KILL));
    assert_non_null(strstr(at(&f, A).reason, "Xid 79"));
    exits(&f, job, 1, 0, 9);
    e = find(&f, FX_ATTEMPT);
    assert_int_equal(e->attempt.state, JOB_NODE_FAIL);
    assert_int_equal(e->attempt.first_rank, 0);
    assert_non_null(strstr(e->attempt.error, "rank 0: GPU-aaaa"));
    assert_non_null(strstr(e->attempt.error, "fallen off the bus"));
    assert_int_equal(state_of(&f, job), JOB_PENDING);
    assert_int_equal(at(&f, A).state, CORE_DEVICE_FENCED);

    later(&f, 5);
    assert_int_equal(state_of(&f, job), JOB_CONFIGURING);
    assert_string_equal(find(&f, FX_LAUNCH)->launch.devices[0], B);
    fault(&f, B, FAULT_ECC);
    exits(&f, job, 2, 1, 0); /* the rank's own exit was quicker than the kill */
    assert_int_equal(find(&f, FX_ATTEMPT)->attempt.state, JOB_NODE_FAIL);
    assert_int_equal(state_of(&f, job), JOB_PENDING);
    later(&f, 100);
    char why[512];
    assert_int_equal(core_reason(f.c, core_job(f.c, job), why, sizeof(why)),
                     JOB_REASON_DEVICES_FENCED);
    assert_non_null(strstr(why, "Xid 79"));

    assert_int_equal(undrain(&f, "GPU-bbbb", false), EVENT_OK); /* it was reset */
    assert_int_equal(state_of(&f, job), JOB_CONFIGURING);
    exits(&f, job, 3, 0, 0);
    assert_int_equal(state_of(&f, job), JOB_COMPLETED);
    teardown(&f);
}

static void test_a_fault_does_not_undo_a_result_or_a_cancel(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    uint64_t job = submit(&f, 1, JOB_GPU);
    fault(&f, A, 95);
    exits(&f, job, 1, 0, 0); /* it was done before it heard of the kill */
    assert_int_equal(state_of(&f, job), JOB_COMPLETED);
    assert_null(core_job(f.c, job)->error);

    job = submit(&f, 1, JOB_GPU);
    struct event ev = request(&f, EV_CANCEL);
    ev.cancel.job = job;
    step(&f, &ev);
    fault(&f, B, 95);
    exits(&f, job, 1, 0, 9);
    assert_int_equal(state_of(&f, job), JOB_CANCELLED);
    teardown(&f);
}

/* The rank dies of its GPU and says so before NVML does: the record waits, the devices
 * are not given out, and the fault is named when it comes. */
static void test_an_exit_waits_for_a_fault(void **state)
{
    static const struct {
        int code, signal;
    } ends[] = {{1, 0}, {0, 6}, {JOB_EXIT_PEER, 0}};
    struct fixture f;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
        setup(&f);
        const uint64_t job = submit(&f, 2, JOB_GPU);
        exits(&f, job, 1, ends[i].code, ends[i].signal);
        assert_int_equal(answer(&f), EVENT_RETRY);
        assert_int_equal(state_of(&f, job), JOB_COMPLETING);
        assert_int_equal(at(&f, A).state, CORE_DEVICE_USED);
        assert_string_equal(core_job(f.c, job)->error, "CUDA said no");
        later(&f, 2);
        exits(&f, job, 1, ends[i].code, ends[i].signal);
        assert_int_equal(answer(&f), EVENT_RETRY);
        fault(&f, B, 79);
        assert_null(find(&f, FX_KILL)); /* nobody is left but the supervisor, with reports */
        exits(&f, job, 1, ends[i].code, ends[i].signal);
        assert_int_equal(answer(&f), EVENT_OK);
        const struct attempt *a = &find(&f, FX_ATTEMPT)->attempt;
        assert_int_equal(a->state, JOB_NODE_FAIL);
        assert_int_equal(a->first_rank, 1);
        assert_non_null(strstr(a->error, "rank 1: GPU-bbbb"));
        assert_int_equal(state_of(&f, job), JOB_PENDING);
        assert_int_equal(at(&f, B).state, CORE_DEVICE_FENCED);
        later(&f, 100); /* two are wanted, one is left */
        assert_int_equal(state_of(&f, job), JOB_PENDING);
        teardown(&f);
    }
}

static void test_an_exit_waits_no_longer_than_that(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    uint64_t job = submit(&f, 1, JOB_GPU);
    exits(&f, job, 1, 1, 0);
    later(&f, CORE_FAULT_S);
    assert_int_equal(state_of(&f, job), JOB_COMPLETING); /* until it is handed in again */
    exits(&f, job, 1, 1, 0);
    assert_int_equal(answer(&f), EVENT_OK);
    assert_int_equal(state_of(&f, job), JOB_FAILED);
    assert_string_equal(core_job(f.c, job)->error, "CUDA said no");

    job = submit(&f, 1, JOB_GPU); /* what no GPU is to blame for does not wait */
    exits(&f, job, 1, JOB_EXIT_OOM, 0);
    assert_int_equal(state_of(&f, job), JOB_OUT_OF_MEMORY);
    job = submit(&f, 1, JOB_GPU);
    exits(&f, job, 1, 0, 0);
    assert_int_equal(state_of(&f, job), JOB_COMPLETED);
    job = submit(&f, 1, JOB_GPU);
    exits(&f, job, 1, 1, 0);
    struct event ev = request(&f, EV_CANCEL);
    ev.cancel.job = job;
    ev.cancel.now = true;
    step(&f, &ev);
    exits(&f, job, 1, 1, 0);
    assert_int_equal(state_of(&f, job), JOB_CANCELLED);

    /* The supervisor died meanwhile, and another one hands the record in. */
    job = submit(&f, 1, JOB_GPU);
    exits(&f, job, 1, 1, 0);
    step(&f, &(struct event){.kind = EV_GANG_EXITED,
                             .gang = {.job = job, .attempt = 1, .exit = {.code = 1}}});
    assert_true(find(&f, FX_LAUNCH)->launch.drain);
    fault(&f, A, 48);
    assert_null(find(&f, FX_KILL));
    exits(&f, job, 1, 1, 0);
    assert_int_equal(answer(&f), EVENT_OK);
    assert_int_equal(find(&f, FX_ATTEMPT)->attempt.state, JOB_NODE_FAIL);
    assert_int_equal(state_of(&f, job), JOB_PENDING);
    teardown(&f);
}

/* A gang that hung while it trained, and that SIGKILL does not end: the job says so. */
static void test_a_gang_that_cannot_be_killed(void **state)
{
    struct fixture f;
    char why[512];
    struct event ev = {.kind = EV_DEVICE, .device = {.name = B, .type = JOB_GPU, .fenced = true}};

    (void)state;
    setup(&f);
    const uint64_t job = submit(&f, 2, JOB_GPU);
    const uint64_t rev = core_job(f.c, job)->rev;
    step(&f, &ev);
    assert_int_equal(state_of(&f, job), JOB_COMPLETING);
    assert_true(core_job(f.c, job)->rev > rev); /* watchers hear of it */
    assert_int_equal(core_reason(f.c, core_job(f.c, job), why, sizeof(why)),
                     JOB_REASON_DEVICES_FENCED);
    assert_non_null(strstr(why, "cannot be killed"));
    assert_non_null(strstr(why, B));
    assert_null(find(&f, FX_KILL));
    step(&f, &(struct event){.kind = EV_GANG_LOST, .gang = {.job = job, .attempt = 1}});
    assert_int_equal(state_of(&f, job), JOB_PENDING);
    assert_int_equal(at(&f, B).state, CORE_DEVICE_FREE);
    teardown(&f);
}

/* The fence is stored: a new daemon knows it, kills what still trains there, and
 * forgets it after a reboot. */
static void test_a_fault_is_remembered(void **state)
{
    struct fixture f;
    struct err err;

    (void)state;
    for (int reboot = 0; reboot < 2; reboot++) {
        struct fx_device row = {.name = A, .type = JOB_GPU, .fault = 64};
        memset(&f, 0, sizeof(f));
        row.boot_id[0] = (uint8_t)reboot;
        assert_int_equal(core_new(&(struct core_opts){.boottime_ns = 1}, &f.c), 0);
        assert_int_equal(core_restore_meta(f.c, &(struct fx_meta){.next_job = 2, .rev = 1}, &err),
                         0);
        assert_int_equal(core_restore_device(f.c, &row, &err), 0);
        const struct job job = {.id = 1,
                                .rev = 1,
                                .attempt = 1,
                                .devices = 1,
                                .type = JOB_GPU,
                                .state = JOB_RUNNING,
                                .first_rank = -1,
                                .name = "n",
                                .method = "dpo",
                                .output_dir = "/o"};
        const struct attempt attempt = {
            .job = 1, .attempt = 1, .state = JOB_RUNNING, .resume_step = 0, .first_rank = -1};
        const char *devices[] = {A};
        assert_int_equal(core_restore_job(f.c, &job, &err), 0);
        assert_int_equal(core_restore_attempt(f.c, &attempt, &err), 0);
        assert_int_equal(
            core_restore_gang(
                f.c, &(struct fx_gang){.job = 1, .attempt = 1, .devices = devices, .n_devices = 1},
                &err),
            0);
        device(&f, A, false, false, NULL);
        assert_int_equal(at(&f, A).state, reboot ? CORE_DEVICE_USED : CORE_DEVICE_FENCED);
        step(&f, &(struct event){.kind = EV_GANG_ALIVE, .gang = {.job = 1, .attempt = 1}});
        assert_int_equal(find(&f, FX_KILL) != NULL, !reboot);
        teardown(&f);
    }
}

static void test_an_unfit_gpu_says_why(void **state)
{
    struct fixture f;
    char why[512];

    (void)state;
    setup(&f);
    device(&f, B, false, true, "the driver does not answer");
    assert_int_equal(at(&f, B).state, CORE_DEVICE_FENCED);
    const uint64_t job = submit(&f, 2, JOB_GPU);
    assert_int_equal(core_reason(f.c, core_job(f.c, job), why, sizeof(why)),
                     JOB_REASON_DEVICES_FENCED);
    assert_non_null(strstr(why, "the driver does not answer"));
    device(&f, B, false, false, NULL);
    assert_int_equal(state_of(&f, job), JOB_CONFIGURING);
    device(&f, B, false, true, "the driver does not answer"); /* nothing is killed for it */
    assert_null(find(&f, FX_KILL));
    assert_int_equal(state_of(&f, job), JOB_CONFIGURING);
    teardown(&f);
}

/* Neighbours on the bus go first, whatever their UUIDs. */
static void test_neighbours_go_together(void **state)
{
    static const char *const names[] = {"GPU-dddd", "GPU-cccc", B, A};
    struct fixture f;

    (void)state;
    memset(&f, 0, sizeof(f));
    f.now_ns = 1;
    assert_int_equal(core_new(&(struct core_opts){.boottime_ns = 1}, &f.c), 0);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) { /* as a store would name them */
        const struct fx_device row = {.name = names[3 - i], .type = JOB_GPU};
        struct err err;
        assert_int_equal(core_restore_device(f.c, &row, &err), 0);
    }
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        step(&f,
             &(struct event){.kind = EV_DEVICE,
                             .device = {.name = names[i], .type = JOB_GPU, .order = (uint16_t)i}});
    step(&f, &(struct event){.kind = EV_RECONCILED});
    (void)submit(&f, 2, JOB_GPU);
    const struct effect *e = find(&f, FX_LAUNCH);
    assert_string_equal(e->launch.devices[0], names[0]);
    assert_string_equal(e->launch.devices[1], names[1]);
    teardown(&f);
}

static void test_names_may_be_shortened(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    assert_int_equal(undrain(&f, "GPU-a", true), EVENT_NOT_FOUND); /* too short */
    assert_int_equal(undrain(&f, "GPU-aa", true), EVENT_OK);
    assert_int_equal(at(&f, A).state, CORE_DEVICE_DRAINED);
    assert_int_equal(undrain(&f, "GPU-cc", true), EVENT_NOT_FOUND);
    assert_int_equal(undrain(&f, "", true), EVENT_NOT_FOUND);
    device(&f, "GPU-aaaa1", false, false, NULL);
    assert_int_equal(undrain(&f, "GPU-aaaa", false), EVENT_NOT_FOUND); /* fits two */
    assert_int_equal(undrain(&f, A, false), EVENT_OK);
    teardown(&f);
}

static void test_xids(void **state)
{
    static const unsigned faults[] = {46, 48, 62, 64, 74, 79, 94, 95, 119, 120, 140, 143};
    static const unsigned others[] = {0, 13, 31, 43, 45, 63, 68, 92, 154, 999};
    char text[128];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(faults); i++)
        assert_true(fault_is_xid(faults[i]));
    for (size_t i = 0; i < ARRAY_LEN(others); i++)
        assert_false(fault_is_xid(others[i]));
    assert_string_equal(fault_text(31, text, sizeof(text)),
                        "Xid 31: a memory page fault, mostly a bad access by the program");
    assert_string_equal(fault_text(777, text, sizeof(text)), "Xid 777");
    assert_non_null(strstr(fault_text(FAULT_ECC, text, sizeof(text)), "ECC"));
    assert_string_equal(fault_text(79, text, 6), "Xid 7"); /* cut, not overrun */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_foreign_gpu_must_be_clean_for_a_minute),
        cmocka_unit_test(test_a_cpu_slot_is_free_at_once),
        cmocka_unit_test(test_a_fault_moves_the_job),
        cmocka_unit_test(test_a_fault_does_not_undo_a_result_or_a_cancel),
        cmocka_unit_test(test_an_exit_waits_for_a_fault),
        cmocka_unit_test(test_an_exit_waits_no_longer_than_that),
        cmocka_unit_test(test_a_gang_that_cannot_be_killed),
        cmocka_unit_test(test_a_fault_is_remembered),
        cmocka_unit_test(test_an_unfit_gpu_says_why),
        cmocka_unit_test(test_neighbours_go_together),
        cmocka_unit_test(test_names_may_be_shortened),
        cmocka_unit_test(test_xids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
