/* test_alignd.c - the real daemon in a folder of its own, spoken to through the codec; its
 * worker is play_supervisor. */
#include "tests/support/test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon/world.h"

static bool own_mounts; /* what is mounted here, nobody else sees */

/* ---- tests ---- */

static void a_job(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "one", "{\"play\":{\"steps\":3}}");
    json_t *o;

    assert_int_equal(job, 1);
    world_wait_for(w, job, "COMPLETED", 3);
    world_expect_rows(w, job, 5);
    world_expect_log(w, job, "hello from rank 0\ndone\n");
    o = world_show(w, job);
    assert_string_equal(world_text_of(o, "output_dir"), "/nowhere/one-1");
    assert_string_equal(world_text_of(o, "adapter"), "/a/b");
    assert_int_equal(world_int_of(o, "attempt"), 1);
    assert_int_equal(json_array_size(json_object_get(o, "attempts")), 1);
    assert_string_equal(world_text_of(json_array_get(json_object_get(o, "attempts"), 0), "build"),
                        "play");
    json_decref(o);
    world_wait_until_gone(w, job);
}

/* The same request again: the same answer, also after a kill; others are told apart. */
static void repeated(void **state)
{
    struct world *w = *state;
    struct msg m = world_submission(7, "again", "{\"play\":{\"steps\":1}}"), *r;

    assert_int_equal(world_submit(w, 7, "again", "{\"play\":{\"steps\":1}}"), 1);
    assert_int_equal(world_submit(w, 7, "again", "{\"play\":{\"steps\":1}}"), 1);
    m.submit.priority = 5;
    world_expect_error(w, &m, MSG_CONFLICT);
    world_finish(w, SIGKILL);
    world_start(w);
    assert_int_equal(world_submit(w, 7, "again", "{\"play\":{\"steps\":1}}"), 1);
    assert_int_equal(world_submit(w, 8, "next", "{\"play\":{\"steps\":1}}"), 2);
    m = (struct msg){.type = MSG_T_list};
    r = world_ask(w, &m);
    json_t *list = json_loads(r->json.text, 0, NULL);
    assert_int_equal(json_array_size(list), 2);
    json_decref(list);
    codec_free(r);
}

/* kill -9 in the middle of a run: the gang trains on and is adopted. */
static void killed(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "long", "{\"play\":{\"steps\":150,\"delay_ms\":20}}");
    json_t *o;

    for (int i = 0; i < 5; i++) {
        world_wait_for(w, job, "RUNNING", 5 + 8 * i);
        world_finish(w, SIGKILL);
        world_start(w);
    }
    world_wait_for(w, job, "COMPLETED", 150);
    o = world_show(w, job);
    assert_int_equal(world_int_of(o, "attempt"), 1);
    json_decref(o);
    world_expect_rows(w, job, 152);
    world_expect_log(w, job, "hello from rank 0\ndone\n");
}

/* A kill between rdv_put and rdv_get: the value is there. */
static void meeting(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "meet", "{\"play\":{\"steps\":1,\"meet_ms\":600}}");

    world_wait_for(w, job, "CONFIGURING", 0);
    usleep(300000);
    world_finish(w, SIGKILL);
    world_start(w);
    world_wait_for(w, job, "COMPLETED", 1);
}

/* SIGTERM: the daemon goes, the gang stays and ends while nobody listens. */
static void away(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "away", "{\"play\":{\"steps\":10,\"delay_ms\":20}}");
    int status;

    world_wait_for(w, job, "RUNNING", 2);
    status = world_finish(w, SIGTERM);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    usleep(300000);
    world_start(w);
    world_wait_for(w, job, "COMPLETED", 10);
    world_expect_rows(w, job, 12);
}

/* Gone without a record: once more by itself, from where it can resume; then rewound. */
static void vanished(void **state)
{
    struct world *w = *state;
    const uint64_t job =
        world_submit(w, 1, "lost", "{\"play\":{\"steps\":6,\"resume\":4,\"end\":\"vanish\"}}");
    struct msg *r;
    json_t *o;

    world_wait_for(w, job, "COMPLETED", 6);
    o = world_show(w, job);
    assert_int_equal(world_int_of(o, "attempt"), 2);
    assert_string_equal(world_text_of(json_array_get(json_object_get(o, "attempts"), 0), "state"),
                        "NODE_FAIL");
    json_decref(o);
    r = world_metrics(w, job, true); /* start 1..6, rewind, start 5 6 summary */
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
    const uint64_t job = world_submit(w, 1, "bad", "{\"play\":{\"steps\":1,\"end\":\"fail\"}}");
    json_t *o;

    world_wait_for(w, job, "FAILED", 1);
    o = world_show(w, job);
    assert_non_null(strstr(world_text_of(o, "error"), "row 7"));
    assert_int_equal(world_int_of(o, "exit_code"), 1);
    assert_int_equal(world_int_of(o, "first_rank"), 0);
    json_decref(o);
}

static void cancelled(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "stay", "{\"play\":{\"steps\":1,\"end\":\"stay\"}}");
    struct msg m = {.type = MSG_T_cancel}, *r;

    world_wait_for(w, job, "RUNNING", 1);
    m.cancel = (struct msg_cancel){.key = world_key(2), .job = job};
    for (int i = 0; i < 2; i++) {
        r = world_ask(w, &m);
        assert_int_equal(r->type, MSG_T_done);
        codec_free(r);
    }
    world_wait_for(w, job, "CANCELLED", 1);
    world_expect_log(w, job, "hello from rank 0\nstopped\n");
    m.cancel.key = world_key(3);
    m.cancel.job = 99;
    world_expect_error(w, &m, MSG_NOT_FOUND);

    m = (struct msg){.type = MSG_T_resume};
    m.resume = (struct msg_resume){.key = world_key(4), .job = job};
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_done);
    codec_free(r);
    world_wait_for(w, job, "COMPLETED", 1);
}

static void cancelled_now(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "stay", "{\"play\":{\"steps\":1,\"end\":\"stay\"}}");
    struct msg m = {.type = MSG_T_cancel}, *r;

    world_wait_for(w, job, "RUNNING", 1);
    m.cancel = (struct msg_cancel){.key = world_key(2), .job = job, .now = true};
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_done);
    codec_free(r);
    world_wait_for(w, job, "CANCELLED", 1);
    world_wait_until_gone(w, job);
}

/* The newest attempt's step is the job's, also while it runs. */
static void expect_step(const json_t *o)
{
    const json_t *attempts = json_object_get(o, "attempts");
    const json_t *newest = json_array_get(attempts, json_array_size(attempts) - 1);

    assert_int_equal(world_int_of(newest, "step"), world_int_of(o, "step"));
}

/* A late watcher sees every row from the start, then live ones, then the end. */
static void watched(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "seen", "{\"play\":{\"steps\":30,\"delay_ms\":10}}");
    struct msg m = {.type = MSG_T_watch_job}, *r;
    uint64_t rows = 0;
    bool over = false;
    char state_word[64] = "";

    world_wait_for(w, job, "RUNNING", 3);
    json_t *shown = world_show(w, job);
    assert_true(world_int_of(shown, "step") >= 3);
    expect_step(shown);
    json_decref(shown);
    world_wait_until_gone(w, 999); /* learns the watch socket's address */
    assert_int_equal(wire_dial(w->watch_url, 0, &w->watch, NULL), 0);
    m.watch_job.job = job;
    while (!over) {
        r = world_ask_on(w->watch, &m);
        if (r->type == MSG_T_error)
            fail_msg("%s", r->error.text);
        assert_int_equal(r->type, MSG_T_job_news);
        for (size_t i = 0; i < r->job_news.rows.n; i++)
            assert_int_equal(r->job_news.rows.v[i].seq, ++rows);
        if (r->job_news.state[0]) {
            json_t *o = json_loads(r->job_news.state, 0, NULL);
            assert_non_null(o);
            snprintf(state_word, sizeof state_word, "%s", world_text_of(o, "state"));
            assert_int_equal(json_array_size(json_object_get(o, "attempts")), 1);
            expect_step(o);
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
    r = world_ask_on(w->watch, &m);
    assert_int_equal(r->type, MSG_T_queue_news);
    assert_true(r->queue_news.rev > 0);
    assert_non_null(strstr(r->queue_news.text, "\"COMPLETED\""));
    codec_free(r);

    m = (struct msg){.type = MSG_T_watch_log};
    m.watch_log.job = job;
    m.watch_log.offset = 6;
    r = world_ask_on(w->watch, &m);
    assert_int_equal(r->type, MSG_T_chunk);
    assert_true(r->chunk.over);
    assert_memory_equal(r->chunk.bytes.data, "from rank 0\ndone\n", 17);
    codec_free(r);
}

static void refused(void **state)
{
    struct world *w = *state;
    struct msg m = world_submission(1, "", "{}");
    uint8_t *data;
    size_t n;
    struct msg *r;

    world_expect_error(w, &m, MSG_INVALID); /* no name */
    m = world_submission(2, "x", "[]");
    world_expect_error(w, &m, MSG_INVALID);
    m = world_submission(3, "x", "{}");
    m.submit.output_dir = "relative";
    world_expect_error(w, &m, MSG_INVALID);
    m = (struct msg){.type = MSG_T_watch_queue}; /* not on this socket */
    world_expect_error(w, &m, MSG_INVALID);
    m = (struct msg){.type = MSG_T_show};
    world_expect_error(w, &m, MSG_NOT_FOUND);
    m.show.job = 5;
    world_expect_error(w, &m, MSG_NOT_FOUND);

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
    const pid_t pid = world_spawn_daemon(w);
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    world_finish(w, SIGTERM);
    snprintf(w->state, sizeof w->state, "%s/%040d%040d", w->dir, 0, 0); /* 107 bytes is all */
    w->pid = world_spawn_daemon(w);
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

    world_finish(w, SIGTERM);
    copy_store(w, "s/alignd.db", "backup.db");
    world_start(w);
    job = world_submit(w, 1, "gone", "{\"play\":{\"steps\":1,\"end\":\"stay\"}}");
    world_wait_for(w, job, "RUNNING", 1);
    world_finish(w, SIGKILL);
    copy_store(w, "backup.db", "s/alignd.db");
    world_start(w);
    r = world_ask(w, &m);
    assert_string_equal(r->json.text, "[]");
    codec_free(r);
    world_wait_until_gone(w, job);
    assert_int_equal(world_submit(w, 2, "new", "{\"play\":{\"steps\":2}}"), job);
    world_wait_for(w, job, "COMPLETED", 2);
    world_expect_rows(w, job, 4);
}

/* A record of somebody else's is none. */
static void lying(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "liar", "{\"play\":{\"steps\":2,\"end\":\"lie\"}}");
    json_t *o;

    world_wait_for(w, job, "COMPLETED", 2);
    o = world_show(w, job);
    assert_int_equal(world_int_of(o, "attempt"), 2);
    assert_non_null(strstr(
        world_text_of(json_array_get(json_object_get(o, "attempts"), 0), "error"), "exit record"));
    json_decref(o);
}

/* The supervisor ends before it takes its lock: tried again, then FAILED with its last words. */
static void unstartable(void **state)
{
    struct world *w = *state;
    const uint64_t job = world_submit(w, 1, "none", "{\"play\":{\"steps\":2,\"end\":\"early\"}}");
    json_t *o;

    world_wait_for(w, job, "FAILED", 0);
    o = world_show(w, job);
    assert_string_equal(world_text_of(o, "reason"), "JobLaunchFailure");
    assert_non_null(strstr(world_text_of(o, "error"), "early"));
    assert_int_equal(world_int_of(o, "attempt"), 3);
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
    r = world_ask(w, &m); /* the old connection still works */
    assert_int_equal(r->type, MSG_T_json);
    codec_free(r);
    wire_hangup(w->control);
    world_connect_to(w);
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_json);
    codec_free(r);
}

/* A disk that runs full: nothing is acknowledged, nothing is lost, all goes on by itself
 * when there is room. Needs a file system of its own. */
static void disk_full(void **state)
{
    struct world *w = *state;
    struct msg m = world_submission(9, "later", "{\"play\":{\"steps\":1}}");
    struct err err = {""};
    char filler[128];
    uint8_t *frame, *data, *reply;
    size_t bytes, n;
    ssize_t k;
    struct msg *r;
    uint64_t job;
    int fd, i;

    world_finish(w, SIGTERM);
    if (!own_mounts || mount("tmpfs", w->dir, "tmpfs", 0, "size=32m,mode=0700") < 0) {
        print_message("SKIP: cannot mount a small file system here\n");
        world_start(w);
        skip();
    }
    w->mounted = true;
    world_start(w);
    job = world_submit(w, 1, "first", "{\"play\":{\"steps\":200,\"delay_ms\":10}}");
    world_wait_for(w, job, "RUNNING", 2);
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
        m.submit.key = world_key((uint8_t)(20 + i));
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
    r = world_ask(w, &m); /* repeats until it is answered */
    assert_int_equal(r->type, MSG_T_submitted);
    codec_free(r);
    world_wait_for(w, job, "COMPLETED", 200);
    world_finish(w, SIGKILL);
    world_start(w);
    world_wait_for(w, job, "COMPLETED", 200);
    world_expect_rows(w, job, 202);
    snprintf(filler, sizeof filler, "grep -q store_ok %s/alignd.log", w->state);
    assert_int_equal(system(filler), 0); /* it was full, and said so */
    free(frame);
    free(data);
}

/* Two alignds on one machine: what the one's gang has is foreign to the other, until the
 * gang is gone. */
static void neighbours(void **state)
{
    struct world *a = *state, b = {0};
    struct msg m = world_submission(1, "wide", "{\"play\":{\"steps\":1,\"end\":\"stay\"}}"), *r;
    uint64_t job;
    json_t *o;

    m.submit.devices = 4;
    r = world_ask(a, &m);
    assert_int_equal(r->type, MSG_T_submitted);
    job = r->submitted.job;
    codec_free(r);
    world_wait_for(a, job, "RUNNING", 1);
    snprintf(b.dir, sizeof b.dir, "%s", a->dir);
    snprintf(b.state, sizeof b.state, "%s/b", a->dir);
    snprintf(b.devices, sizeof b.devices, "%s", a->devices);
    world_start(&b);
    m = (struct msg){.type = MSG_T_devices};
    r = world_ask(&b, &m);
    assert_non_null(strstr(r->json.text, "\"FOREIGN\""));
    assert_null(strstr(r->json.text, "\"FREE\""));
    codec_free(r);
    assert_int_equal(world_submit(&b, 1, "waits", "{\"play\":{\"steps\":1}}"), 1);
    o = world_show(&b, 1);
    assert_string_equal(world_text_of(o, "state"), "PENDING");
    assert_string_equal(world_text_of(o, "reason"), "DevicesForeign");
    json_decref(o);
    m = (struct msg){.type = MSG_T_cancel};
    m.cancel = (struct msg_cancel){.key = world_key(2), .job = job, .now = true};
    codec_free(world_ask(a, &m));
    world_wait_for(&b, 1, "COMPLETED", 1);
    world_finish(&b, SIGTERM);
    wire_hangup(b.control);
}

static size_t entries(const char *path)
{
    DIR *d = opendir(path);
    size_t n = 0;

    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* Many jobs leave no descriptors and no folders behind. */
static void many(void **state)
{
    struct world *w = *state;
    char fds[64], gangs[192];
    size_t before = 0;

    snprintf(fds, sizeof fds, "/proc/%d/fd", (int)w->pid);
    snprintf(gangs, sizeof gangs, "%s/gangs", w->state);
    for (uint8_t i = 1; i <= 40; i++) {
        (void)world_submit(w, i, "many", "{\"play\":{\"steps\":1}}");
        if (i != 5)
            continue;
        for (uint64_t job = 1; job <= 5; job++)
            world_wait_for(w, job, "COMPLETED", 1);
        before = entries(fds);
    }
    for (uint64_t job = 1; job <= 40; job++)
        world_wait_for(w, job, "COMPLETED", 1);
    for (int i = 0; i < PATIENCE_MS / 10 && entries(gangs) > 2; i++)
        usleep(10000);
    assert_int_equal(entries(gangs), 2);
    /* supervisors' connections may still be closing, readers still be opened */
    for (int i = 0; i < PATIENCE_MS / 10 && entries(fds) > before + 8; i++)
        usleep(10000);
    assert_true(entries(fds) <= before + 8);
}

/* Answered first, gone then. */
static void stopped_by_request(void **state)
{
    struct world *w = *state;
    struct msg m = {.type = MSG_T_stop_daemon}, *r;
    int status;

    m.stop_daemon.key = world_key(9);
    r = world_ask(w, &m);
    assert_int_equal(r->type, MSG_T_done);
    codec_free(r);
    assert_int_equal(waitpid(w->pid, &status, 0), w->pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    w->pid = 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_job, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(repeated, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(killed, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(meeting, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(away, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(vanished, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(failed, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(cancelled, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(cancelled_now, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(watched, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(refused, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(one_per_state, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(neighbours, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(many, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(put_back, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(lying, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(unstartable, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(sockets_deleted, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(stopped_by_request, world_setup, world_teardown),
        cmocka_unit_test_setup_teardown(disk_full, world_setup, world_teardown),
    };

    /* Before there are threads: nng's must see the same mounts. */
    own_mounts =
        unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
    if (argc == 2)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
