/* test_launch.c - gang folders as the launcher finds them: alive, ended, lying, torn. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/launch.h"

struct world {
    char base[64], folder[160];
    struct launch l;
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);

    snprintf(w->base, sizeof w->base, "/tmp/alignd-launch-XXXXXX");
    assert_non_null(mkdtemp(w->base));
    snprintf(w->l.gangs_dir, sizeof w->l.gangs_dir, "%s/gangs", w->base);
    snprintf(w->l.devices_dir, sizeof w->l.devices_dir, "%s/devices", w->base);
    snprintf(w->l.worker, sizeof w->l.worker, "/bin/true");
    snprintf(w->l.worker_url, sizeof w->l.worker_url, "ipc://%s/worker.sock", w->base);
    snprintf(w->l.store8, sizeof w->l.store8, "0123abcd");
    snprintf(w->folder, sizeof w->folder, "%s/alignd-0123abcd-7-2", w->l.gangs_dir);
    assert_int_equal(mkdir(w->l.gangs_dir, 0700), 0);
    assert_int_equal(mkdir(w->l.devices_dir, 0700), 0);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    char command[128];

    snprintf(command, sizeof command, "rm -rf %s", w->base);
    assert_int_equal(system(command), 0);
    free(w);
    return 0;
}

static void put(struct world *w, const char *name, const char *text)
{
    char path[256];
    FILE *f;

    mkdir(w->folder, 0700);
    snprintf(path, sizeof path, "%s/%s", w->folder, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static enum launch_state look(struct world *w, struct launch_look *ret)
{
    launch_look(&w->l, 7, 2, ret);
    return ret->state;
}

static int start(struct world *w, const char *resolved, pid_t *ret_pid, struct err *err)
{
    static const char *const devices[] = {"cpu:0", "cpu:1"};
    const struct launch_gang g = {.job = 7,
                                  .attempt = 2,
                                  .output_dir = "/out/\"quoted\"",
                                  .device_type = "cpu",
                                  .devices = devices,
                                  .n_devices = 2,
                                  .threads_per_device = 3,
                                  .user_spec = "{\"a\":1}",
                                  .resolved_spec = resolved};
    int pidfd = -1, r = launch_start(&w->l, &g, ret_pid, &pidfd, err);

    if (pidfd >= 0)
        close(pidfd);
    return r;
}

static const char record[] =
    "{\"v\":1,\"job\":7,\"attempt\":2,\"code\":1,\"signal\":0,\"first_rank\":0,"
    "\"error\":\"why\",\"step\":5,\"peak_rss_kb\":9,\"adapter\":\"/x\"}";

/* ---- tests ---- */

static void states(void **state)
{
    struct world *w = *state;
    struct launch_look l;
    char path[256];
    int fd;

    assert_int_equal(look(w, &l), LAUNCH_ABSENT);
    put(w, "gang.json", "{\"devices\":[\"cpu:0\",5,\"cpu:1\"]}");
    put(w, "supervisor.log", "first\nlast words\n\n");
    assert_int_equal(look(w, &l), LAUNCH_ABSENT);
    assert_string_equal(l.why, "last words");
    assert_int_equal(l.n_devices, 2);
    assert_string_equal(l.devices[1], "cpu:1");
    put(w, "lock", "");
    assert_int_equal(look(w, &l), LAUNCH_LOST);
    snprintf(path, sizeof path, "%s/lock", w->folder);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_int_equal(look(w, &l), LAUNCH_ALIVE);
    assert_int_equal(l.supervisor, 0);
    close(fd);
    put(w, "exit.json", record);
    assert_int_equal(look(w, &l), LAUNCH_EXITED);
    assert_int_equal(l.record.exit.code, 1);
    assert_string_equal(l.record.exit.error, "why");
    assert_string_equal(l.record.exit.adapter, "/x");
    for (size_t n = 0; n < strlen(record); n++) { /* cut short anywhere */
        char cut[sizeof record];
        snprintf(cut, sizeof cut, "%.*s", (int)n, record);
        put(w, "exit.json", cut);
        assert_int_equal(look(w, &l), LAUNCH_LOST);
    }
    snprintf(path, sizeof path, "%s/exit.json", w->folder);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0); /* must not wait for a writer */
    assert_int_equal(look(w, &l), LAUNCH_LOST);
    launch_forget(&w->l, 7, 2);
    assert_int_equal(look(w, &l), LAUNCH_ABSENT);
    assert_int_equal(access(w->folder, F_OK), -1);
}

static void records(void **state)
{
    static const struct {
        const char *text;
        bool good;
    } all[] = {
        {record, true},
        {"{\"v\":1,\"job\":8,\"attempt\":2,\"code\":0,\"signal\":0,\"first_rank\":-1,\"step\":1,"
         "\"peak_rss_kb\":0}",
         false},
        {"{\"v\":1,\"job\":7,\"attempt\":1,\"code\":0,\"signal\":0,\"first_rank\":-1,\"step\":1,"
         "\"peak_rss_kb\":0}",
         false},
        {"{\"v\":2,\"job\":7,\"attempt\":2,\"code\":0,\"signal\":0,\"first_rank\":-1,\"step\":1,"
         "\"peak_rss_kb\":0,\"later\":{}}",
         true},
        {"{\"v\":1,\"job\":7,\"attempt\":2,\"code\":256,\"signal\":0,\"first_rank\":-1,\"step\":1,"
         "\"peak_rss_kb\":0}",
         false},
        {"{\"v\":1,\"job\":7,\"attempt\":2,\"code\":0,\"signal\":0,\"first_rank\":64,\"step\":1,"
         "\"peak_rss_kb\":0}",
         false},
        {"{\"v\":1,\"job\":7,\"attempt\":2,\"code\":0,\"signal\":0,\"first_rank\":0,\"step\":1.5,"
         "\"peak_rss_kb\":0}",
         false},
        {"{\"v\":1,\"job\":7,\"job\":7,\"attempt\":2,\"code\":0,\"signal\":0,\"first_rank\":0,"
         "\"step\":1,\"peak_rss_kb\":0}",
         false},
        {"{\"v\":1,\"job\":7,\"attempt\":2,\"code\":0,\"signal\":0,\"first_rank\":0,\"step\":1,"
         "\"peak_rss_kb\":0,\"error\":[]}",
         false},
        {"[]", false},
        {"", false},
        {"null", false},
    };
    struct exit_record x;
    struct err err;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        err.text[0] = 0;
        const int r = exit_record_parse(all[i].text, strlen(all[i].text), 7, 2, &x, &err);
        assert_int_equal(r, all[i].good ? 0 : -EBADMSG);
        assert_int_equal(err.text[0] != 0, !all[i].good);
    }
}

static void started(void **state)
{
    struct world *w = *state;
    struct err err = {""};
    struct launch_look l;
    char path[256], text[4096] = "";
    int status, fd;
    pid_t pid;

    assert_int_equal(start(w, "{\"r\":[1,2]}", &pid, &err), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(look(w, &l), LAUNCH_ABSENT); /* `true` takes no lock */
    snprintf(path, sizeof path, "%s/gang.json", w->folder);
    fd = open(path, O_RDONLY);
    assert_true(read(fd, text, sizeof text - 1) > 0);
    close(fd);
    assert_non_null(strstr(text, "\"spec\":{\"r\":[1,2]}"));
    assert_non_null(strstr(text, "\"output_dir\":\"/out/\\\"quoted\\\"\""));
    assert_non_null(strstr(text, "\"threads_per_device\":3"));

    /* A spec that would end its object and add a key of its own is no JSON object. */
    assert_int_equal(start(w, "{\"r\":1},\"output_dir\":\"/etc\",\"x\":{}", &pid, &err), -EINVAL);
    assert_int_equal(start(w, "[1]", &pid, &err), -EINVAL);
    assert_int_equal(start(w, "{\"r\":1,\"r\":2}", &pid, &err), -EINVAL);

    snprintf(w->l.worker, sizeof w->l.worker, "%s/no-such-program", w->base);
    assert_int_equal(start(w, "{}", &pid, &err), -ENOENT);
    assert_non_null(strstr(err.text, "no-such-program"));
}

static void busy_device(void **state)
{
    struct world *w = *state;
    struct err err = {""};
    char path[256];
    pid_t pid;
    int fd;

    snprintf(path, sizeof path, "%s/cpu:1.lock", w->l.devices_dir);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    assert_int_equal(start(w, "{}", &pid, &err), -EBUSY);
    assert_non_null(strstr(err.text, "cpu:1"));
    close(fd);
}

/* The gang's processes hold its devices until the last one is gone. */
static void inherited_locks(void **state)
{
    struct world *w = *state;
    struct err err = {""};
    char script[128];
    pid_t pid;
    FILE *f;

    snprintf(script, sizeof script, "%s/worker", w->base);
    f = fopen(script, "w");
    /* a token of 32 bytes on 3, then wait to be killed */
    fputs("#!/bin/sh\nhead -c 32 <&3 | wc -c > token\nexec sleep 1000\n", f);
    fclose(f);
    chmod(script, 0700);
    snprintf(w->l.worker, sizeof w->l.worker, "%s", script);
    assert_int_equal(start(w, "{}", &pid, &err), 0);
    assert_int_equal(start(w, "{}", &pid, &err), -EBUSY);
    for (int i = 0; i < 500; i++) {
        char path[256], text[16] = "";
        snprintf(path, sizeof path, "%s/token", w->folder);
        f = fopen(path, "r");
        if (f && fgets(text, sizeof text, f) && atoll(text) == 32) {
            fclose(f);
            break;
        }
        if (f)
            fclose(f);
        assert_true(i < 499);
        usleep(10000);
    }
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    snprintf(w->l.worker, sizeof w->l.worker, "/bin/true");
    assert_int_equal(start(w, "{}", &pid, &err), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static unsigned long long start_time(pid_t pid)
{
    char path[64], text[1024] = "", *p;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    f = fopen(path, "r");
    assert_non_null(fgets(text, sizeof text, f));
    fclose(f);
    p = strrchr(text, ')') + 2;
    for (int i = 3; i < 22; i++)
        p = strchr(p, ' ') + 1;
    return strtoull(p, NULL, 10);
}

static void put_pids(struct world *w, pid_t pid, unsigned long long begun, const char *boot)
{
    char text[256], now[64] = "";
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");

    assert_non_null(fgets(now, sizeof now, f));
    fclose(f);
    now[strcspn(now, "\n")] = 0;
    snprintf(text, sizeof text,
             "{\"v\":1,\"boot_id\":\"%s\",\"supervisor\":{\"pid\":1,\"start\":5},"
             "\"ranks\":[{\"pid\":%d,\"start\":%llu},{\"pid\":-1,\"start\":0},7]}",
             boot ? boot : now, (int)pid, begun);
    put(w, "pids.json", text);
}

/* Ranks that outlived their supervisor are ended; a process that only has the number
 * of one is left alone. */
static void left_behind(void **state)
{
    struct world *w = *state;
    struct launch_look l;
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        execl("/bin/sleep", "sleep", "1000", (char *)NULL);
        _exit(1);
    }
    usleep(20000);
    put(w, "lock", "");
    put_pids(w, pid, start_time(pid) + 1, NULL);
    assert_int_equal(look(w, &l), LAUNCH_LOST);
    put_pids(w, pid, start_time(pid), "11111111-2222-3333-4444-555555555555");
    assert_int_equal(look(w, &l), LAUNCH_LOST);
    assert_int_equal(launch_kill(&w->l, 7, 2), -ESRCH);
    assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
    put_pids(w, pid, start_time(pid), NULL);
    assert_int_equal(look(w, &l), LAUNCH_ALIVE);
    assert_int_equal(l.ranks_left, 1);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(look(w, &l), LAUNCH_LOST);
}

static void count(void *arg, uint64_t job, uint32_t attempt)
{
    int *n = arg;

    *n += (int)(job * 100 + attempt);
}

static void scanned(void **state)
{
    static const char *const names[] = {"alignd-0123abcd-7-2",  "alignd-0123abcd-8-1",
                                        "alignd-ffffffff-9-1",  "alignd-0123abcd-7-2x",
                                        "alignd-0123abcd-7",    "other",
                                        "alignd-0123abcd--1-1x"};
    struct world *w = *state;
    int n = 0;

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", w->l.gangs_dir, names[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    assert_int_equal(launch_scan(&w->l, count, &n), 0);
    assert_int_equal(n, 702 + 801);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(states, setup, teardown),
        cmocka_unit_test(records),
        cmocka_unit_test_setup_teardown(started, setup, teardown),
        cmocka_unit_test_setup_teardown(busy_device, setup, teardown),
        cmocka_unit_test_setup_teardown(inherited_locks, setup, teardown),
        cmocka_unit_test_setup_teardown(left_behind, setup, teardown),
        cmocka_unit_test_setup_teardown(scanned, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
