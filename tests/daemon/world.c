/* world.c - see world.h. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon/world.h"

extern char **environ;

/* ---- the daemon ---- */

void world_connect_to(struct world *w)
{
    char url[128];
    int r = -1;

    snprintf(url, sizeof url, "ipc://%s/control.sock", w->state);
    for (int i = 0; i < PATIENCE_MS / 10 && r < 0; i++) {
        r = wire_dial(url, 0, &w->control, NULL);
        if (r < 0)
            usleep(10000);
    }
    assert_int_equal(r, 0);
}

pid_t world_spawn_daemon(struct world *w)
{
    char *argv[] = {getenv("ALIGND"),
                    "--user",
                    "--state",
                    w->state,
                    "--cpu-slots",
                    "4",
                    "--worker",
                    getenv("PLAY_SUPERVISOR"),
                    "--devices-dir",
                    w->devices,
                    "--log-level",
                    "debug",
                    NULL};
    posix_spawnattr_t at;
    pid_t pid;

    assert_non_null(argv[0]);
    posix_spawnattr_init(&at);
    assert_int_equal(posix_spawn(&pid, argv[0], NULL, &at, argv, environ), 0);
    posix_spawnattr_destroy(&at);
    return pid;
}

void world_start(struct world *w)
{
    w->pid = world_spawn_daemon(w);
    if (!w->control)
        world_connect_to(w);
}

int world_finish(struct world *w, int sig)
{
    int status;

    kill(w->pid, sig);
    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    w->pid = 0;
    return status;
}

int world_setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    snprintf(w->dir, sizeof w->dir, "/tmp/alignd-test-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->state, sizeof w->state, "%s/s", w->dir);
    snprintf(w->devices, sizeof w->devices, "%s/devices", w->dir);
    world_start(w);
    *state = w;
    return 0;
}

int world_teardown(void **state)
{
    struct world *w = *state;
    char command[128];

    if (w->pid)
        world_finish(w, SIGTERM);
    wire_hangup(w->watch);
    wire_hangup(w->control);
    if (w->mounted)
        assert_int_equal(umount(w->dir), 0);
    if (getenv("KEEP"))
        printf("%s\n", w->dir);
    else {
        snprintf(command, sizeof command, "rm -rf %s", w->dir);
        assert_int_equal(system(command), 0);
    }
    free(w);
    return 0;
}

/* ---- requests ---- */

struct msg *world_ask_on(struct wire_client *c, const struct msg *m)
{
    struct err err = {""};
    uint8_t *frame, *data;
    size_t bytes, n;
    struct msg *reply;

    if (codec_encode(m, &frame, &bytes, &err) < 0)
        fail_msg("%s", err.text);
    for (;;) {
        assert_int_equal(wire_call(c, frame, bytes, PATIENCE_MS + 5000, &data, &n), 0);
        assert_int_equal(codec_decode(data, n, &reply, &err), 0);
        free(data);
        if (reply->type != MSG_T_error || reply->error.code != MSG_RETRY)
            break;
        codec_free(reply);
        usleep(20000);
    }
    free(frame);
    return reply;
}

struct msg *world_ask(struct world *w, const struct msg *m)
{
    return world_ask_on(w->control, m);
}

void world_expect_error(struct world *w, const struct msg *m, enum msg_code code)
{
    struct msg *r = world_ask(w, m);

    assert_int_equal(r->type, MSG_T_error);
    assert_int_equal(r->error.code, code);
    assert_true(r->error.text[0] != 0);
    codec_free(r);
}

struct msg_key world_key(uint8_t n)
{
    struct msg_key k;

    memset(k.b, n, sizeof k.b);
    return k;
}

struct msg world_submission(uint8_t k, const char *name, const char *resolved)
{
    struct msg m = {.type = MSG_T_submit};
    static char dir[8][128];
    static int next;
    char *d = dir[next++ % 8];

    snprintf(d, sizeof dir[0], "/nowhere/%s-{id}", name);
    m.submit = (struct msg_submit){.key = world_key(k),
                                   .name = name,
                                   .user_spec = "{\"name\":\"x\"}",
                                   .resolved = resolved,
                                   .output_dir = d,
                                   .method = "dpo",
                                   .device_type = "cpu",
                                   .devices = 1,
                                   .steps = 3};
    return m;
}

uint64_t world_submit(struct world *w, uint8_t k, const char *name, const char *resolved)
{
    const struct msg m = world_submission(k, name, resolved);
    struct msg *r = world_ask(w, &m);
    uint64_t job;

    if (r->type == MSG_T_error)
        fail_msg("submit: %s", r->error.text);
    job = r->submitted.job;
    codec_free(r);
    return job;
}

json_t *world_show(struct world *w, uint64_t job)
{
    struct msg m = {.type = MSG_T_show};
    json_t *o;

    m.show.job = job;
    struct msg *r = world_ask(w, &m);
    if (r->type == MSG_T_error)
        fail_msg("show: %s", r->error.text);
    o = json_loads(r->json.text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(o);
    codec_free(r);
    return o;
}

const char *world_text_of(const json_t *o, const char *k)
{
    return json_string_value(json_object_get(o, k));
}

json_int_t world_int_of(const json_t *o, const char *k)
{
    assert_true(json_is_integer(json_object_get(o, k)));
    return json_integer_value(json_object_get(o, k));
}

void world_wait_for(struct world *w, uint64_t job, const char *state, json_int_t step)
{
    char last[1024] = "";

    for (int i = 0; i < PATIENCE_MS / 10; i++) {
        json_t *o = world_show(w, job);
        const bool there =
            !strcmp(world_text_of(o, "state"), state) && world_int_of(o, "step") >= step;
        snprintf(last, sizeof last, "%s step %lld: %s", world_text_of(o, "state"),
                 world_int_of(o, "step"), world_text_of(o, "error"));
        json_decref(o);
        if (there)
            return;
        usleep(10000);
    }
    fail_msg("job %llu is %s, not %s", (unsigned long long)job, last, state);
}

struct msg *world_metrics(struct world *w, uint64_t job, bool all)
{
    struct msg m = {.type = MSG_T_metrics};

    m.metrics.job = job;
    m.metrics.all = all;
    struct msg *r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_page);
    return r;
}

/* Rows 1.. of one attempt, n and seq without gaps or repeats. */
void world_expect_rows(struct world *w, uint64_t job, size_t n)
{
    struct msg *r = world_metrics(w, job, false);

    assert_int_equal(r->page.rows.n, n);
    for (size_t i = 0; i < n; i++) {
        const struct msg_row *row = &r->page.rows.v[i];
        assert_int_equal(row->n, i + 1);
        assert_int_equal(row->seq, i + 1);
        if (row->kind != MSG_ROW_TRAIN)
            continue;
        assert_int_equal(row->n_values, 2);
        assert_string_equal(row->names[0], "loss");
        assert_true(row->values[0] == 1.0 / (double)row->step);
    }
    assert_false(r->page.more);
    codec_free(r);
}

void world_expect_log(struct world *w, uint64_t job, const char *want)
{
    struct msg m = {.type = MSG_T_logs};

    m.logs.job = job;
    struct msg *r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_chunk);
    assert_int_equal(r->chunk.bytes.bytes, strlen(want));
    assert_memory_equal(r->chunk.bytes.data, want, strlen(want));
    codec_free(r);
}

void world_wait_until_gone(struct world *w, uint64_t job)
{
    char path[256], store[37] = "";
    struct msg m = {.type = MSG_T_hello};

    m.hello.v_min = m.hello.v_max = 1;
    struct msg *r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_welcome);
    snprintf(store, sizeof store, "%s", r->welcome.store);
    snprintf(w->watch_url, sizeof w->watch_url, "%s", r->welcome.watch_url);
    codec_free(r);
    snprintf(path, sizeof path, "%s/gangs/alignd-%.8s-%llu-1", w->state, store,
             (unsigned long long)job);
    for (int i = 0; i < PATIENCE_MS / 10; i++) {
        if (access(path, F_OK) < 0)
            return;
        usleep(10000);
    }
    fail_msg("%s is still there", path);
}
