/* test_supervise.c - a supervisor and ranks that die, hang, talk too much or obey. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/proc.h"
#include "worker/folder.h"
#include "worker/gang.h"

static char base[64], gang_dir[96], out_dir[96];
static const char *program;

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int setup(void **state)
{
    (void)state;
    snprintf(base, sizeof base, "/tmp/alignd-gang-XXXXXX");
    if (!mkdtemp(base))
        return -1;
    snprintf(gang_dir, sizeof gang_dir, "%s/gang", base);
    snprintf(out_dir, sizeof out_dir, "%s/out", base);
    return mkdir(gang_dir, 0700);
}

static int teardown(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", base);
    return system(command);
}

/* Writes gang.json: acts is a JSON list, extra more keys. */
static void make_gang(const char *acts, int ranks, const char *extra)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof path, "%s/gang.json", gang_dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f,
            "{\"v\":1,\"job\":7,\"attempt\":1,\"output_dir\":\"%s\",\"device_type\":\"cpu\","
            "\"threads_per_device\":1,\"worker_url\":\"\",\"worker\":\"%s\",\"grace_ms\":1500,"
            "\"spec\":{\"acts\":%s}%s,\"devices\":[",
            out_dir, program, acts, extra);
    for (int i = 0; i < ranks; i++)
        fprintf(f, "%s\"cpu:%d\"", i ? "," : "", i);
    fprintf(f, "]}\n");
    fclose(f);
}

static pid_t start(void)
{
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        char path[128];
        snprintf(path, sizeof path, "%s/supervisor.log", base);
        const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(fd, 1);
        dup2(fd, 2);
        execl(program, program, "supervise", gang_dir, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static int wait_for(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static json_t *load(const char *dir, const char *name)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return json_load_file(path, 0, NULL);
}

static int64_t number(const json_t *o, const char *key)
{
    assert_true(json_is_number(json_object_get(o, key)));
    return json_integer_value(json_object_get(o, key));
}

static const char *string(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    assert_non_null(s);
    return s;
}

static json_t *run_to_end(const char *acts, int ranks, const char *extra)
{
    json_t *e;

    make_gang(acts, ranks, extra);
    assert_int_equal(wait_for(start()), 0);
    e = load(gang_dir, "exit.json");
    assert_non_null(e);
    assert_int_equal(number(e, "v"), 1);
    assert_int_equal(number(e, "job"), 7);
    assert_int_equal(number(e, "attempt"), 1);
    return e;
}

static void rank_end(const json_t *e, size_t rank, int code, int sig)
{
    const json_t *r = json_array_get(json_object_get(e, "ranks"), rank);

    assert_int_equal(number(r, "code"), code);
    assert_int_equal(number(r, "signal"), sig);
}

/* pids.json, once it lists that many ranks. */
static void rank_pids(pid_t *ret, size_t ranks)
{
    for (int i = 0; i < 500; i++) {
        json_t *o = load(gang_dir, "pids.json");
        const json_t *list = json_object_get(o, "ranks");
        if (json_array_size(list) == ranks) {
            for (size_t k = 0; k < ranks; k++) {
                ret[k] = (pid_t)number(json_array_get(list, k), "pid");
                assert_true(number(json_array_get(list, k), "start") > 0);
            }
            json_decref(o);
            return;
        }
        json_decref(o);
        sleep_ms(10);
    }
    fail();
}

static bool alive(pid_t pid)
{
    return proc_start(pid) != 0;
}

static void wait_steps(void)
{
    char path[160];
    struct stat st;

    snprintf(path, sizeof path, "%s/attempts/1/metrics.jsonl", out_dir);
    for (int i = 0; i < 500; i++) {
        if (stat(path, &st) == 0 && st.st_size > 500)
            return;
        sleep_ms(10);
    }
    fail();
}

static void test_done(void **state)
{
    json_t *e = run_to_end("[\"done\",\"done\"]", 2, "");

    (void)state;
    assert_int_equal(number(e, "code"), 0);
    assert_int_equal(number(e, "signal"), 0);
    assert_int_equal(number(e, "first_rank"), -1);
    assert_string_equal(string(e, "error"), "");
    assert_string_equal(string(e, "adapter"), out_dir);
    assert_int_equal(number(e, "step"), 10);
    assert_true(number(e, "peak_rss_kb") > 100);
    assert_int_equal(folder_newest_attempt(out_dir), 1);
    json_decref(e);

    /* A second supervisor of the same gang changes nothing. */
    assert_int_equal(wait_for(start()), 0);
    assert_int_equal(folder_newest_attempt(out_dir), 1);
}

static void test_first_failure(void **state)
{
    json_t *e = run_to_end("[\"peer\",\"fail\",\"peer\"]", 3, "");

    (void)state;
    assert_int_equal(number(e, "code"), 1);
    assert_int_equal(number(e, "first_rank"), 1);
    assert_string_equal(string(e, "error"), "row 7 of data.jsonl: not an object");
    rank_end(e, 0, 75, 0);
    rank_end(e, 1, 1, 0);
    json_decref(e);
}

/* 75 comes in first and is not first, because another rank failed by itself. */
static void test_peer_is_not_first(void **state)
{
    json_t *e = run_to_end("[\"early-peer\",\"fail\"]", 2, "");

    (void)state;
    assert_int_equal(number(e, "first_rank"), 1);
    assert_int_equal(number(e, "code"), 1);
    json_decref(e);
}

static void test_only_peers(void **state)
{
    json_t *e = run_to_end("[\"early-peer\",\"early-peer\"]", 2, "");

    (void)state;
    assert_int_equal(number(e, "first_rank"), 0);
    assert_int_equal(number(e, "code"), 75);
    json_decref(e);
}

static void test_crash(void **state)
{
    json_t *e = run_to_end("[\"hang\",\"crash\"]", 2, "");

    (void)state;
    assert_int_equal(number(e, "first_rank"), 1);
    assert_int_equal(number(e, "signal"), SIGABRT);
    assert_non_null(strstr(string(e, "error"), "rank 1 (cpu:1)"));
    rank_end(e, 0, 0, SIGKILL); /* did not notice, was ended after the grace time */
    json_decref(e);
}

static void test_oom_kill(void **state)
{
    json_t *e = run_to_end("[\"oom\",\"peer\"]", 2, "");

    (void)state;
    assert_int_equal(number(e, "first_rank"), 0);
    assert_int_equal(number(e, "signal"), SIGKILL);
    assert_non_null(strstr(string(e, "error"), "memory"));
    json_decref(e);
}

/* A rank stopped by SIGSTOP is silent: the gang ends and the record names it. */
static void test_silence(void **state)
{
    pid_t pids[2], supervisor;
    json_t *e;

    (void)state;
    make_gang("[\"train\",\"train\"]", 2, ",\"beat_ms\":100,\"silence_ms\":1000");
    supervisor = start();
    rank_pids(pids, 2);
    wait_steps();
    const double t0 = now();
    assert_int_equal(kill(pids[1], SIGSTOP), 0);
    assert_int_equal(wait_for(supervisor), 0);
    assert_true(now() - t0 > 0.5 && now() - t0 < 4);
    e = load(gang_dir, "exit.json");
    assert_int_equal(number(e, "first_rank"), 1);
    assert_int_equal(number(e, "signal"), SIGKILL);
    assert_non_null(strstr(string(e, "error"), "silent"));
    assert_false(alive(pids[0]) || alive(pids[1]));
    json_decref(e);
}

static bool write_file(const char *dir, const char *name, const char *text)
{
    char path[160];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "w");
    if (!f)
        return false;
    fputs(text, f);
    return fclose(f) == 0;
}

/* A rank that SIGKILL does not end (frozen, as one that hangs in the kernel): the supervisor
 * names it, leaves its record and goes, so that the daemon can see what is left. */
static void test_stuck(void **state)
{
    char freezer[96], number_text[32];
    pid_t pids[2], supervisor;
    json_t *e;

    (void)state;
    snprintf(freezer, sizeof freezer, "/sys/fs/cgroup/freezer/alignd-test-%d", (int)getpid());
    if (mkdir(freezer, 0755) < 0) {
        print_message("skipped: no freezer of control groups to write to\n");
        skip();
    }
    make_gang("[\"train\",\"train\"]", 2, ",\"beat_ms\":100,\"silence_ms\":1000");
    supervisor = start();
    rank_pids(pids, 2);
    wait_steps();
    snprintf(number_text, sizeof number_text, "%d", (int)pids[1]);
    assert_true(write_file(freezer, "cgroup.procs", number_text));
    assert_true(write_file(freezer, "freezer.state", "FROZEN"));
    const int code = wait_for(supervisor);
    const bool left = alive(pids[1]);
    e = load(gang_dir, "exit.json");
    assert_true(write_file(freezer, "freezer.state", "THAWED"));
    for (int i = 0; i < 500 && (alive(pids[1]) || rmdir(freezer) < 0); i++)
        sleep_ms(10);
    assert_int_equal(code, 0);
    assert_true(left);
    assert_false(alive(pids[0]) || alive(pids[1]));
    assert_int_equal(number(e, "first_rank"), 1);
    assert_int_equal(number(e, "signal"), SIGKILL);
    assert_non_null(strstr(string(e, "error"), "silent"));
    assert_non_null(strstr(string(e, "error"), "rank 1 (cpu:1) cannot be killed"));
    rank_end(e, 1, 0, SIGKILL);
    json_decref(e);
}

static void test_no_step(void **state)
{
    json_t *e = run_to_end("[\"still\",\"still\"]", 2, ",\"stall_ms\":700");

    (void)state;
    assert_int_equal(number(e, "first_rank"), 0);
    assert_int_equal(number(e, "signal"), SIGKILL);
    assert_non_null(strstr(string(e, "error"), "no step for"));
    json_decref(e);
}

static void test_supervisor_killed(void **state)
{
    pid_t pids[2], supervisor;
    json_t *e;

    (void)state;
    make_gang("[\"train\",\"train\"]", 2, "");
    supervisor = start();
    rank_pids(pids, 2);
    wait_steps();
    assert_int_equal(wait_for(start()), 4); /* the lock is held */
    assert_true(alive(pids[0]) && alive(pids[1]));
    kill(supervisor, SIGKILL);
    assert_int_equal(wait_for(supervisor), -SIGKILL);
    for (int i = 0; i < 200 && (alive(pids[0]) || alive(pids[1])); i++)
        sleep_ms(10);
    assert_false(alive(pids[0]) || alive(pids[1]));
    e = load(gang_dir, "exit.json");
    assert_null(e);
    assert_int_equal(wait_for(start()), 0); /* never starts the ranks a second time */
    e = load(gang_dir, "exit.json");
    assert_int_equal(number(e, "code"), 1);
    assert_int_equal(json_array_size(json_object_get(e, "ranks")), 0);
    json_decref(e);
}

/* Told to the supervisor, all ranks stop. */
static void test_stop(void **state)
{
    pid_t pids[4], supervisor;
    json_t *e;

    (void)state;
    make_gang("[\"train\",\"train\",\"train\",\"train\"]", 4, "");
    supervisor = start();
    rank_pids(pids, 4);
    wait_steps();
    assert_int_equal(kill(supervisor, SIGTERM), 0);
    assert_int_equal(wait_for(supervisor), 0);
    e = load(gang_dir, "exit.json");
    assert_int_equal(number(e, "code"), 85);
    assert_int_equal(number(e, "first_rank"), -1);
    for (size_t i = 0; i < 4; i++)
        rank_end(e, i, 85, 0);
    json_decref(e);
}

static void test_meeting(void **state)
{
    json_t *e = run_to_end("[\"meet\",\"meet\",\"meet\"]", 3, "");

    (void)state;
    for (size_t i = 0; i < 3; i++)
        rank_end(e, i, 0, 0);
    json_decref(e);
}

static void test_log_cap(void **state)
{
    json_t *e = run_to_end("[\"chat\"]", 1, "");
    char path[160], tail[200];
    struct stat st;

    (void)state;
    assert_int_equal(number(e, "code"), 0);
    snprintf(path, sizeof path, "%s/attempts/1/rank-0.log", out_dir);
    assert_int_equal(stat(path, &st), 0);
    assert_in_range(st.st_size, GANG_LOG_CUT, LIMIT_LOG_BYTES);
    const int fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, tail, 62, st.st_size - 62), 62);
    close(fd);
    tail[62] = '\0';
    assert_non_null(strstr(tail, "this log is full"));
    json_decref(e);
}

static void test_used_folder(void **state)
{
    json_t *e;
    struct err err;

    (void)state;
    assert_int_equal(folder_make_attempt(out_dir, 1, false, &err), 0);
    e = run_to_end("[\"done\"]", 1, "");
    assert_int_equal(number(e, "code"), 1);
    assert_non_null(strstr(string(e, "error"), "--overwrite"));
    assert_non_null(strstr(string(e, "error"), "{id}"));
    json_decref(e);

    char path[128];
    snprintf(path, sizeof path, "%s/exit.json", gang_dir);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/notes.txt", out_dir); /* not ours: stays */
    fclose(fopen(path, "w"));
    e = run_to_end("[\"done\"]", 1, ",\"overwrite\":true");
    assert_int_equal(number(e, "code"), 0);
    assert_int_equal(access(path, F_OK), 0);
    json_decref(e);
}

static void test_fence(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(folder_make_attempt(out_dir, 1, false, &err), 0);
    assert_int_equal(folder_make_attempt(out_dir, 1, false, &err), -EEXIST);
    assert_int_equal(folder_make_attempt(out_dir, 1, true, &err), 0);
    assert_int_equal(folder_make_attempt(out_dir, 10, false, &err), 0);
    assert_int_equal(folder_make_attempt(out_dir, 9, false, &err), -ESTALE);
    assert_int_equal(folder_newest_attempt(out_dir), 10);
    assert_int_equal(folder_newest_checkpoint(out_dir), -1);
    char path[160];
    snprintf(path, sizeof path, "%s/checkpoint-50", out_dir);
    assert_int_equal(symlink("attempts/1/checkpoint-50", path), 0);
    assert_int_equal(folder_newest_checkpoint(out_dir), 50);
}

static void test_bad_gang(void **state)
{
    static const char *const bad[] = {"", "[]", "{}", "{\"v\":1}", "\x80", "{\"v\":2,\"job\":1}"};
    char path[128];

    (void)state;
    assert_int_equal(wait_for(start()), 3); /* no gang.json */
    snprintf(path, sizeof path, "%s/gang.json", gang_dir);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        FILE *f = fopen(path, "w");
        fputs(bad[i], f);
        fclose(f);
        assert_int_equal(wait_for(start()), 3);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_done, setup, teardown),
        cmocka_unit_test_setup_teardown(test_first_failure, setup, teardown),
        cmocka_unit_test_setup_teardown(test_peer_is_not_first, setup, teardown),
        cmocka_unit_test_setup_teardown(test_only_peers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_crash, setup, teardown),
        cmocka_unit_test_setup_teardown(test_oom_kill, setup, teardown),
        cmocka_unit_test_setup_teardown(test_silence, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stuck, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_step, setup, teardown),
        cmocka_unit_test_setup_teardown(test_supervisor_killed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_meeting, setup, teardown),
        cmocka_unit_test_setup_teardown(test_log_cap, setup, teardown),
        cmocka_unit_test_setup_teardown(test_used_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fence, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_gang, setup, teardown),
    };

    if (argc != 2)
        return 2;
    program = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
