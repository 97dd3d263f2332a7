/* test_alignd.c - the real daemon in a folder of its own, spoken to through the codec; its
 * worker is play_supervisor. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "proto/codec.h"
#include "proto/wire.h"

extern char **environ;

enum { PATIENCE_MS = 20000 };

static bool own_mounts; /* what is mounted here, nobody else sees */

struct world {
    char dir[64], state[160], devices[96];
    pid_t pid;
    bool mounted;
    struct wire_client *control, *watch;
    char watch_url[256];
};

/* ---- the daemon ---- */

static void connect_to(struct world *w)
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

static pid_t spawn_daemon(struct world *w)
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

static void start(struct world *w)
{
    w->pid = spawn_daemon(w);
    if (!w->control)
        connect_to(w);
}

static int finish(struct world *w, int sig)
{
    int status;

    kill(w->pid, sig);
    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    w->pid = 0;
    return status;
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    snprintf(w->dir, sizeof w->dir, "/tmp/alignd-test-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->state, sizeof w->state, "%s/s", w->dir);
    snprintf(w->devices, sizeof w->devices, "%s/devices", w->dir);
    start(w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    char command[128];

    if (w->pid)
        finish(w, SIGTERM);
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

static struct msg *ask_on(struct wire_client *c, const struct msg *m)
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

static struct msg *ask(struct world *w, const struct msg *m)
{
    return ask_on(w->control, m);
}

static void expect_error(struct world *w, const struct msg *m, enum msg_code code)
{
    struct msg *r = ask(w, m);

    assert_int_equal(r->type, MSG_T_error);
    assert_int_equal(r->error.code, code);
    assert_true(r->error.text[0] != 0);
    codec_free(r);
}

static struct msg_key key(uint8_t n)
{
    struct msg_key k;

    memset(k.b, n, sizeof k.b);
    return k;
}

static struct msg submission(uint8_t k, const char *name, const char *resolved)
{
    struct msg m = {.type = MSG_T_submit};
    static char dir[8][128];
    static int next;
    char *d = dir[next++ % 8];

    snprintf(d, sizeof dir[0], "/nowhere/%s-{id}", name);
    m.submit = (struct msg_submit){.key = key(k),
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

static uint64_t submit(struct world *w, uint8_t k, const char *name, const char *resolved)
{
    const struct msg m = submission(k, name, resolved);
    struct msg *r = ask(w, &m);
    uint64_t job;

    if (r->type == MSG_T_error)
        fail_msg("submit: %s", r->error.text);
    job = r->submitted.job;
    codec_free(r);
    return job;
}

static json_t *show(struct world *w, uint64_t job)
{
    struct msg m = {.type = MSG_T_show};
    json_t *o;

    m.show.job = job;
    struct msg *r = ask(w, &m);
    if (r->type == MSG_T_error)
        fail_msg("show: %s", r->error.text);
    o = json_loads(r->json.text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(o);
    codec_free(r);
    return o;
}

static const char *text_of(const json_t *o, const char *k)
{
    return json_string_value(json_object_get(o, k));
}

static json_int_t int_of(const json_t *o, const char *k)
{
    assert_true(json_is_integer(json_object_get(o, k)));
    return json_integer_value(json_object_get(o, k));
}

static void wait_for(struct world *w, uint64_t job, const char *state, json_int_t step)
{
    char last[1024] = "";

    for (int i = 0; i < PATIENCE_MS / 10; i++) {
        json_t *o = show(w, job);
        const bool there = !strcmp(text_of(o, "state"), state) && int_of(o, "step") >= step;
        snprintf(last, sizeof last, "%s step %lld: %s", text_of(o, "state"), int_of(o, "step"),
                 text_of(o, "error"));
        json_decref(o);
        if (there)
            return;
        usleep(10000);
    }
    fail_msg("job %llu is %s, not %s", (unsigned long long)job, last, state);
}

static struct msg *metrics(struct world *w, uint64_t job, bool all)
{
    struct msg m = {.type = MSG_T_metrics};

    m.metrics.job = job;
    m.metrics.all = all;
    struct msg *r = ask(w, &m);
    assert_int_equal(r->type, MSG_T_page);
    return r;
}

/* Rows 1.. of one attempt, n and seq without gaps or repeats. */
static void expect_rows(struct world *w, uint64_t job, size_t n)
{
    struct msg *r = metrics(w, job, false);

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

static void expect_log(struct world *w, uint64_t job, const char *want)
{
    struct msg m = {.type = MSG_T_logs};

    m.logs.job = job;
    struct msg *r = ask(w, &m);
    assert_int_equal(r->type, MSG_T_chunk);
    assert_int_equal(r->chunk.bytes.bytes, strlen(want));
    assert_memory_equal(r->chunk.bytes.data, want, strlen(want));
    codec_free(r);
}

static void wait_until_gone(struct world *w, uint64_t job)
{
    char path[256], store[37] = "";
    struct msg m = {.type = MSG_T_hello};

    m.hello.v_min = m.hello.v_max = 1;
    struct msg *r = ask(w, &m);
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

/* ---- tests ---- */

static void a_job(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "one", "{\"play\":{\"steps\":3}}");
    json_t *o;

    assert_int_equal(job, 1);
    wait_for(w, job, "COMPLETED", 3);
    expect_rows(w, job, 5);
    expect_log(w, job, "hello from rank 0\ndone\n");
    o = show(w, job);
    assert_string_equal(text_of(o, "output_dir"), "/nowhere/one-1");
    assert_string_equal(text_of(o, "adapter"), "/a/b");
    assert_int_equal(int_of(o, "attempt"), 1);
    assert_int_equal(json_array_size(json_object_get(o, "attempts")), 1);
    assert_string_equal(text_of(json_array_get(json_object_get(o, "attempts"), 0), "build"),
                        "play");
    json_decref(o);
    wait_until_gone(w, job);
}

/* The same request again: the same answer, also after a kill; others are told apart. */
static void repeated(void **state)
{
    struct world *w = *state;
    struct msg m = submission(7, "again", "{\"play\":{\"steps\":1}}"), *r;

    assert_int_equal(submit(w, 7, "again", "{\"play\":{\"steps\":1}}"), 1);
    assert_int_equal(submit(w, 7, "again", "{\"play\":{\"steps\":1}}"), 1);
    m.submit.priority = 5;
    expect_error(w, &m, MSG_CONFLICT);
    finish(w, SIGKILL);
    start(w);
    assert_int_equal(submit(w, 7, "again", "{\"play\":{\"steps\":1}}"), 1);
    assert_int_equal(submit(w, 8, "next", "{\"play\":{\"steps\":1}}"), 2);
    m = (struct msg){.type = MSG_T_list};
    r = ask(w, &m);
    json_t *list = json_loads(r->json.text, 0, NULL);
    assert_int_equal(json_array_size(list), 2);
    json_decref(list);
    codec_free(r);
}

/* kill -9 in the middle of a run: the gang trains on and is adopted. */
static void killed(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "long", "{\"play\":{\"steps\":150,\"delay_ms\":20}}");
    json_t *o;

    for (int i = 0; i < 5; i++) {
        wait_for(w, job, "RUNNING", 5 + 8 * i);
        finish(w, SIGKILL);
        start(w);
    }
    wait_for(w, job, "COMPLETED", 150);
    o = show(w, job);
    assert_int_equal(int_of(o, "attempt"), 1);
    json_decref(o);
    expect_rows(w, job, 152);
    expect_log(w, job, "hello from rank 0\ndone\n");
}

/* SIGTERM: the daemon goes, the gang stays and ends while nobody listens. */
static void away(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "away", "{\"play\":{\"steps\":10,\"delay_ms\":20}}");
    int status;

    wait_for(w, job, "RUNNING", 2);
    status = finish(w, SIGTERM);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    usleep(300000);
    start(w);
    wait_for(w, job, "COMPLETED", 10);
    expect_rows(w, job, 12);
}

/* Gone without a record: once more by itself, from where it can resume; then rewound. */
static void vanished(void **state)
{
    struct world *w = *state;
    const uint64_t job =
        submit(w, 1, "lost", "{\"play\":{\"steps\":6,\"resume\":4,\"end\":\"vanish\"}}");
    struct msg *r;
    json_t *o;

    wait_for(w, job, "COMPLETED", 6);
    o = show(w, job);
    assert_int_equal(int_of(o, "attempt"), 2);
    assert_string_equal(text_of(json_array_get(json_object_get(o, "attempts"), 0), "state"),
                        "NODE_FAIL");
    json_decref(o);
    r = metrics(w, job, true); /* start 1..6, rewind, start 5 6 summary */
    assert_int_equal(r->page.rows.n, 7 + 1 + 4);
    for (size_t i = 0; i < r->page.rows.n; i++) {
        const struct msg_row *row = &r->page.rows.v[i];
        assert_int_equal(row->superseded, row->attempt == 1 && row->step > 4);
        if (i == 7) {
            assert_int_equal(row->kind, MSG_ROW_REWIND);
            assert_int_equal(row->step, 4);
        }
    }
    codec_free(r);
}

static void failed(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "bad", "{\"play\":{\"steps\":1,\"end\":\"fail\"}}");
    json_t *o;

    wait_for(w, job, "FAILED", 1);
    o = show(w, job);
    assert_non_null(strstr(text_of(o, "error"), "row 7"));
    assert_int_equal(int_of(o, "exit_code"), 1);
    assert_int_equal(int_of(o, "first_rank"), 0);
    json_decref(o);
}

static void cancelled(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "stay", "{\"play\":{\"steps\":1,\"end\":\"stay\"}}");
    struct msg m = {.type = MSG_T_cancel}, *r;

    wait_for(w, job, "RUNNING", 1);
    m.cancel = (struct msg_cancel){.key = key(2), .job = job};
    for (int i = 0; i < 2; i++) {
        r = ask(w, &m);
        assert_int_equal(r->type, MSG_T_done);
        codec_free(r);
    }
    wait_for(w, job, "CANCELLED", 1);
    expect_log(w, job, "hello from rank 0\nstopped\n");
    m.cancel.key = key(3);
    m.cancel.job = 99;
    expect_error(w, &m, MSG_NOT_FOUND);

    m = (struct msg){.type = MSG_T_resume};
    m.resume = (struct msg_resume){.key = key(4), .job = job};
    r = ask(w, &m);
    assert_int_equal(r->type, MSG_T_done);
    codec_free(r);
    wait_for(w, job, "COMPLETED", 1);
}

static void cancelled_now(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "stay", "{\"play\":{\"steps\":1,\"end\":\"stay\"}}");
    struct msg m = {.type = MSG_T_cancel}, *r;

    wait_for(w, job, "RUNNING", 1);
    m.cancel = (struct msg_cancel){.key = key(2), .job = job, .now = true};
    r = ask(w, &m);
    assert_int_equal(r->type, MSG_T_done);
    codec_free(r);
    wait_for(w, job, "CANCELLED", 1);
    wait_until_gone(w, job);
}

/* A late watcher sees every row from the start, then live ones, then the end. */
static void watched(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "seen", "{\"play\":{\"steps\":30,\"delay_ms\":10}}");
    struct msg m = {.type = MSG_T_watch_job}, *r;
    uint64_t rows = 0;
    bool over = false;
    char state_word[64] = "";

    wait_for(w, job, "RUNNING", 3);
    wait_until_gone(w, 999); /* learns the watch socket's address */
    assert_int_equal(wire_dial(w->watch_url, 0, &w->watch, NULL), 0);
    m.watch_job.job = job;
    while (!over) {
        r = ask_on(w->watch, &m);
        if (r->type == MSG_T_error)
            fail_msg("%s", r->error.text);
        assert_int_equal(r->type, MSG_T_job_news);
        for (size_t i = 0; i < r->job_news.rows.n; i++)
            assert_int_equal(r->job_news.rows.v[i].seq, ++rows);
        if (r->job_news.state[0]) {
            json_t *o = json_loads(r->job_news.state, 0, NULL);
            assert_non_null(o);
            snprintf(state_word, sizeof state_word, "%s", text_of(o, "state"));
            assert_int_equal(json_array_size(json_object_get(o, "attempts")), 1);
            json_decref(o);
        }
        m.watch_job.since = r->job_news.last;
        m.watch_job.rev = r->job_news.rev;
        over = r->job_news.over;
        codec_free(r);
    }
    assert_int_equal(rows, 32);
    assert_string_equal(state_word, "COMPLETED");

    m = (struct msg){.type = MSG_T_watch_queue};
    r = ask_on(w->watch, &m);
    assert_int_equal(r->type, MSG_T_queue_news);
    assert_true(r->queue_news.rev > 0);
    assert_non_null(strstr(r->queue_news.text, "\"COMPLETED\""));
    codec_free(r);

    m = (struct msg){.type = MSG_T_watch_log};
    m.watch_log.job = job;
    m.watch_log.offset = 6;
    r = ask_on(w->watch, &m);
    assert_int_equal(r->type, MSG_T_chunk);
    assert_true(r->chunk.over);
    assert_memory_equal(r->chunk.bytes.data, "from rank 0\ndone\n", 17);
    codec_free(r);
}

static void refused(void **state)
{
    struct world *w = *state;
    struct msg m = submission(1, "", "{}");
    uint8_t *data;
    size_t n;
    struct msg *r;

    expect_error(w, &m, MSG_INVALID); /* no name */
    m = submission(2, "x", "[]");
    expect_error(w, &m, MSG_INVALID);
    m = submission(3, "x", "{}");
    m.submit.output_dir = "relative";
    expect_error(w, &m, MSG_INVALID);
    m = (struct msg){.type = MSG_T_watch_queue}; /* not on this socket */
    expect_error(w, &m, MSG_INVALID);
    m = (struct msg){.type = MSG_T_show};
    expect_error(w, &m, MSG_NOT_FOUND);
    m.show.job = 5;
    expect_error(w, &m, MSG_NOT_FOUND);

    assert_int_equal(wire_call(w->control, "garbage", 7, PATIENCE_MS, &data, &n), 0);
    assert_int_equal(codec_decode(data, n, &r, NULL), 0);
    assert_int_equal(r->error.code, MSG_INVALID);
    codec_free(r);
    free(data);
    /* {"v": 9, "t": 6}: a list of a version to come */
    assert_int_equal(wire_call(w->control, "\x82\xa1v\x09\xa1t\x06", 7, PATIENCE_MS, &data, &n), 0);
    assert_int_equal(codec_decode(data, n, &r, NULL), 0);
    assert_int_equal(r->error.code, MSG_VERSION);
    assert_int_equal(r->error.v_max, MSG_CLIENT_V_MAX);
    codec_free(r);
    free(data);
}

static void one_per_state(void **state)
{
    struct world *w = *state;
    const pid_t pid = spawn_daemon(w);
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    finish(w, SIGTERM);
    snprintf(w->state, sizeof w->state, "%s/%040d%040d", w->dir, 0, 0); /* 107 bytes is all */
    w->pid = spawn_daemon(w);
    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    w->pid = 0;
}

static void copy_store(struct world *w, const char *from, const char *to)
{
    char command[512];

    snprintf(command, sizeof command, "rm -f %s/alignd.db-wal %s/alignd.db-shm; cp %s/%s %s/%s",
             w->state, w->state, w->dir, from, w->dir, to);
    assert_int_equal(system(command), 0);
}

/* A store put back from before a job: its gang, which lives, is one that the store does not
 * know. It is ended, and only then are its devices given out. */
static void put_back(void **state)
{
    struct world *w = *state;
    uint64_t job;
    struct msg m = {.type = MSG_T_list}, *r;

    finish(w, SIGTERM);
    copy_store(w, "s/alignd.db", "backup.db");
    start(w);
    job = submit(w, 1, "gone", "{\"play\":{\"steps\":1,\"end\":\"stay\"}}");
    wait_for(w, job, "RUNNING", 1);
    finish(w, SIGKILL);
    copy_store(w, "backup.db", "s/alignd.db");
    start(w);
    r = ask(w, &m);
    assert_string_equal(r->json.text, "[]");
    codec_free(r);
    wait_until_gone(w, job);
    assert_int_equal(submit(w, 2, "new", "{\"play\":{\"steps\":2}}"), job);
    wait_for(w, job, "COMPLETED", 2);
    expect_rows(w, job, 4);
}

/* A record of somebody else's is none. */
static void lying(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "liar", "{\"play\":{\"steps\":2,\"end\":\"lie\"}}");
    json_t *o;

    wait_for(w, job, "COMPLETED", 2);
    o = show(w, job);
    assert_int_equal(int_of(o, "attempt"), 2);
    assert_non_null(
        strstr(text_of(json_array_get(json_object_get(o, "attempts"), 0), "error"), "exit record"));
    json_decref(o);
}

/* The supervisor ends before it takes its lock: tried again, then FAILED with its last words. */
static void unstartable(void **state)
{
    struct world *w = *state;
    const uint64_t job = submit(w, 1, "none", "{\"play\":{\"steps\":2,\"end\":\"early\"}}");
    json_t *o;

    wait_for(w, job, "FAILED", 0);
    o = show(w, job);
    assert_string_equal(text_of(o, "reason"), "JobLaunchFailure");
    assert_non_null(strstr(text_of(o, "error"), "early"));
    assert_int_equal(int_of(o, "attempt"), 3);
    json_decref(o);
}

/* The folder's sockets are deleted: bound again within 5 s; then a reload by signal. */
static void sockets_deleted(void **state)
{
    struct world *w = *state;
    struct msg m = {.type = MSG_T_list}, *r;
    char path[128];
    FILE *f;

    snprintf(path, sizeof path, "%s/alignd.json", w->state);
    f = fopen(path, "w");
    fputs("{\"log_level\": \"warn\"}", f);
    fclose(f);
    kill(w->pid, SIGHUP);
    snprintf(path, sizeof path, "%s/control.sock", w->state);
    assert_int_equal(unlink(path), 0);
    r = ask(w, &m); /* the old connection still works */
    assert_int_equal(r->type, MSG_T_json);
    codec_free(r);
    wire_hangup(w->control);
    connect_to(w);
    r = ask(w, &m);
    assert_int_equal(r->type, MSG_T_json);
    codec_free(r);
}

/* A disk that runs full: nothing is acknowledged, nothing is lost, all goes on by itself
 * when there is room. Needs a file system of its own. */
static void disk_full(void **state)
{
    struct world *w = *state;
    struct msg m = submission(9, "later", "{\"play\":{\"steps\":1}}");
    struct err err = {""};
    char filler[128];
    uint8_t *frame, *data, *reply;
    size_t bytes, n;
    ssize_t k;
    struct msg *r;
    uint64_t job;
    int fd, i;

    finish(w, SIGTERM);
    if (!own_mounts || mount("tmpfs", w->dir, "tmpfs", 0, "size=32m,mode=0700") < 0) {
        print_message("SKIP: cannot mount a small file system here\n");
        start(w);
        skip();
    }
    w->mounted = true;
    start(w);
    job = submit(w, 1, "first", "{\"play\":{\"steps\":200,\"delay_ms\":10}}");
    wait_for(w, job, "RUNNING", 2);
    snprintf(filler, sizeof filler, "%s/filler", w->dir);
    fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    data = calloc(1, 65536);
    assert_int_equal(codec_encode(&m, &frame, &bytes, &err), 0);
    for (i = 0; i < 200; i++) { /* fills what the ballast and the log leave free, too */
        while ((k = write(fd, data, 65536)) > 0 || (k = write(fd, data, 512)) > 0)
            ;
        if (wire_call(w->control, frame, bytes, 500, &reply, &n) < 0)
            break; /* not answered: a commit is being tried */
        assert_int_equal(codec_decode(reply, n, &r, &err), 0);
        free(reply);
        const bool refused = r->type == MSG_T_error && r->error.code == MSG_RETRY;
        codec_free(r);
        if (refused)
            break;
        m.submit.key = key((uint8_t)(20 + i));
        m.submit.hold = true;
        free(frame);
        assert_int_equal(codec_encode(&m, &frame, &bytes, &err), 0);
    }
    assert_true(i < 200);
    usleep(500000);
    assert_int_equal(waitpid(w->pid, NULL, WNOHANG), 0); /* it lives */
    assert_int_equal(ftruncate(fd, 0), 0);
    close(fd);
    unlink(filler);
    r = ask(w, &m); /* repeats until it is answered */
    assert_int_equal(r->type, MSG_T_submitted);
    codec_free(r);
    wait_for(w, job, "COMPLETED", 200);
    finish(w, SIGKILL);
    start(w);
    wait_for(w, job, "COMPLETED", 200);
    expect_rows(w, job, 202);
    snprintf(filler, sizeof filler, "grep -q store_ok %s/alignd.log", w->state);
    assert_int_equal(system(filler), 0); /* it was full, and said so */
    free(frame);
    free(data);
}

/* Answered first, gone then. */
static void stopped_by_request(void **state)
{
    struct world *w = *state;
    struct msg m = {.type = MSG_T_stop_daemon}, *r;
    int status;

    m.stop_daemon.key = key(9);
    r = ask(w, &m);
    assert_int_equal(r->type, MSG_T_done);
    codec_free(r);
    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    w->pid = 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_job, setup, teardown),
        cmocka_unit_test_setup_teardown(repeated, setup, teardown),
        cmocka_unit_test_setup_teardown(killed, setup, teardown),
        cmocka_unit_test_setup_teardown(away, setup, teardown),
        cmocka_unit_test_setup_teardown(vanished, setup, teardown),
        cmocka_unit_test_setup_teardown(failed, setup, teardown),
        cmocka_unit_test_setup_teardown(cancelled, setup, teardown),
        cmocka_unit_test_setup_teardown(cancelled_now, setup, teardown),
        cmocka_unit_test_setup_teardown(watched, setup, teardown),
        cmocka_unit_test_setup_teardown(refused, setup, teardown),
        cmocka_unit_test_setup_teardown(one_per_state, setup, teardown),
        cmocka_unit_test_setup_teardown(put_back, setup, teardown),
        cmocka_unit_test_setup_teardown(lying, setup, teardown),
        cmocka_unit_test_setup_teardown(unstartable, setup, teardown),
        cmocka_unit_test_setup_teardown(sockets_deleted, setup, teardown),
        cmocka_unit_test_setup_teardown(stopped_by_request, setup, teardown),
        cmocka_unit_test_setup_teardown(disk_full, setup, teardown),
    };

    /* Before there are threads: nng's must see the same mounts. */
    own_mounts =
        unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    if (argc == 2)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
