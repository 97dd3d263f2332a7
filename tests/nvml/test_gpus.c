/* test_gpus.c - the real daemon over a management library that plays a file: GPUs that come,
 * are used by others, fail, and do not answer. The worker is play_supervisor. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon/world.h"

#define A   "GPU-aaaa0000-1111-2222-3333-444455556666"
#define B   "GPU-bbbb0000-1111-2222-3333-444455556666"
#define TWO "gpu " A " NVIDIA_H100 81559\ngpu " B " NVIDIA_H100 81559\n"

static char path[64];

static void play(const char *text)
{
    char part[80];
    FILE *f;

    snprintf(part, sizeof part, "%s.part", path);
    f = fopen(part, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(rename(part, path), 0);
}

static json_t *devices(struct world *w)
{
    struct msg m = {.type = MSG_T_devices}, *r = world_ask(w, &m);
    json_t *list;

    assert_int_equal(r->type, MSG_T_json);
    list = json_loads(r->json.text, 0, NULL);
    assert_non_null(list);
    codec_free(r);
    return list;
}

/* A copy of what `devices` says of one; NULL: it is not listed. */
static json_t *device(struct world *w, const char *name)
{
    json_t *list = devices(w), *found = NULL, *d;
    size_t i;

    json_array_foreach(list, i, d)
    {
        if (!strcmp(world_text_of(d, "device"), name))
            found = json_incref(d);
    }
    json_decref(list);
    return found;
}

static void wait_device(struct world *w, const char *name, const char *state, const char *reason)
{
    json_t *d = NULL;

    for (int i = 0; i < PATIENCE_MS / 50; i++) {
        json_decref(d);
        d = device(w, name);
        if (d && !strcmp(world_text_of(d, "state"), state) &&
            strstr(world_text_of(d, "reason"), reason)) {
            json_decref(d);
            return;
        }
        usleep(50000);
    }
    fail_msg("%s is %s (%s), not %s (%s)", name, d ? world_text_of(d, "state") : "not listed",
             d ? world_text_of(d, "reason") : "", state, reason);
}

static uint64_t submit(struct world *w, uint8_t key, const char *type, uint64_t n, const char *spec)
{
    struct msg m = world_submission(key, "g", spec), *r;
    uint64_t job;

    m.submit.device_type = type;
    m.submit.devices = n;
    r = world_ask(w, &m);
    if (r->type != MSG_T_submitted)
        fail_msg("%s", r->error.text);
    job = r->submitted.job;
    codec_free(r);
    return job;
}

static void wait_reason(struct world *w, uint64_t job, const char *text)
{
    for (int i = 0; i < PATIENCE_MS / 50; i++) {
        json_t *o = world_show(w, job);
        const bool found = strstr(world_text_of(o, "reason_text"), text);
        json_decref(o);
        if (found)
            return;
        usleep(50000);
    }
    fail_msg("job %llu does not wait for %s", (unsigned long long)job, text);
}

static const char *note(struct world *w)
{
    static char text[512];
    struct msg m = {.type = MSG_T_hello}, *r;

    m.hello.v_min = MSG_CLIENT_V_MIN;
    m.hello.v_max = MSG_CLIENT_V_MAX;
    r = world_ask(w, &m);
    snprintf(text, sizeof text, "%s", r->welcome.note);
    codec_free(r);
    return text;
}

/* A daemon that finds this world; its environment is this process's. */
static void begin(struct world *w, const char *text)
{
    play(text);
    world_finish(w, SIGTERM);
    world_start(w);
}

/* ---- tests ---- */

static void test_what_is_there(void **state)
{
    struct world *w = *state;
    json_t *d;

    begin(w, TWO "set " B " used 61559\nset " B " util 98\nset " B " temp 71\n");
    wait_device(w, A, "FREE", "");
    d = device(w, B);
    assert_string_equal(world_text_of(d, "type"), "gpu");
    assert_string_equal(world_text_of(d, "name"), "NVIDIA H100");
    assert_string_equal(world_text_of(d, "pci"), "00000000:02:00.0");
    assert_true(world_int_of(d, "memory_used") == (json_int_t)61559 << 20);
    assert_int_equal(world_int_of(d, "utilisation"), 98);
    assert_int_equal(world_int_of(d, "temperature"), 71);
    assert_string_equal(world_text_of(d, "note"), "");
    json_decref(d);
    play(TWO "set " B " temp 93\n");
    for (int i = 0; i < 200; i++) {
        d = device(w, B);
        const bool hot = strstr(world_text_of(d, "note"), "hot: its clocks are lowered from 90 C");
        json_decref(d);
        if (hot)
            break;
        assert_true(i < 199);
        usleep(50000);
    }
    play(TWO "gpu GPU-cccc NVIDIA_T4 15360\nset " B " mig 1\n"); /* one more, and one is split */
    wait_device(w, "GPU-cccc", "FREE", "");
    wait_device(w, B, "FENCED", "MIG");
    play("gpu " A " NVIDIA_H100 81559\n");
    wait_device(w, "GPU-cccc", "GONE", "");
    wait_device(w, B, "GONE", "");
}

/* auto is a GPU here, in the gang file and in the spec that is kept; its GPU is told live. */
static void test_a_job_on_gpus(void **state)
{
    struct world *w = *state;
    struct msg m = {.type = MSG_T_spec}, *r;
    const char *spec = "{\"play\":{\"steps\":2,\"end\":\"stay\"},"
                       "\"values\":{\"device_type\":\"auto\",\"bf16\":\"auto\",\"x\":0.1}}";
    json_t *o, *g;

    begin(w, TWO "set " A " temp 44\n");
    wait_device(w, A, "FREE", "");
    const uint64_t job = submit(w, 1, "auto", 2, spec);
    world_wait_for(w, job, "RUNNING", 2);
    o = world_show(w, job);
    assert_string_equal(world_text_of(o, "device_type"), "gpu");
    assert_string_equal(json_string_value(json_array_get(json_object_get(o, "device_names"), 1)),
                        B);
    g = json_array_get(json_object_get(o, "gpus"), 0);
    assert_string_equal(world_text_of(g, "device"), A);
    assert_int_equal(world_int_of(g, "temperature"), 44);
    assert_int_equal(world_int_of(json_array_get(json_object_get(o, "gpus"), 1), "rank"), 1);
    const uint64_t rev = (uint64_t)world_int_of(o, "rev");
    json_decref(o);

    m.spec.job = job;
    r = world_ask(w, &m);
    assert_non_null(strstr(r->specs.resolved, "\"device_type\":\"gpu\""));
    assert_non_null(strstr(r->specs.resolved, "\"bf16\":true"));
    assert_non_null(strstr(r->specs.resolved, "0.1"));
    codec_free(r);

    /* Nothing of the job changes, but its GPU does: the watcher hears of it. */
    m = (struct msg){.type = MSG_T_watch_job};
    m.watch_job = (struct msg_watch_job){.job = job, .since = 3, .rev = rev};
    play(TWO "set " A " temp 83\n");
    bool hot = false;
    struct err err;
    if (!w->watch) {
        struct msg h = {.type = MSG_T_hello}, *hello;
        h.hello.v_min = MSG_CLIENT_V_MIN;
        h.hello.v_max = MSG_CLIENT_V_MAX;
        hello = world_ask(w, &h);
        assert_int_equal(wire_dial(hello->welcome.watch_url, WIRE_WAIT, &w->watch, &err), 0);
        codec_free(hello);
    }
    for (int i = 0; i < 10 && !hot; i++) {
        r = world_ask_on(w->watch, &m);
        assert_int_equal(r->type, MSG_T_job_news);
        hot = strstr(r->job_news.state, "\"temperature\":83");
        codec_free(r);
    }
    assert_true(hot);
    m = (struct msg){.type = MSG_T_cancel};
    m.cancel = (struct msg_cancel){.key = world_key(2), .job = job};
    codec_free(world_ask(w, &m));
    world_wait_for(w, job, "CANCELLED", 2);
    wait_device(w, A, "FREE", "");
}

/* A process that is not ours: named, waited for, and forgotten a minute after it went. Ours
 * is ours, also for a daemon that did not start it. */
static void test_other_peoples_processes(void **state)
{
    struct world *w = *state;
    struct msg m = {.type = MSG_T_cancel};
    char text[1024];
    json_t *o;

    snprintf(text, sizeof text, TWO "process " A " %d 14541\n", (int)getpid());
    begin(w, text);
    wait_device(w, A, "FOREIGN", "test_gpus of user ");
    snprintf(text, sizeof text, "process %d, 14.2 GiB", (int)getpid());
    wait_device(w, A, "FOREIGN", text);
    const uint64_t job = submit(w, 1, "gpu", 2, "{\"play\":{\"steps\":2,\"end\":\"stay\"}}");
    wait_reason(w, job, A ": test_gpus of user ");
    o = world_show(w, job);
    assert_string_equal(world_text_of(o, "reason"), "DevicesForeign");
    json_decref(o);
    play(TWO);
    wait_device(w, A, "FOREIGN", "until a moment ago");
    for (int i = 0; i < 3; i++) { /* world_wait_for waits for 30 s at most */
        json_t *d = device(w, A);
        if (strcmp(world_text_of(d, "state"), "FOREIGN") == 0)
            sleep(20);
        json_decref(d);
    }
    world_wait_for(w, job, "RUNNING", 1);

    snprintf(text, sizeof text,
             "sed 's/.*\"supervisor\":{\"pid\":\\([0-9]*\\).*/\\1/' %s/gangs/*/pids.json",
             w->state);
    FILE *f = popen(text, "r");
    int supervisor = 0;
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &supervisor), 1);
    pclose(f);
    snprintf(text, sizeof text, TWO "process " A " %d 5000\nprocess " B " %d 5000\n", supervisor,
             supervisor);
    play(text);
    for (int i = 0; i < 2; i++) {
        sleep(3);
        o = device(w, B);
        assert_string_equal(world_text_of(o, "state"), "USED");
        assert_string_equal(world_text_of(o, "reason"), "");
        json_decref(o);
        if (i == 0) {
            world_finish(w, SIGKILL);
            world_start(w);
        }
    }
    m.cancel = (struct msg_cancel){.key = world_key(2), .job = job};
    codec_free(world_ask(w, &m));
    world_wait_for(w, job, "CANCELLED", 2);
    play(TWO);
    wait_device(w, A, "FREE", "");
}

/* Xid 79 in mid-training; then ECC on the other one; then the operator has reset one. */
static void test_hardware_that_fails(void **state)
{
    struct world *w = *state;
    struct msg m = {.type = MSG_T_drain};
    json_t *o, *a;

    begin(w, TWO);
    const uint64_t job =
        submit(w, 1, "gpu", 1, "{\"play\":{\"steps\":80,\"delay_ms\":100,\"resume\":3}}");
    world_wait_for(w, job, "RUNNING", 3);
    play(TWO "event 1 " A " xid 31\n"); /* the program's own: nothing happens */
    sleep(2);
    world_wait_for(w, job, "RUNNING", 4);
    play(TWO "event 1 " A " xid 31\nevent 2 " A " xid 79\nset " A " lost 1\n");
    wait_device(w, A, "FENCED", "Xid 79: the GPU has fallen off the bus");
    for (int i = 0; i < 600; i++) {
        o = world_show(w, job);
        const json_int_t attempt = world_int_of(o, "attempt");
        json_decref(o);
        if (attempt == 2)
            break;
        usleep(50000);
    }
    o = world_show(w, job);
    a = json_array_get(json_object_get(o, "attempts"), 0);
    assert_string_equal(world_text_of(a, "state"), "NODE_FAIL");
    assert_string_equal(world_text_of(a, "error"),
                        "rank 0: " A ": Xid 79: the GPU has fallen off the bus");
    assert_string_equal(json_string_value(json_array_get(json_object_get(o, "device_names"), 0)),
                        B);
    json_decref(o);

    world_wait_for(w, job, "RUNNING", 5);
    world_finish(w, SIGKILL);                                /* the fence is stored */
    play(TWO "set " A " lost 1\nset " B " uncorrected 2\n"); /* from before: not news */
    world_start(w);
    wait_device(w, A, "FENCED", "Xid 79");
    world_wait_for(w, job, "RUNNING", 5);
    play(TWO "set " A " lost 1\nset " B " uncorrected 3\n");
    wait_device(w, B, "FENCED", "uncorrectable memory errors");
    wait_reason(w, job, "GPU-aaaa");
    o = world_show(w, job);
    assert_string_equal(world_text_of(o, "state"), "PENDING");
    assert_string_equal(world_text_of(o, "reason"), "DevicesFenced");
    json_decref(o);

    play(TWO);
    m.drain = (struct msg_drain){.key = world_key(3), .device = "GPU-aaaa", .on = false};
    codec_free(world_ask(w, &m));
    world_wait_for(w, job, "COMPLETED", 80);
    o = world_show(w, job);
    assert_int_equal(world_int_of(o, "attempt"), 3);
    assert_string_equal(world_text_of(o, "error"), "");
    json_decref(o);
}

/* A rank dies of its GPU before NVML says so: the fault is named when it comes, and without
 * one the job is the one to blame. */
static void test_a_rank_that_dies_first(void **state)
{
    struct world *w = *state;
    json_t *o, *a;

    begin(w, TWO);
    const uint64_t job = submit(w, 1, "gpu", 1, "{\"play\":{\"steps\":2,\"end\":\"fail\"}}");
    world_wait_for(w, job, "COMPLETING", 2);
    play(TWO "event 1 " A " xid 48\n");
    wait_device(w, A, "FENCED", "Xid 48");
    world_wait_for(w, job, "COMPLETED", 2); /* it fails once: the next attempt does not */
    o = world_show(w, job);
    assert_int_equal(world_int_of(o, "attempt"), 2);
    a = json_array_get(json_object_get(o, "attempts"), 0);
    assert_string_equal(world_text_of(a, "state"), "NODE_FAIL");
    assert_non_null(strstr(world_text_of(a, "error"), "rank 0: " A ": Xid 48"));
    json_decref(o);
    const uint64_t next = submit(w, 2, "gpu", 1, "{\"play\":{\"steps\":2,\"end\":\"fail\"}}");
    world_wait_for(w, next, "FAILED", 2);
    wait_device(w, B, "FREE", "");
}

/* Instances are devices of their own; what happens to their GPU happens to all of them. */
static void test_instances(void **state)
{
#define SPLIT                                                              \
    TWO "set " A " mig 1\nmig " A " MIG-11110000 H100_MIG_3g.40gb 40000\n" \
        "mig " A " MIG-22220000 H100_MIG_3g.40gb 40000\n"
    struct world *w = *state;
    json_t *o, *d;

    begin(w, SPLIT);
    wait_device(w, "MIG-11110000", "FREE", "");
    d = device(w, "MIG-22220000");
    assert_string_equal(world_text_of(d, "name"), "H100 MIG 3g.40gb");
    assert_true(json_is_null(json_object_get(d, "utilisation")));
    json_decref(d);
    assert_null(device(w, A));
    const uint64_t job =
        submit(w, 1, "gpu", 2, "{\"play\":{\"steps\":80,\"delay_ms\":100,\"resume\":3}}");
    world_wait_for(w, job, "RUNNING", 2);
    o = world_show(w, job);
    assert_string_equal(json_string_value(json_array_get(json_object_get(o, "device_names"), 1)),
                        "MIG-22220000");
    json_decref(o);
    play(SPLIT "event 1 " A " xid 79\nset " A " lost 1\n");
    wait_device(w, "MIG-11110000", "FENCED", "Xid 79");
    wait_device(w, "MIG-22220000", "FENCED", "Xid 79");
    wait_device(w, B, "FREE", "");
    wait_reason(w, job, "MIG-11110000: Xid 79");
    o = world_show(w, job);
    assert_string_equal(world_text_of(json_array_get(json_object_get(o, "attempts"), 0), "state"),
                        "NODE_FAIL");
    json_decref(o);
}

/* The driver hangs in a call: the daemon answers, what trains trains on, nothing new is
 * placed there; and it stops in good time. */
static void test_a_driver_that_hangs(void **state)
{
    struct world *w = *state;

    begin(w, TWO);
    const uint64_t job = submit(w, 1, "gpu", 1, "{\"play\":{\"steps\":200,\"delay_ms\":100}}");
    world_wait_for(w, job, "RUNNING", 1);
    play(TWO "hang memory\n");
    wait_device(w, B, "FENCED", "does not answer");
    assert_non_null(strstr(note(w), "does not answer"));
    const uint64_t next = submit(w, 2, "gpu", 1, "{\"play\":{\"steps\":1}}");
    wait_reason(w, next, "does not answer");
    json_t *o = world_show(w, job);
    assert_string_equal(world_text_of(o, "state"), "RUNNING");
    json_decref(o);
    world_finish(w, SIGTERM); /* while it hangs */
    play(TWO);
    world_start(w);
    world_wait_for(w, next, "COMPLETED", 1);
    world_wait_for(w, job, "COMPLETED", 200);
}

static void test_drivers_that_refuse(void **state)
{
    struct world *w = *state;
    struct msg m = world_submission(1, "g", "{\"play\":{\"steps\":1}}"), *r;

    begin(w, TWO "init 18\n");
    assert_non_null(strstr(note(w), "version mismatch"));
    m.submit.device_type = "gpu";
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_error);
    assert_non_null(strstr(r->error.text, "version mismatch"));
    codec_free(r);
    world_wait_for(w, submit(w, 2, "auto", 1, "{\"play\":{\"steps\":1}}"), "COMPLETED", 1);
}

static void test_a_build_for_the_cpu(void **state)
{
    struct world *w = *state;
    json_t *list;

    setenv("ALIGND_BACKEND", "cpu", 1);
    begin(w, TWO);
    setenv("ALIGND_BACKEND", "sim", 1);
    assert_string_equal(note(w), "This build trains on the CPU only; 2 GPUs seen, not used");
    list = devices(w);
    assert_int_equal(json_array_size(list), 4);
    json_decref(list);
}

/* align-worker has the module, and says that it cannot use it. */
static void test_a_module_that_cannot_be_used(void **state)
{
    struct world *w = *state;

    setenv("PLAY_DEVICES", "{\"gpus\":[],\"why\":\"libcublasLt.so.13 is missing\"}", 1);
    begin(w, TWO);
    unsetenv("PLAY_DEVICES");
    assert_string_equal(note(w), "2 GPUs seen, not used: libcublasLt.so.13 is missing");
}

static void test_cuda_visible_devices(void **state)
{
    struct world *w = *state;
    json_t *d;

    setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb", 1);
    begin(w, TWO);
    unsetenv("CUDA_VISIBLE_DEVICES");
    wait_device(w, B, "FREE", "");
    d = device(w, A);
    assert_null(d);
    assert_non_null(strstr(note(w), "CUDA_VISIBLE_DEVICES leaves 1 of 2 GPUs"));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, world_setup, world_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_what_is_there),          TEST(test_a_job_on_gpus),
        TEST(test_hardware_that_fails),    TEST(test_other_peoples_processes),
        TEST(test_a_rank_that_dies_first), TEST(test_instances),
        TEST(test_a_driver_that_hangs),    TEST(test_drivers_that_refuse),
        TEST(test_a_build_for_the_cpu),    TEST(test_a_module_that_cannot_be_used),
        TEST(test_cuda_visible_devices),
    };
    int fd, r;

    snprintf(path, sizeof path, "/tmp/alignd-gpus-XXXXXX");
    fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    setenv("ALIGND_PLAYED_NVML", path, 1);
    setenv("ALIGND_BACKEND", "sim", 1);
    unsetenv("CUDA_VISIBLE_DEVICES");
    unsetenv("SLURM_JOB_ID");
    r = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return r;
}
