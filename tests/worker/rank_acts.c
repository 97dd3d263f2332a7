/* rank_acts.c - a program that supervises a gang whose ranks it also is: each rank does
 * what the gang's "spec" tells it. For test_supervise.c and the tests of the daemon.
 *
 * rank_acts supervise DIR [TOKENFD]   or, started by the supervisor: rank_acts rank R PID */
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker/child.h"
#include "worker/run.h"
#include "worker/spool.h"
#include "worker/supervise.h"

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* Steps until told to stop, or `steps` are done. Rank 0 writes the spool. */
static int act_train(struct link *l, const struct gang *g, int rank, int64_t steps)
{
    struct spool *s = NULL;
    char dir[LIMIT_PATH];
    struct err err;

    snprintf(dir, sizeof dir, "%s/attempts/%u", g->output_dir, g->attempt);
    if (rank == 0 && spool_create(dir, g->attempt, &s, &err) < 0)
        return RUN_EXIT_ERROR;
    for (int64_t i = 0; i <= steps; i++) {
        struct spool_row row = {.kind = i ? SPOOL_TRAIN : SPOOL_START, .global_step = i};
        if (s && i) {
            row.n_values = 1;
            row.values[0] = (struct spool_value){"loss", 1.0 / (double)i};
        }
        if (s && spool_append(s, &row, &err) < 0)
            return RUN_EXIT_ERROR;
        link_progress(l, LINK_TRAINING, i, steps);
        if (link_flags(l) & LINK_STOP) {
            printf("rank %d stops\n", rank);
            spool_close(s);
            return RUN_EXIT_STOPPED;
        }
        sleep_ms(5);
    }
    spool_close(s);
    link_progress(l, LINK_DONE, steps, steps);
    return RUN_EXIT_DONE;
}

static int act_meet(struct link *l, int rank, int ranks)
{
    struct coll_store s = link_store(l);
    char key[32], value[32], want[32];
    size_t n;

    snprintf(key, sizeof key, "key/%d", rank);
    snprintf(value, sizeof value, "value of %d", rank);
    sleep_ms(50 * rank);
    if (s.put(s.arg, key, value, strlen(value)) < 0 || s.put(s.arg, key, value, strlen(value)) < 0)
        return 10;
    if (s.put(s.arg, key, "x", 1) == 0) /* another value: refused */
        return 11;
    for (int i = 0; i < ranks; i++) {
        snprintf(key, sizeof key, "key/%d", i);
        snprintf(want, sizeof want, "value of %d", i);
        if (s.get(s.arg, key, value, sizeof value, &n, 20000) < 0 || n != strlen(want) ||
            memcmp(value, want, n) != 0)
            return 12;
    }
    return s.get(s.arg, "never", value, sizeof value, &n, 200) == -ETIMEDOUT ? 0 : 13;
}

static int act_chat(void)
{
    static char line[256 << 10];

    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (int i = 0; i < 300; i++) /* 75 MiB in lines of 256 KiB */
        if (fwrite(line, 1, sizeof line, stdout) != sizeof line)
            return 1;
    fflush(stdout);
    sleep_ms(300);
    printf("after the end\n");
    return 0;
}

static int act(const char *what, struct link *l, const struct gang *g, int rank)
{
    if (strcmp(what, "done") == 0)
        return act_train(l, g, rank, 10);
    if (strcmp(what, "train") == 0)
        return act_train(l, g, rank, 4000);
    if (strcmp(what, "meet") == 0)
        return act_meet(l, rank, g->n_devices);
    if (strcmp(what, "chat") == 0)
        return act_chat();
    if (strcmp(what, "fail") == 0) {
        sleep_ms(100);
        link_error(l, "row 7 of data.jsonl: not an object");
        return RUN_EXIT_ERROR;
    }
    if (strcmp(what, "peer") == 0) { /* sees the failed one vanish */
        sleep_ms(150);
        link_error(l, "a peer is gone");
        return RUN_EXIT_PEER;
    }
    if (strcmp(what, "early-peer") == 0)
        return RUN_EXIT_PEER;
    if (strcmp(what, "crash") == 0)
        return raise(SIGABRT);
    if (strcmp(what, "oom") == 0)
        return kill(getpid(), SIGKILL);
    if (strcmp(what, "still") == 0) /* beats, and makes no step */
        link_progress(l, LINK_TRAINING, 3, 10);
    sleep_ms(60000);
    return 0;
}

static int rank_main(int rank, pid_t supervisor)
{
    struct gang *g = NULL;
    struct link *l = NULL;
    struct err err;
    json_t *spec;
    int r;

    if (child_begin(supervisor) < 0 || gang_read(CHILD_GANG_FD, &g, &err) < 0 ||
        link_open(CHILD_LINK_FD, &l) < 0)
        return 2;
    link_signals(l);
    link_beat_every(l, g->beat_ms);
    spec = json_loads(g->spec, 0, NULL);
    r = act(json_string_value(json_array_get(json_object_get(spec, "acts"), (size_t)rank)), l, g,
            rank);
    json_decref(spec);
    link_close(l);
    gang_free(g);
    return r;
}

static void on_row(void *arg, const struct spool_row *row, int64_t steps)
{
    (void)arg;
    (void)steps;
    printf("row %llu step %lld\n", (unsigned long long)row->n, (long long)row->global_step);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct supervise_opts o = {.token_fd = -1, .lock_fd = -1};
    struct gang_exit e;
    struct err err = {""};
    int r;

    if (argc == 4 && strcmp(argv[1], "rank") == 0)
        return rank_main((int)strtol(argv[2], NULL, 10), (pid_t)strtol(argv[3], NULL, 10));
    if (argc < 3 || strcmp(argv[1], "supervise") != 0)
        return 2;
    o.dir = argv[2];
    if (argc > 3)
        o.token_fd = (int)strtol(argv[3], NULL, 10);
    else
        o.row = on_row;
    r = supervise_gang(&o, &e, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    return r < 0 ? 3 : r == 1 ? 4 : 0;
}
