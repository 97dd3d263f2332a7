/* test_verbs.c - alignctl itself, against nobody and against a scripted daemon: exit
 * codes, what is asked and printed, watching through a pipe and in a terminal. */
#include "tests/support/test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/cli.h"
#include "proto/buf.h"
#include "proto/codec.h"
#include "proto/wire.h"

extern char **environ;

static char dir[64], host[128], watch_url[128];
static const char *alignctl;

/* ---- a daemon that follows a script ---- */

struct script {
    struct wire_server *control, *watch;
    pthread_t thread;
    sem_t wake;
    volatile bool stop;
    /* what it shall do */
    uint64_t version_error; /* hello is answered with VERSION  */
    uint64_t code;          /* every other request: this error */
    unsigned retries;       /* so many RETRY before an answer  */
    int rows_until_over;    /* watch_job: a row per answer; -1: never over */
    const char *end_state;
    /* what it saw */
    unsigned asked[64];
    struct msg_key key[8];
    unsigned n_keys;
    int row;
};

static void on_wake(void *arg)
{
    (void)sem_post(&((struct script *)arg)->wake);
}

static void reply(struct wire_req *r, const struct msg *m)
{
    uint8_t *out;
    size_t n;
    struct err err;
    if (codec_encode(m, &out, &n, &err) < 0) {
        print_message("script: %s\n", err.text);
        abort();
    }
    wire_reply(r, out, n);
    free(out);
}

#define JOB_TEXT(state, extra)                                                                     \
    "{\"job\":7,\"rev\":1,\"name\":\"n\",\"user\":\"u\",\"uid\":1,\"method\":\"dpo\",\"state\":"   \
    "\"" state                                                                                     \
    "\",\"reason\":\"None\",\"reason_text\":\"\",\"attempt\":1,\"phase\":\"training\",\"step\":3," \
    "\"steps\":5,\"loss\":0.5,\"devices\":2,\"device_type\":\"cpu\",\"device_names\":[\"cpu:0\"]," \
    "\"submitted_ms\":1,\"started_ms\":1000,\"ended_ms\":2000,\"output_dir\":\"/out\","            \
    "\"exit_code\":1,\"exit_signal\":0,\"first_rank\":1,\"error\":\"" extra                        \
    "\",\"adapter\":\"/out/ad\"}"

static void answer_watch(struct script *s, struct wire_req *r)
{
    static const char *const names[] = {"loss", "rewards/margins"};
    double values[] = {0.6, 0.1};
    s->row++;
    struct msg_row row = {.seq = (uint64_t)s->row,
                          .attempt = 1,
                          .n = (uint64_t)s->row,
                          .step = s->row,
                          .wall_ms = s->row * 1000,
                          .kind = MSG_ROW_TRAIN,
                          .n_values = 2,
                          .names = names,
                          .values = values};
    bool over = s->rows_until_over >= 0 && s->row >= s->rows_until_over;
    const char *running = JOB_TEXT("RUNNING", "");
    const char *end = strcmp(s->end_state, "FAILED") == 0 ? JOB_TEXT("FAILED", "rank 1: boom")
                                                          : JOB_TEXT("COMPLETED", "");
    struct msg m = {.type = MSG_T_job_news,
                    .job_news = {.job = 7,
                                 .rev = (uint64_t)s->row,
                                 .state = over ? end : running,
                                 .rows = {&row, 1},
                                 .last = (uint64_t)s->row,
                                 .over = over}};
    struct timespec t = {0, 20000000};
    (void)nanosleep(&t, NULL);
    reply(r, &m);
}

static void answer_error(struct wire_req *r, uint64_t code)
{
    struct msg m = {
        .type = MSG_T_error,
        .error = {.code = code, .text = "so it is", .v_min = 5, .v_max = 9, .retry_ms = 60}};
    reply(r, &m);
}

static void answer(struct script *s, struct wire_req *r)
{
    struct msg *q = NULL, m = {0};
    size_t n;
    const void *data = wire_data(r, &n);
    struct err err;
    if (codec_decode(data, n, &q, &err) < 0)
        abort();
    s->asked[q->type]++;
    if (q->type == MSG_T_submit && s->n_keys < 8)
        s->key[s->n_keys++] = q->submit.key;
    if (q->type == MSG_T_hello && !s->version_error) {
        m = (struct msg){.type = MSG_T_welcome,
                         .welcome = {.version = 1,
                                     .v_min = 1,
                                     .v_max = 1,
                                     .store = "abc",
                                     .watch_url = watch_url,
                                     .worker_url = "ipc:///none",
                                     .uid = 1,
                                     .build = "test"}};
        reply(r, &m);
    } else if (q->type == MSG_T_hello) {
        answer_error(r, MSG_VERSION);
    } else if (s->code) {
        answer_error(r, s->code);
    } else if (s->retries) {
        s->retries--;
        answer_error(r, MSG_RETRY);
    } else if (q->type == MSG_T_watch_job) {
        answer_watch(s, r);
    } else {
        static const char output[] = "first line\nlast line\n";
        switch ((int)codec_reply(q->type)) {
        case MSG_T_submitted:
            m = (struct msg){.type = MSG_T_submitted,
                             .submitted = {.job = 7, .output_dir = "/o/7"}};
            break;
        case MSG_T_json:
            m = (struct msg){.type = MSG_T_json};
            m.json.text = q->type == MSG_T_show ? JOB_TEXT("RUNNING", "")
                          : q->type == MSG_T_devices
                              ? "[{\"device\":\"cpu:0\",\"type\":\"cpu\","
                                "\"state\":\"FREE\",\"job\":0,\"note\":\"\"},"
                                "{\"device\":\"GPU-8f3aabcd-1111\",\"type\":\"gpu\","
                                "\"name\":\"NVIDIA H100\",\"state\":\"USED\",\"job\":7,"
                                "\"user\":\"ann\",\"memory_used\":53687091200,"
                                "\"memory_total\":85899345920,\"utilisation\":98,"
                                "\"temperature\":71,\"reason\":\"it is warm\","
                                "\"note\":\"drained\"}]"
                              : "[" JOB_TEXT("RUNNING", "") "]";
            break;
        case MSG_T_chunk:
            m = (struct msg){.type = MSG_T_chunk,
                             .chunk = {.attempt = 1,
                                       .bytes = {output, sizeof output - 1},
                                       .size = sizeof output - 1,
                                       .over = true}};
            break;
        case MSG_T_page:
            m = (struct msg){.type = MSG_T_page};
            break;
        default:
            m = (struct msg){.type = MSG_T_done,
                             .done = {.job = 7, .state = "x", .text = "so be it"}};
            break;
        }
        reply(r, &m);
    }
    codec_free(q);
}

static void *serve(void *arg)
{
    struct script *s = arg;
    while (!s->stop) {
        struct wire_req *r;
        (void)sem_wait(&s->wake);
        for (int more = 1; more;) {
            more = 0;
            struct wire_server *both[] = {s->control, s->watch};
            for (int i = 0; i < 2; i++) {
                if ((r = wire_take(both[i]))) {
                    answer(s, r);
                    more = 1;
                }
            }
        }
    }
    return NULL;
}

static void script_start(struct script *s)
{
    struct err err = {""};
    s->row = 0;
    s->stop = false;
    if (!s->end_state)
        s->end_state = "COMPLETED";
    (void)sem_init(&s->wake, 0, 0);
    struct wire_listen o = {.url = host,
                            .mode = 0600,
                            .contexts = 16,
                            .per_pipe = 8,
                            .busy = "",
                            .wake = on_wake,
                            .arg = s};
    if (wire_listen(&o, &s->control, &err) < 0)
        fail_msg("%s", err.text);
    o.url = watch_url;
    if (wire_listen(&o, &s->watch, &err) < 0)
        fail_msg("%s", err.text);
    (void)pthread_create(&s->thread, NULL, serve, s);
}

static void script_stop(struct script *s)
{
    s->stop = true;
    (void)sem_post(&s->wake);
    (void)pthread_join(s->thread, NULL);
    wire_close(s->control);
    wire_close(s->watch);
    (void)sem_destroy(&s->wake);
}

/* ---- running alignctl ---- */

struct out {
    int code;
    char text[65536]; /* standard output and standard error */
};

static pid_t start(const char *const *args, int in, int out)
{
    const char *argv[32] = {alignctl};
    int n = 1;
    pid_t pid;
    posix_spawn_file_actions_t act;
    while (args[n - 1]) {
        argv[n] = args[n - 1];
        n++;
    }
    (void)posix_spawn_file_actions_init(&act);
    if (in >= 0)
        (void)posix_spawn_file_actions_adddup2(&act, in, 0);
    (void)posix_spawn_file_actions_adddup2(&act, out, 1);
    (void)posix_spawn_file_actions_adddup2(&act, out, 2);
    assert_int_equal(posix_spawn(&pid, alignctl, &act, NULL, (char *const *)argv, environ), 0);
    (void)posix_spawn_file_actions_destroy(&act);
    return pid;
}

static int reap(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void run(struct out *o, const char *const *args)
{
    int p[2];
    size_t n = 0;
    ssize_t k;
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    pid_t pid = start(args, -1, p[1]);
    (void)close(p[1]);
    while (n < sizeof o->text - 1 && (k = read(p[0], o->text + n, sizeof o->text - 1 - n)) > 0)
        n += (size_t)k;
    o->text[n] = '\0';
    (void)close(p[0]);
    o->code = reap(pid);
}

#define RUN(o, ...) run(o, (const char *const[]){__VA_ARGS__, NULL})
#define EXPECT(o, c, says)                                                                 \
    do {                                                                                   \
        if ((o)->code != (c) || !strstr((o)->text, says))                                  \
            fail_msg("code %d, wanted %d and \"%s\":\n%s", (o)->code, c, says, (o)->text); \
    } while (0)

static void job_file(char *path, size_t room)
{
    char text[512];
    (void)snprintf(path, room, "%s/m", dir);
    (void)mkdir(path, 0700);
    (void)snprintf(path, room, "%s/m/config.json", dir);
    FILE *f = fopen(path, "w");
    (void)fputs("{}", f);
    (void)fclose(f);
    (void)snprintf(path, room, "%s/job.yaml", dir);
    (void)snprintf(text, sizeof text,
                   "method: dpo\nmodel_name_or_path: m\ntrain: [{path: d}]\noutput_dir: %s/out\n",
                   dir);
    f = fopen(path, "w");
    (void)fputs(text, f);
    (void)fclose(f);
}

/* ---- tests ---- */

static void test_nobody(void **state)
{
    (void)state;
    struct out o;
    static const char *const verbs[][3] = {
        {"list", NULL},         {"show", "1", NULL},      {"devices", NULL},
        {"watch", "1", NULL},   {"watch", NULL},          {"wait", "1", NULL},
        {"logs", "1", NULL},    {"metrics", "1", NULL},   {"cancel", "1", NULL},
        {"resume", "1", NULL},  {"rerun", "1", NULL},     {"hold", "1", NULL},
        {"release", "1", NULL}, {"drain", "cpu:0", NULL}, {"down", NULL}};
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        run(&o, verbs[i]);
        EXPECT(&o, CLI_UNREACHABLE, "alignctl up");
    }
    char path[256];
    job_file(path, sizeof path);
    RUN(&o, "submit", path);
    EXPECT(&o, CLI_UNREACHABLE, "alignctl up");
}

static void test_usage(void **state)
{
    (void)state;
    struct out o;
    static const char *const bad[][4] = {{"nonsense", NULL},
                                         {"show", "x", NULL},
                                         {"wait", NULL},
                                         {"cancel", NULL},
                                         {"list", "7", NULL},
                                         {"list", "--nope", NULL},
                                         {"logs", "1", "--rank", NULL},
                                         {"tokenize", NULL},
                                         {"watch", "1", "2", NULL},
                                         {"logs", "1", "--rank=64", NULL},
                                         {"list", "--host", "elsewhere", NULL},
                                         {"list", "--host", "tcp://127.0.0.1:1", NULL},
                                         {"metrics", "1", "--set=a=1", NULL}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        run(&o, bad[i]);
        EXPECT(&o, CLI_USAGE, "alignctl: ");
    }
    run(&o, (const char *const[]){NULL});
    EXPECT(&o, CLI_USAGE, "usage:");
    RUN(&o, "help");
    EXPECT(&o, CLI_OK, "5 no daemon");
    RUN(&o, "help", "submit");
    EXPECT(&o, CLI_OK, "--overwrite");
    RUN(&o, "cancel", "--help");
    EXPECT(&o, CLI_OK, "--now");
    RUN(&o, "--version");
    EXPECT(&o, CLI_OK, "alignctl " ALIGND_VERSION);
}

static void test_codes(void **state)
{
    (void)state;
    struct out o;
    static const struct {
        uint64_t code;
        int exit;
    } codes[] = {{MSG_NOT_FOUND, CLI_NOT_FOUND}, {MSG_REFUSED, CLI_REFUSED},
                 {MSG_CONFLICT, CLI_REFUSED},    {MSG_INVALID, CLI_ERROR},
                 {MSG_VERSION, CLI_VERSION},     {MSG_INTERNAL, CLI_ERROR}};
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        struct script s = {.code = codes[i].code};
        script_start(&s);
        RUN(&o, "show", "1");
        EXPECT(&o, codes[i].exit, "alignctl: ");
        RUN(&o, "watch", "1");
        EXPECT(&o, codes[i].exit, "alignctl: ");
        script_stop(&s);
    }
    struct script s = {.version_error = 1};
    script_start(&s);
    RUN(&o, "list");
    EXPECT(&o, CLI_VERSION, "5 to 9");
    script_stop(&s);
}

static void test_submit(void **state)
{
    (void)state;
    char path[256], out[256];
    struct out o;
    struct script s = {.retries = 2};
    job_file(path, sizeof path);
    script_start(&s);
    RUN(&o, "submit", path, "--no-check");
    EXPECT(&o, CLI_OK, "Submitted job 7\n");
    EXPECT(&o, CLI_OK, "batch 8 = 8 x 1 x 1 device; 3 epochs; learning_rate 5e-06 (default)");
    /* RETRY was waited out with the same key */
    assert_int_equal(s.n_keys, 3);
    assert_memory_equal(&s.key[0], &s.key[1], sizeof s.key[0]);
    assert_memory_equal(&s.key[0], &s.key[2], sizeof s.key[0]);
    RUN(&o, "submit", path, "--no-check", "--parsable", "--key",
        "000102030405060708090a0b0c0d0e0F");
    EXPECT(&o, CLI_OK, "7\n");
    assert_int_equal(s.key[3].b[15], 15);
    RUN(&o, "submit", path, "--no-check", "--json");
    EXPECT(&o, CLI_OK, "\"output_dir\": \"/o/7\"");
    RUN(&o, "submit", path, "--no-check", "--key", "12");
    EXPECT(&o, CLI_USAGE, "32 hexadecimal digits");
    RUN(&o, "submit", path, "--no-check", "--set", "lora_r=0", "--set", "bta=1");
    EXPECT(&o, CLI_ERROR, "did you mean beta?");
    EXPECT(&o, CLI_ERROR, "lora_r: must be at least 1");
    /* a used folder, and both ways out */
    (void)snprintf(out, sizeof out, "%s/out", dir);
    (void)mkdir(out, 0700);
    RUN(&o, "submit", path, "--no-check");
    EXPECT(&o, CLI_OK, "Submitted");
    (void)snprintf(out, sizeof out, "%s/out/x", dir);
    (void)mkdir(out, 0700);
    RUN(&o, "submit", path, "--no-check");
    EXPECT(&o, CLI_REFUSED, "--overwrite");
    EXPECT(&o, CLI_REFUSED, "{id}");
    RUN(&o, "submit", path, "--no-check", "--overwrite");
    EXPECT(&o, CLI_OK, "Submitted");
    script_stop(&s);
}

static void test_reading(void **state)
{
    (void)state;
    struct out o;
    struct script s = {.rows_until_over = 3};
    script_start(&s);
    RUN(&o, "list");
    EXPECT(&o, CLI_OK, "JOBID NAME USER ST");
    EXPECT(&o, CLI_OK, "3/5");
    RUN(&o, "list", "--json");
    EXPECT(&o, CLI_OK, "\"state\": \"RUNNING\"");
    RUN(&o, "show", "7");
    EXPECT(&o, CLI_OK, "output_dir   /out");
    RUN(&o, "show", "7", "--json");
    EXPECT(&o, CLI_OK, "\"attempt\": 1");
    RUN(&o, "devices");
    EXPECT(&o, CLI_OK, "cpu:0        cpu  -           FREE    - -                -    -    - ");
    EXPECT(&o, CLI_OK,
           "GPU-8f3aabcd gpu  NVIDIA H100 USED    7 ann  50.0/80.0 GiB 98 % 71 C it is warm; "
           "drained");
    RUN(&o, "logs", "7");
    EXPECT(&o, CLI_OK, "first line\nlast line\n");
    RUN(&o, "logs", "7", "--rank", "9");
    EXPECT(&o, CLI_NOT_FOUND, "job 7 has 2 ranks, numbered from 0");
    RUN(&o, "logs", "7", "--json");
    EXPECT(&o, CLI_OK, "\"text\":\"first line\\nlast line\\n\"}");
    RUN(&o, "hold", "7");
    EXPECT(&o, CLI_OK, "so be it");
    RUN(&o, "metrics", "7", "--json", "--follow");
    EXPECT(&o, CLI_OK, "\"global_step\":3,");
    script_stop(&s);
}

static void test_watch_lines(void **state)
{
    (void)state;
    struct out o;
    struct script s = {.rows_until_over = 3};
    script_start(&s);
    RUN(&o, "watch");
    EXPECT(&o, CLI_OK, "step 1/5  loss 0.6  rewards/margins 0.1\n");
    EXPECT(&o, CLI_OK, "job 7 COMPLETED: 3 steps");
    EXPECT(&o, CLI_OK, "adapter: /out/ad");
    script_stop(&s);
    s = (struct script){.rows_until_over = 2, .end_state = "FAILED"};
    script_start(&s);
    RUN(&o, "watch", "7");
    EXPECT(&o, CLI_JOB_FAILED, "rank 1: boom");
    EXPECT(&o, CLI_JOB_FAILED, "rank 1 ended with code 1");
    EXPECT(&o, CLI_JOB_FAILED, "last lines of rank 1:\n  first line\n  last line\n");
    script_stop(&s);
    s = (struct script){.rows_until_over = 2, .end_state = "FAILED"};
    script_start(&s);
    RUN(&o, "wait", "7");
    EXPECT(&o, CLI_JOB_FAILED, "last line");
    script_stop(&s);
    s = (struct script){.rows_until_over = 2};
    script_start(&s);
    RUN(&o, "cancel", "7");
    EXPECT(&o, CLI_OK, "its adapter: /out/ad");
    script_stop(&s);
}

/* Reads from a terminal until `says` was seen (then true) or seconds have passed. */
static bool see(int fd, struct buf *seen, const char *says, int seconds)
{
    time_t until = time(NULL) + seconds;
    for (;;) {
        if (seen->data && memmem(seen->data, seen->bytes, says, strlen(says)))
            return true;
        char b[8192];
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (time(NULL) > until)
            return false;
        if (poll(&p, 1, 200) <= 0)
            continue;
        ssize_t n = read(fd, b, sizeof b);
        if (n <= 0)
            return false;
        (void)buf_add(seen, b, (size_t)n);
    }
}

static int spawn_watch(pid_t *pid, unsigned short rows, unsigned short columns)
{
    int master = -1, slave = -1;
    struct winsize ws = {.ws_row = rows, .ws_col = columns};
    assert_int_equal(openpty(&master, &slave, NULL, NULL, &ws), 0);
    (void)fcntl(master, F_SETFD, FD_CLOEXEC);
    (void)fcntl(slave, F_SETFD, FD_CLOEXEC);
    *pid = start((const char *const[]){"watch", "7", NULL}, slave, slave);
    (void)close(slave);
    return master;
}

#define SEE(fd, b, says)                                                              \
    do {                                                                              \
        if (!see(fd, b, says, 10))                                                    \
            fail_msg("\"%s\" was not seen in\n%s", says, (b)->data ? (b)->data : ""); \
    } while (0)

static void test_watch_terminal(void **state)
{
    (void)state;
    struct script s = {.rows_until_over = -1};
    struct buf seen = {.max = 64 << 20};
    pid_t pid;
    script_start(&s);
    int fd = spawn_watch(&pid, 24, 80);
    SEE(fd, &seen, "job 7 n");
    SEE(fd, &seen, "ETA");
    SEE(fd, &seen, "rewards/margins 0.1");
    /* resized: cleared and drawn again at the new size */
    struct winsize ws = {.ws_row = 10, .ws_col = 30};
    buf_clear(&seen);
    assert_int_equal(ioctl(fd, TIOCSWINSZ, &ws), 0);
    (void)kill(pid, SIGWINCH); /* it has no controlling terminal here */
    SEE(fd, &seen, "\x1b[2J");
    /* the daemon goes away and comes back */
    script_stop(&s);
    buf_clear(&seen);
    SEE(fd, &seen, "alignd does not answer");
    script_start(&s);
    buf_clear(&seen);
    SEE(fd, &seen, "Ctrl-C leaves");
    (void)kill(pid, SIGINT);
    SEE(fd, &seen, "job 7 trains on");
    SEE(fd, &seen, "\x1b[?1049l");
    assert_int_equal(reap(pid), CLI_OK);
    (void)close(fd);
    buf_free(&seen);
    script_stop(&s);
}

static int setup(void **state)
{
    (void)state;
    alignctl = getenv("ALIGNCTL");
    if (!alignctl)
        return -1;
    (void)snprintf(dir, sizeof dir, "/tmp/test_verbs.XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    (void)snprintf(host, sizeof host, "ipc://%s/control.sock", dir);
    (void)snprintf(watch_url, sizeof watch_url, "ipc://%s/watch.sock", dir);
    (void)setenv("ALIGND_STATE", dir, 1);
    (void)unsetenv("ALIGND_HOST");
    (void)setenv("TERM", "xterm", 1);
    (void)setenv("LC_ALL", "C.UTF-8", 1);
    (void)setenv("ALIGND_WORKER", "/nonexistent", 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usage),          cmocka_unit_test(test_nobody),
        cmocka_unit_test(test_codes),          cmocka_unit_test(test_submit),
        cmocka_unit_test(test_reading),        cmocka_unit_test(test_watch_lines),
        cmocka_unit_test(test_watch_terminal),
    };
    return cmocka_run_group_tests_name("verbs", tests, setup, teardown);
}
