/* bench_daemon.c - how fast alignd acknowledges, shows and holds: one client, one request at
 * a time; beside what the disk itself can do, measured in the same run. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/codec.h"
#include "proto/wire.h"

extern char **environ;

enum { SYNCS = 500, SUBMITS = 1000, QUEUED = 10000, ROWS = 300, SPEC_BYTES = 1024 };

struct world {
    char dir[64], state[96], devices[96], url[160], watch_url[160];
    pid_t pid;
    struct wire_client *control, *watch;
};

static int quit(const char *why)
{
    fprintf(stderr, "bench_daemon: %s\n", why);
    exit(1);
}

static double seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int64_t wall_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double percentile(double *v, size_t n, double p)
{
    qsort(v, n, sizeof *v, by_value);
    return v[(size_t)((double)(n - 1) * p)];
}

/* 4 KiB written and fdatasync'ed, one at a time: into a file that is there already, as
 * a log that is used again, or at the end of one that grows. */
static void disk(const char *dir, bool grow, double *ret_rate, double *ret_p99)
{
    static double took[SYNCS];
    char path[128], block[4096] = "x";
    double begin;
    int fd;

    snprintf(path, sizeof path, "%s/sync", dir);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0)
        quit("open");
    for (int i = 0; i < SYNCS && !grow; i++)
        if (write(fd, block, sizeof block) != sizeof block)
            quit("write");
    if (fsync(fd) < 0 || lseek(fd, 0, SEEK_SET) < 0)
        quit("fsync");
    begin = seconds();
    for (int i = 0; i < SYNCS; i++) {
        const double t = seconds();
        if (write(fd, block, sizeof block) != sizeof block || fdatasync(fd) < 0)
            quit("fdatasync");
        took[i] = seconds() - t;
    }
    *ret_rate = SYNCS / (seconds() - begin);
    *ret_p99 = percentile(took, SYNCS, 0.99);
    close(fd);
    unlink(path);
}

static struct msg *ask(struct wire_client *c, const struct msg *m)
{
    struct err err = {""};
    uint8_t *frame, *data;
    size_t bytes, n;
    struct msg *reply;

    if (codec_encode(m, &frame, &bytes, &err) < 0)
        quit(err.text);
    if (wire_call(c, frame, bytes, 60000, &data, &n) < 0)
        quit("no answer");
    if (codec_decode(data, n, &reply, &err) < 0)
        quit(err.text);
    if (reply->type == MSG_T_error)
        quit(reply->error.text);
    free(frame);
    free(data);
    return reply;
}

static void up(struct world *w)
{
    char *argv[] = {getenv("ALIGND"), "--user",   "--state",  w->state,
                    "--cpu-slots",    "1",        "--worker", getenv("PLAY_SUPERVISOR"),
                    "--devices-dir",  w->devices, NULL};
    struct msg m = {.type = MSG_T_hello}, *r;

    if (!argv[0] || posix_spawn(&w->pid, argv[0], NULL, NULL, argv, environ) != 0)
        quit("ALIGND and PLAY_SUPERVISOR must name the programs");
    snprintf(w->url, sizeof w->url, "ipc://%s/control.sock", w->state);
    for (int i = 0; wire_dial(w->url, 0, &w->control, NULL) < 0; i++) {
        if (i == 1000)
            quit("alignd does not come up");
        usleep(10000);
    }
    m.hello.v_min = m.hello.v_max = MSG_CLIENT_V_MAX;
    r = ask(w->control, &m);
    snprintf(w->watch_url, sizeof w->watch_url, "%s", r->welcome.watch_url);
    codec_free(r);
    if (wire_dial(w->watch_url, 0, &w->watch, NULL) < 0)
        quit("watch socket");
}

static uint64_t submit(struct world *w, uint32_t n, const char *spec, bool hold)
{
    struct msg m = {.type = MSG_T_submit}, *r;
    char dir[64];
    uint64_t job;

    snprintf(dir, sizeof dir, "/nowhere/%u", n);
    m.submit = (struct msg_submit){.name = "bench",
                                   .user_spec = "{}",
                                   .resolved = spec,
                                   .output_dir = dir,
                                   .method = "dpo",
                                   .device_type = "cpu",
                                   .devices = 1,
                                   .hold = hold};
    memcpy(m.submit.key.b, &n, sizeof n);
    r = ask(w->control, &m);
    job = r->submitted.job;
    codec_free(r);
    return job;
}

static long rss_kb(pid_t pid)
{
    char path[64], line[256];
    long kb = 0;
    FILE *f;

    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmRSS: %ld", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb;
}

/* play_supervisor puts the time at which it sends a row into wall_ms, in us. */
static double watch_p99(struct world *w, uint64_t job, size_t *ret_n, double *ret_p50)
{
    static double took[ROWS + 8];
    struct msg m = {.type = MSG_T_watch_job};
    bool over = false;
    size_t n = 0;

    m.watch_job.job = job;
    while (!over) {
        struct msg *r = ask(w->watch, &m);
        const int64_t now = wall_us();
        for (size_t i = 0; i < r->job_news.rows.n && n < ROWS; i++)
            if (r->job_news.rows.v[i].kind == MSG_ROW_TRAIN)
                took[n++] = (double)(now - r->job_news.rows.v[i].wall_ms) * 1e-6;
        m.watch_job.since = r->job_news.last;
        m.watch_job.rev = r->job_news.rev;
        over = r->job_news.over;
        codec_free(r);
    }
    *ret_n = n;
    *ret_p50 = percentile(took, n, 0.5);
    return percentile(took, n, 0.99);
}

static int verdict(const char *what, bool good)
{
    printf("%-6s %s\n", good ? "ok" : "MISSED", what);
    return good ? 0 : 1;
}

int main(void)
{
    struct world w = {0};
    char spec[SPEC_BYTES + 1], command[128];
    double rate, sync_p99, grow_rate, grow_p99, begin, p50, submits, want, p99, queue_s;
    uint32_t id = 1;
    size_t n;
    long kb;
    int bad = 0;

    snprintf(w.dir, sizeof w.dir, "/tmp/alignd-bench-XXXXXX");
    if (!mkdtemp(w.dir))
        quit("mkdtemp");
    snprintf(w.state, sizeof w.state, "%s/s", w.dir);
    snprintf(w.devices, sizeof w.devices, "%s/devices", w.dir);
    disk(w.dir, true, &grow_rate, &grow_p99);
    disk(w.dir, false, &rate, &sync_p99);
    up(&w);

    p99 = watch_p99(
        &w, submit(&w, id++, "{\"play\":{\"steps\":300,\"delay_ms\":5,\"clock\":1}}", false), &n,
        &p50);
    snprintf(spec, sizeof spec, "{\"x\":\"%0*d\"}", SPEC_BYTES - 8, 0);
    begin = seconds();
    for (int i = 0; i < SUBMITS; i++)
        submit(&w, id++, spec, true);
    submits = SUBMITS / (seconds() - begin);
    for (int i = SUBMITS; i < QUEUED; i++)
        submit(&w, id++, spec, true);
    kb = rss_kb(w.pid);
    begin = seconds();
    codec_free(ask(w.watch, &(struct msg){.type = MSG_T_watch_queue}));
    queue_s = seconds() - begin;

    want = rate / 4 < 800 ? rate / 4 : 800;
    printf(
        "disk: 4 KiB write + fdatasync in place %.0f/s, p99 %.2f ms; growing %.0f/s, p99 %.2f ms\n",
        rate, sync_p99 * 1e3, grow_rate, grow_p99 * 1e3);
    printf("durable submits, one client, one at a time, 1 KiB specs: %.0f/s (bar %.0f)\n", submits,
           want);
    printf("report to watcher: p50 %.2f ms, p99 %.2f ms over %zu rows (bar %.2f)\n", p50 * 1e3,
           p99 * 1e3, n, (sync_p99 + 5e-3 > 10e-3 ? sync_p99 + 5e-3 : 10e-3) * 1e3);
    printf("memory with %d queued jobs: %ld kB (bar 20480); a first page of the queue: %.1f ms\n",
           QUEUED, kb, queue_s * 1e3);
    bad += verdict("submits", submits >= want);
    bad += verdict("report to watcher", p99 < (sync_p99 + 5e-3 > 10e-3 ? sync_p99 + 5e-3 : 10e-3));
    bad += verdict("memory", kb > 0 && kb < 20480);
    kill(w.pid, SIGTERM);
    waitpid(w.pid, NULL, 0);
    snprintf(command, sizeof command, "rm -rf %s", w.dir);
    if (system(command) != 0)
        bad++;
    return bad != 0;
}
