/* play_supervisor.c - a supervisor without ranks: speaks the worker's dialect as the job's
 * spec tells it to ({"play": {"steps": 3, "delay_ms": 10, "end": "done"}}).
 *
 * Called as alignd calls align-worker: play_supervisor supervise GANGDIR, token on
 * descriptor 3. meet: in which order values are put and wanted around a gate (a file at-N of ours,
 * after which the test does what it likes until it makes go-N). load_ms, eval_ms, complete_ms: how
 * long it is in these phases. end: done, early (before it takes its lock), fail, vanish (dies
 * without a record), lie (a record of another job), stay (waits for an order). `play_supervisor
 * devices` prints $PLAY_DEVICES. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "proto/codec.h"
#include "proto/wire.h"

struct play {
    json_t *gang;
    uint64_t job, attempt;
    struct msg_token token;
    struct wire_client *wire;
    long long steps, delay_ms, first;
    const char *end;
};

static int quit(const char *why)
{
    fprintf(stderr, "play_supervisor: %s\n", why);
    _exit(3);
}

/* One request, one reply, for as long as it takes. Never returns an error: FENCED ends us. */
static struct msg *ask(struct play *p, struct msg *m)
{
    struct msg_w_rdv_get *who = &m->w_rdv_get; /* every w_ message begins like this */
    struct err err = {""};
    uint8_t *frame, *data;
    size_t bytes, n;
    struct msg *reply;

    who->job = p->job;
    who->attempt = p->attempt;
    who->token = p->token;
    if (codec_encode(m, &frame, &bytes, &err) < 0)
        quit(err.text);
    for (;;) {
        if (wire_call(p->wire, frame, bytes, -1, &data, &n) < 0)
            quit("call");
        if (codec_decode(data, n, &reply, &err) < 0)
            quit(err.text);
        free(data);
        if (reply->type != MSG_T_error)
            break;
        if (reply->error.code != MSG_RETRY && reply->error.code != MSG_BUSY)
            quit(reply->error.text);
        usleep(50000);
        codec_free(reply);
    }
    free(frame);
    return reply;
}

static long long play_int(const struct play *p, const char *key, long long otherwise)
{
    const json_t *play = json_object_get(json_object_get(p->gang, "spec"), "play");
    const json_t *v = json_object_get(play, key);

    return json_is_integer(v) ? json_integer_value(v) : otherwise;
}

static const char *play_text(const struct play *p, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(json_object_get(p->gang, "spec"), "play"), key));
}

/* For measuring: "clock" puts the time of sending into the row, in microseconds. */
static int64_t wall_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void lock_folder(void)
{
    const int fd = open("lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    for (int i = 0; i < 200; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return;
        usleep(5000);
    }
    _exit(0);
}

static void write_pids(void)
{
    char stat[1024] = "", boot[64] = "", *q;
    unsigned long long start = 0;
    FILE *f = fopen("/proc/self/stat", "r");

    if (!f || !fgets(stat, sizeof stat, f))
        quit("stat");
    fclose(f);
    q = strrchr(stat, ')') + 2;
    for (int i = 3; i < 22; i++)
        q = strchr(q, ' ') + 1;
    start = strtoull(q, NULL, 10);
    f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!f || !fgets(boot, sizeof boot, f))
        quit("boot_id");
    fclose(f);
    boot[strcspn(boot, "\n")] = 0;
    f = fopen("pids.json.part", "w");
    fprintf(f,
            "{\"v\":1,\"boot_id\":\"%s\",\"supervisor\":{\"pid\":%d,\"start\":%llu},\"ranks\":[]}",
            boot, (int)getpid(), start);
    fclose(f);
    if (rename("pids.json.part", "pids.json") < 0)
        quit("pids.json");
}

static void report(struct play *p, uint64_t n, enum msg_kind kind, int64_t step, double loss,
                   enum msg_phase phase)
{
    static const char *const names[] = {"loss", "grad_norm"};
    const double values[] = {loss, 1.0 / (double)(step + 1)};
    const struct msg_row row = {.n = n,
                                .attempt = (uint32_t)p->attempt,
                                .kind = kind,
                                .step = step,
                                .wall_ms = play_int(p, "clock", 0) ? wall_us() : 1000 + (int64_t)n,
                                .n_values = kind == MSG_ROW_START ? 0 : 2,
                                .names = names,
                                .values = values};
    struct msg m = {.type = MSG_T_w_report};

    m.w_report.first_n = n;
    m.w_report.rows = (struct msg_rows){&row, 1};
    m.w_report.phase = phase;
    m.w_report.step = step;
    m.w_report.steps = p->steps;
    struct msg *ack = ask(p, &m);
    if (ack->w_ack.next_n != n + 1)
        quit("next_n");
    codec_free(ack);
}

/* Only a beat. */
static void beat(struct play *p, enum msg_phase phase, int64_t step, long long ms)
{
    struct msg m = {.type = MSG_T_w_report};

    if (ms == 0)
        return;
    m.w_report.phase = phase;
    m.w_report.step = step;
    m.w_report.steps = p->steps;
    codec_free(ask(p, &m));
    usleep((useconds_t)ms * 1000);
}

/* Puts a value, stays away for a while, and wants it back. */
static void meet(struct play *p, long long ms)
{
    static const char value[] = "where\0I am";
    struct msg put = {.type = MSG_T_w_rdv_put}, get = {.type = MSG_T_w_rdv_get};
    struct msg *v;

    put.w_rdv_put.name = "rank0";
    put.w_rdv_put.value = (struct msg_bin){value, sizeof value};
    codec_free(ask(p, &put));
    beat(p, MSG_PHASE_LOADING, 0, ms);
    get.w_rdv_get.name = "rank0";
    v = ask(p, &get);
    if (!v->w_value.found || v->w_value.value.bytes != sizeof value ||
        memcmp(v->w_value.value.data, value, sizeof value) != 0)
        quit("the value is not what was put");
    codec_free(v);
    codec_free(ask(p, &put)); /* the same again is fine */
    if (play_int(p, "alone", 0) == 0)
        return;
    get.w_rdv_get.name = "rank1";
    v = ask(p, &get); /* held, then answered with "not there" */
    if (v->w_value.found)
        quit("a value nobody put");
    codec_free(v);
}

/* Stops at the gate until the test opens it. */
static void gate(int n)
{
    char name[32];
    FILE *f;

    snprintf(name, sizeof name, "at-%d", n);
    f = fopen(name, "w");
    if (!f || fclose(f) != 0)
        quit(name);
    snprintf(name, sizeof name, "go-%d", n);
    for (int i = 0; access(name, F_OK) < 0; i++) {
        if (i == 30000)
            quit("nobody opened the gate");
        usleep(2000);
    }
}

static struct msg want(const char *name)
{
    struct msg m = {.type = MSG_T_w_rdv_get};

    m.w_rdv_get.name = name;
    return m;
}

static struct msg bring(const char *name, const char *value)
{
    struct msg m = {.type = MSG_T_w_rdv_put};

    m.w_rdv_put.name = name;
    m.w_rdv_put.value = (struct msg_bin){value, strlen(value)};
    return m;
}

static void expect_value(struct msg *v, const char *value)
{
    if (v->type != MSG_T_w_value || !v->w_value.found || v->w_value.value.bytes != strlen(value) ||
        memcmp(v->w_value.value.data, value, strlen(value)) != 0)
        quit("the value is not what was put");
    codec_free(v);
}

/* The other order: the value is wanted, and the request held, before it is there. */
static void want_first(struct play *p)
{
    struct msg get = want("late"), put = bring("late", "after the kill");
    struct wire_call *k;
    uint8_t *frame, *data;
    size_t bytes, n;
    struct msg *v;
    int r;

    get.w_rdv_get.job = p->job;
    get.w_rdv_get.attempt = p->attempt;
    get.w_rdv_get.token = p->token;
    if (codec_encode(&get, &frame, &bytes, NULL) < 0 ||
        wire_call_new(p->wire, NULL, NULL, &k) < 0 || wire_call_start(k, frame, bytes, -1) < 0)
        quit("get");
    beat(p, MSG_PHASE_LOADING, 0, 100); /* answered after the daemon has heard the get */
    gate(1);
    codec_free(ask(p, &put));
    while ((r = wire_call_take(k, &data, &n)) == -EAGAIN)
        usleep(2000);
    if (r < 0 || codec_decode(data, n, &v, NULL) < 0)
        quit("the held get");
    expect_value(v, "after the kill");
    free(data);
    free(frame);
    wire_call_free(k);
}

static void meet_in_order(struct play *p, const char *order)
{
    struct msg put = bring("first", "before the kill"), get = want("first");
    struct msg other = bring("first", "another value");

    if (!strcmp(order, "get-kill-put")) {
        want_first(p);
        return;
    }
    if (!strcmp(order, "put-kill-get"))
        codec_free(ask(p, &put));
    gate(1);
    if (!strcmp(order, "kill-put-get"))
        codec_free(ask(p, &put));
    expect_value(ask(p, &get), "before the kill");
    codec_free(ask(p, &put)); /* the same again is fine */
    gate(2);
    codec_free(ask(p, &other)); /* ends us: the name is taken */
}

static void say(struct play *p, uint64_t *offset, const char *text)
{
    struct msg m = {.type = MSG_T_w_log};

    m.w_log.offset = *offset;
    m.w_log.bytes = (struct msg_bin){text, strlen(text)};
    struct msg *ack = ask(p, &m);
    *offset = ack->w_log_ack.offset;
    codec_free(ack);
}

static uint64_t order(struct play *p)
{
    struct msg m = {.type = MSG_T_w_directive};
    struct msg *o = ask(p, &m);
    const uint64_t flags = o->w_order.flags;

    codec_free(o);
    return flags;
}

static void write_text(const char *name, const char *text)
{
    FILE *f = fopen(name, "w");

    if (!f || fputs(text, f) < 0 || fclose(f) != 0)
        quit(name);
}

static void finish(struct play *p, int code, int64_t step, const char *error)
{
    struct msg m = {.type = MSG_T_w_exit};
    char text[1024];

    snprintf(text, sizeof text,
             "{\"v\":1,\"job\":%llu,\"attempt\":%llu,\"code\":%d,\"signal\":0,\"first_rank\":%d,"
             "\"error\":\"%s\",\"step\":%lld,\"peak_rss_kb\":1,\"user_s\":0,\"system_s\":0,"
             "\"wall_s\":0,\"adapter\":\"/a/b\",\"ranks\":[]}",
             (unsigned long long)p->job, (unsigned long long)p->attempt, code, code ? 0 : -1, error,
             (long long)step);
    write_text("exit.json.part", text);
    if (rename("exit.json.part", "exit.json") < 0)
        quit("exit.json");
    m.w_exit.record = text;
    codec_free(ask(p, &m));
    _exit(code);
}

static void read_gang(struct play *p)
{
    json_error_t je;

    p->gang = json_load_file("gang.json", 0, &je);
    if (!p->gang)
        quit(je.text);
    p->job = (uint64_t)json_integer_value(json_object_get(p->gang, "job"));
    p->attempt = (uint64_t)json_integer_value(json_object_get(p->gang, "attempt"));
    p->steps = play_int(p, "steps", 3);
    p->delay_ms = play_int(p, "delay_ms", 0);
    p->end = play_text(p, "end");
    if (!p->end || (p->attempt > 1 && strcmp(p->end, "early") != 0))
        p->end = "done";
    p->first = p->attempt > 1 ? play_int(p, "resume", 0) : 0;
}

static void open_play(struct play *p)
{
    struct err err = {""};
    struct msg m = {.type = MSG_T_w_hello};

    if (wire_dial(json_string_value(json_object_get(p->gang, "worker_url")), WIRE_WAIT, &p->wire,
                  &err) < 0)
        quit(err.text);
    m.w_hello.v_min = MSG_WORKER_V_MIN;
    m.w_hello.v_max = MSG_WORKER_V_MAX;
    m.w_hello.pid = (uint64_t)getpid();
    m.w_hello.build = "play";
    struct msg *w = ask(p, &m);
    if (w->w_welcome.next_n != 1)
        quit("hello: reports of mine are known");
    codec_free(w);
}

int main(int argc, char **argv)
{
    struct play p = {0};
    uint64_t offset = 0, n = 1;

    if (argc == 2 && strcmp(argv[1], "devices") == 0 && getenv("PLAY_DEVICES"))
        return puts(getenv("PLAY_DEVICES")) < 0;
    if (argc != 3 || strcmp(argv[1], "supervise") != 0 || chdir(argv[2]) < 0)
        return 2;
    if (read(3, p.token.b, sizeof p.token.b) != sizeof p.token.b)
        quit("no token on descriptor 3");
    close(3);
    read_gang(&p);
    if (!strcmp(p.end, "early"))
        quit("early, as told");
    lock_folder();
    write_pids();
    open_play(&p);
    say(&p, &offset, "hello from rank 0\n");
    if (play_int(&p, "meet_ms", 0) > 0)
        meet(&p, play_int(&p, "meet_ms", 0));
    if (p.attempt == 1 && play_text(&p, "meet"))
        meet_in_order(&p, play_text(&p, "meet"));
    beat(&p, MSG_PHASE_LOADING, 0, play_int(&p, "load_ms", 0));
    report(&p, n++, MSG_ROW_START, p.first, 0, MSG_PHASE_TRAINING);
    for (long long s = p.first + 1; s <= p.steps; s++) {
        usleep((useconds_t)p.delay_ms * 1000);
        report(&p, n++, MSG_ROW_TRAIN, s, 1.0 / (double)s, MSG_PHASE_TRAINING);
    }
    beat(&p, MSG_PHASE_EVALUATING, p.steps, play_int(&p, "eval_ms", 0));
    if (!strcmp(p.end, "lie"))
        write_text("exit.json", "{\"v\":1,\"job\":99}");
    if (!strcmp(p.end, "vanish") || !strcmp(p.end, "lie"))
        raise(SIGKILL);
    if (!strcmp(p.end, "stay")) {
        while (!(order(&p) & MSG_ORDER_STOP))
            ;
        say(&p, &offset, "stopped\n");
        finish(&p, 85, p.steps, "");
    }
    if (!strcmp(p.end, "fail"))
        finish(&p, 1, p.steps, "row 7 of data.jsonl has no chosen");
    report(&p, n++, MSG_ROW_SUMMARY, p.steps, 0.5, MSG_PHASE_DONE);
    say(&p, &offset, "done\n");
    usleep((useconds_t)play_int(&p, "complete_ms", 0) * 1000);
    finish(&p, 0, p.steps, "");
    return 0;
}
