/* follow.c - see follow.h. */
#include "client/follow.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "client/jobview.h"
#include "client/left.h"

enum { LAST_LINES = 20, HELD_MS = 90000, RETRY_MS = 500 };

int64_t follow_now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* nng's thread. */
static void answered(void *arg)
{
    const struct follow *f = arg;
    uint64_t one = 1;
    ssize_t n = write(f->fd, &one, sizeof one);
    (void)n; /* the counter being full is as good */
}

static int newest(struct cli *cli, struct conn *c, uint64_t *ret)
{
    struct msg req = {.type = MSG_T_show}, *reply = NULL;
    int r = conn_call(cli, c, &req, &reply);
    if (r != CLI_OK)
        return r;
    json_t *j = json_loads(reply->json.text, 0, NULL);
    *ret = (uint64_t)jobview_int(j, "job");
    json_decref(j);
    codec_free(reply);
    return *ret ? CLI_OK : err_set(&cli->err, CLI_NOT_FOUND, "there is no job yet");
}

int follow_open(struct cli *cli, struct conn *c, uint64_t job, struct follow *f)
{
    *f = (struct follow){.job = job};
    int r = job ? CLI_OK : newest(cli, c, &f->job);
    if (r != CLI_OK)
        return r;
    f->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (f->fd < 0) {
        f->fd = 0;
        return err_set(&cli->err, CLI_ERROR, "eventfd: %s", strerror(errno));
    }
    int d = wire_dial(c->watch_url, 0, &f->watch, &cli->err);
    if (d < 0)
        r = err_prefix(&cli->err, CLI_UNREACHABLE, "the watch socket does not answer");
    else if (wire_call_new(f->watch, answered, f, &f->call) < 0)
        r = err_set(&cli->err, CLI_ERROR, "out of memory");
    if (r != CLI_OK)
        follow_close(f);
    return r;
}

void follow_close(struct follow *f)
{
    if (f->call)
        wire_call_free(f->call);
    if (f->watch)
        wire_hangup(f->watch);
    if (f->fd > 0)
        (void)close(f->fd);
    json_decref(f->state);
    *f = (struct follow){0};
}

bool follow_connected(const struct follow *f)
{
    return wire_connected(f->watch);
}

static int ask(struct cli *cli, struct follow *f)
{
    struct msg req = {.type = MSG_T_watch_job,
                      .watch_job = {.job = f->job, .since = f->since, .rev = f->rev}};
    uint8_t *data = NULL;
    size_t n = 0;
    if (codec_encode(&req, &data, &n, &cli->err) < 0)
        return CLI_ERROR;
    int r = wire_call_start(f->call, data, n, HELD_MS);
    free(data);
    if (r < 0)
        return err_set(&cli->err, CLI_ERROR, "the watch request: %s", strerror(-r));
    f->waiting = true;
    return CLI_OK;
}

/* Takes over what the news say about where to go on. */
static void take_over(struct follow *f, const struct msg_job_news *n)
{
    f->since = n->last;
    f->thinned = n->thinned;
    f->over = n->over && !n->more;
    if (*n->state) {
        json_t *state = json_loads(n->state, 0, NULL);
        if (state) {
            json_decref(f->state);
            f->state = state;
            f->rev = n->rev;
        }
    }
}

static int receive(struct cli *cli, struct follow *f, struct msg **ret)
{
    uint8_t *data = NULL;
    size_t n = 0;
    struct msg *m = NULL;
    int r = wire_call_take(f->call, &data, &n);
    if (r == -EAGAIN)
        return CLI_OK;
    f->waiting = false;
    if (r < 0) { /* no answer in time: ask again; the wire dials by itself */
        f->again_ms = follow_now_ms() + RETRY_MS;
        return CLI_OK;
    }
    r = codec_decode(data, n, &m, &cli->err);
    free(data);
    if (r < 0)
        return err_prefix(&cli->err, r == -EPROTONOSUPPORT ? CLI_VERSION : CLI_ERROR,
                          "alignd's answer cannot be read");
    if (m->type == MSG_T_job_news) {
        take_over(f, &m->job_news);
        *ret = m;
        return CLI_OK;
    }
    r = CLI_OK;
    if (m->type == MSG_T_error && (m->error.code == MSG_BUSY || m->error.code == MSG_RETRY))
        f->again_ms = follow_now_ms() +
                      (int64_t)(m->error.retry_ms < RETRY_MS ? RETRY_MS : m->error.retry_ms);
    else if (m->type == MSG_T_error)
        r = conn_refusal(cli, m);
    else
        r = err_set(&cli->err, CLI_ERROR, "alignd answered with %s", codec_name(m->type));
    codec_free(m);
    return r;
}

int follow_next(struct cli *cli, struct follow *f, int timeout_ms, struct msg **ret)
{
    int64_t until = follow_now_ms() + timeout_ms;
    *ret = NULL;
    for (;;) {
        int64_t now = follow_now_ms();
        if (!f->waiting && now >= f->again_ms) {
            int r = ask(cli, f);
            if (r != CLI_OK)
                return r;
        }
        int64_t wake = !f->waiting && f->again_ms < until ? f->again_ms : until;
        struct pollfd p = {.fd = f->fd, .events = POLLIN};
        int n = poll(&p, 1, wake > now ? (int)(wake - now) : 0);
        if (n < 0)
            return CLI_OK; /* a signal: the caller looks */
        if (n > 0) {
            uint64_t count;
            ssize_t got = read(f->fd, &count, sizeof count);
            (void)got;
            int r = receive(cli, f, ret);
            if (r != CLI_OK || *ret)
                return r;
        }
        if (follow_now_ms() >= until)
            return CLI_OK;
    }
}

int follow_until_over(struct cli *cli, struct follow *f)
{
    bool lost = false;
    while (!f->over) {
        struct msg *news = NULL;
        int r = follow_next(cli, f, 1000, &news);
        codec_free(news);
        if (r != CLI_OK)
            return r;
        if (lost != !follow_connected(f)) {
            lost = !lost;
            (void)fprintf(
                cli->notes, "alignctl: %s\n",
                lost ? "alignd does not answer; the job goes on without it; waiting for alignd"
                     : "alignd is back");
        }
    }
    return CLI_OK;
}

/* The last lines of bytes, at most LAST_LINES, made plain. */
static void tell_lines(struct cli *cli, const char *s, size_t n)
{
    char line[4096], plain[4096];
    size_t from = n, lines = 0;
    while (from > 0 && lines <= LAST_LINES) {
        if (s[from - 1] == '\n' && from != n && ++lines == LAST_LINES)
            break;
        from--;
    }
    while (from < n) {
        const char *end = memchr(s + from, '\n', n - from);
        size_t len = end ? (size_t)(end - s) - from : n - from;
        (void)snprintf(line, sizeof line, "%.*s", (int)(len < 4000 ? len : 4000), s + from);
        (void)fprintf(cli->notes, "  %s\n", format_plain(plain, sizeof plain, line, sizeof plain));
        from += len + 1;
    }
}

static void tell_adapter(struct cli *cli, const json_t *state)
{
    char left[LIMIT_PATH + 64], plain[LIMIT_PATH + 64];
    if (*left_adapter(state, left, sizeof left))
        (void)fprintf(cli->notes, "its adapter: %s\n",
                      format_plain(plain, sizeof plain, left, sizeof plain));
}

void follow_tell_failure(struct cli *cli, struct conn *c, const json_t *state)
{
    char reason[1024], plain[1100];
    int64_t rank = jobview_int(state, "first_rank");
    struct err keep = cli->err;
    struct msg *reply = NULL;

    (void)jobview_reason(state, reason, sizeof reason);
    bool known = strcmp(reason, "None") != 0;
    (void)fprintf(cli->notes, "job %lld: %s%s%s\n", (long long)jobview_int(state, "job"),
                  jobview_text(state, "state"), known ? ": " : "",
                  known ? format_plain(plain, sizeof plain, reason, sizeof plain) : "");
    if (strcmp(jobview_text(state, "state"), "CANCELLED") == 0) {
        tell_adapter(cli, state);
        return;
    }
    if (jobview_int(state, "exit_signal"))
        (void)fprintf(cli->notes, "rank %lld was ended by signal %lld (%s)\n", (long long)rank,
                      (long long)jobview_int(state, "exit_signal"),
                      strsignal((int)jobview_int(state, "exit_signal")));
    else if (rank >= 0)
        (void)fprintf(cli->notes, "rank %lld ended with code %lld\n", (long long)rank,
                      (long long)jobview_int(state, "exit_code"));
    struct msg req = {.type = MSG_T_logs,
                      .logs = {.job = (uint64_t)jobview_int(state, "job"),
                               .rank = rank > 0 ? (uint64_t)rank : 0,
                               .offset = -32768,
                               .max = 32768}};
    if (jobview_int(state, "attempt") > 0 && conn_call(cli, c, &req, &reply) == CLI_OK) {
        (void)fprintf(cli->notes,
                      reply->chunk.bytes.bytes ? "last lines of rank %lld:\n"
                                               : "rank %lld printed nothing\n",
                      (long long)req.logs.rank);
        tell_lines(cli, reply->chunk.bytes.data, reply->chunk.bytes.bytes);
        codec_free(reply);
    }
    tell_adapter(cli, state);
    cli->err = keep;
}
