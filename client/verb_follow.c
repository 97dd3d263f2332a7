/* verb_follow.c - watch, wait. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "client/args.h"
#include "client/curve.h"
#include "client/follow.h"
#include "client/jobview.h"
#include "client/rowjson.h"
#include "client/screen.h"

enum { REDRAW_MS = 500, FRAME_MS = 80, OUT_MAX = 1 << 22, MIN_COLUMNS = 20, MIN_ROWS = 4 };

static volatile sig_atomic_t leave, resized;

static void on_leave(int sig)
{
    (void)sig;
    leave = 1;
}

static void on_resize(int sig)
{
    (void)sig;
    resized = 1;
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_leave};
    (void)sigaction(SIGINT, &a, NULL);
    (void)sigaction(SIGTERM, &a, NULL);
    (void)sigaction(SIGHUP, &a, NULL);
    a.sa_handler = on_resize;
    (void)sigaction(SIGWINCH, &a, NULL);
    leave = 0;
}

struct watch {
    struct cli *cli;
    struct follow follow;
    struct curve curve;
    struct buf buf;
    bool live;      /* a screen, not lines */
    bool lost;      /* alignd does not answer, and that was told */
    char told[600]; /* the state last told as a line */
    bool thinned_told;
    int64_t drawn_ms; /* monotonic */
};

static void flush(struct watch *w)
{
    if (w->buf.bytes)
        (void)fwrite(w->buf.data, 1, w->buf.bytes, w->cli->out);
    (void)fflush(w->cli->out);
    buf_clear(&w->buf);
}

static void enter_screen(struct watch *w)
{
    (void)fputs("\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J", w->cli->out);
    (void)fflush(w->cli->out);
}

static void leave_screen(struct watch *w)
{
    (void)fputs("\x1b[?25h\x1b[?1049l", w->cli->out);
    (void)fflush(w->cli->out);
}

static void redraw(struct watch *w)
{
    struct winsize ws = {.ws_row = 24, .ws_col = 80};
    struct buf page = {.max = OUT_MAX};
    if (ioctl(fileno(w->cli->out), TIOCGWINSZ, &ws) < 0 || ws.ws_col == 0 || ws.ws_row == 0)
        ws = (struct winsize){.ws_row = 24, .ws_col = 80};
    struct screen s = {.job = w->follow.state,
                       .curve = &w->curve,
                       .columns = ws.ws_col < MIN_COLUMNS ? MIN_COLUMNS : ws.ws_col,
                       .rows = (ws.ws_row < MIN_ROWS ? MIN_ROWS : ws.ws_row) - 1,
                       .utf8 = w->cli->utf8,
                       .colour = w->cli->colour,
                       .connected = follow_connected(&w->follow),
                       .now_ms = jobview_now_ms()};
    screen_draw(&s, &page);
    (void)buf_str(&w->buf, resized ? "\x1b[H\x1b[2J" : "\x1b[H");
    resized = 0;
    for (size_t i = 0; i < page.bytes; i++) {
        if (page.data[i] == '\n')
            (void)buf_str(&w->buf, "\x1b[K\r\n");
        else
            (void)buf_add(&w->buf, &page.data[i], 1);
    }
    (void)buf_str(&w->buf, "\x1b[J");
    buf_free(&page);
    flush(w);
    w->drawn_ms = follow_now_ms();
}

/* Without a screen: the state when it changes. */
static void tell_state(struct watch *w)
{
    char text[600], reason[400];
    const json_t *job = w->follow.state;
    const char *state = jobview_text(job, "state");
    if (w->cli->json || !job)
        return;
    if (strcmp(state, "RUNNING") == 0 || strcmp(state, "CONFIGURING") == 0)
        (void)snprintf(text, sizeof text, "job %lld %s, attempt %lld",
                       (long long)jobview_int(job, "job"), state,
                       (long long)jobview_int(job, "attempt"));
    else
        (void)snprintf(text, sizeof text, "job %lld %s, %s", (long long)jobview_int(job, "job"),
                       state, jobview_reason(job, reason, sizeof reason));
    char *none = strstr(text, ", None");
    if (none)
        *none = '\0';
    if (strcmp(text, w->told) == 0)
        return;
    (void)memcpy(w->told, text, sizeof text);
    char plain[700];
    (void)fprintf(w->cli->out, "%s\n", format_plain(plain, sizeof plain, text, sizeof plain));
}

static void tell_gap(struct watch *w, uint64_t since)
{
    if (w->follow.thinned > since && !w->thinned_told && !w->live) {
        (void)fprintf(w->cli->notes,
                      "alignctl: rows up to %llu were thinned out; metrics.jsonl in output_dir has "
                      "them all\n",
                      (unsigned long long)w->follow.thinned);
        w->thinned_told = true;
    }
}

static void take_news(struct watch *w, const struct msg_job_news *n, uint64_t since)
{
    tell_gap(w, since);
    if (!w->live)
        tell_state(w);
    for (size_t i = 0; i < n->rows.n; i++) {
        curve_add(&w->curve, &n->rows.v[i]);
        if (w->live)
            continue;
        if (w->cli->json)
            rowjson_add(&n->rows.v[i], &w->buf);
        else
            screen_line(w->follow.state, &n->rows.v[i], &w->buf);
    }
    if (!w->live)
        flush(w);
}

static void tell_connection(struct watch *w)
{
    bool lost = !follow_connected(&w->follow);
    if (lost == w->lost)
        return;
    w->lost = lost;
    if (!w->live)
        (void)fprintf(w->cli->notes,
                      lost ? "alignctl: alignd does not answer; the job %s; trying "
                             "again\n"
                           : "alignctl: alignd is back\n",
                      jobview_goes_on(w->follow.state));
}

static int loop(struct watch *w)
{
    while (!w->follow.over && !leave) {
        struct msg *news = NULL;
        uint64_t since = w->follow.since;
        int r = follow_next(w->cli, &w->follow, REDRAW_MS, &news);
        if (r != CLI_OK)
            return r;
        bool more = news && news->job_news.more;
        if (news)
            take_news(w, &news->job_news, since);
        tell_connection(w);
        if (ferror(w->cli->out)) {
            codec_free(news);
            return cli_out_failed(w->cli);
        }
        if (w->live && !more && (!news || follow_now_ms() - w->drawn_ms >= FRAME_MS))
            redraw(w);
        codec_free(news);
    }
    return CLI_OK;
}

/* The last words, after the screen is gone. A CLI_ code. */
static int conclude(struct watch *w, struct conn *c)
{
    const json_t *job = w->follow.state;
    long long id = (long long)jobview_int(job, "job");
    format_buf a, b, e;
    if (!w->follow.over) {
        (void)fprintf(w->cli->notes, "job %llu %s; alignctl watch %llu looks again\n",
                      (unsigned long long)w->follow.job, jobview_goes_on(job),
                      (unsigned long long)w->follow.job);
        return CLI_OK;
    }
    if (!jobview_completed(job)) {
        follow_tell_failure(w->cli, c, job);
        return CLI_JOB_FAILED;
    }
    if (w->cli->json)
        return CLI_OK;
    (void)fprintf(w->cli->out, "job %lld COMPLETED: %s step%s in %s, loss %s", id,
                  format_count(a, jobview_int(job, "step")),
                  jobview_int(job, "step") == 1 ? "" : "s",
                  format_clock(b, jobview_seconds(job, jobview_now_ms())),
                  format_loss(e, jobview_number(job, "loss")));
    double eval = curve_eval(&w->curve, "eval_loss");
    if (eval == eval)
        (void)fprintf(w->cli->out, ", eval_loss %s", format_loss(a, eval));
    double acc = curve_eval(&w->curve, "eval_rewards/accuracies");
    if (acc == acc)
        (void)fprintf(w->cli->out, ", eval_rewards/accuracies %s", format_fixed(a, acc, 3));
    (void)fprintf(w->cli->out, "\nadapter: %s\n",
                  *jobview_text(job, "adapter") ? jobview_text(job, "adapter")
                                                : jobview_text(job, "output_dir"));
    return CLI_OK;
}

int watch_job(struct cli *cli, unsigned long long job)
{
    struct watch w = {.cli = cli, .buf = {.max = OUT_MAX}};
    struct conn c = {0};
    const char *term = getenv("TERM");

    w.live = cli->live && !cli->json && term && *term && strcmp(term, "dumb") != 0;
    int r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = follow_open(cli, &c, job, &w.follow);
    if (r == CLI_OK) {
        curve_init(&w.curve);
        catch_signals();
        if (w.live)
            enter_screen(&w);
        r = loop(&w);
        if (w.live)
            leave_screen(&w);
        if (r == CLI_OK)
            r = conclude(&w, &c);
        curve_fini(&w.curve);
    }
    follow_close(&w.follow);
    conn_close(&c);
    buf_free(&w.buf);
    return r;
}

int wait_job(struct cli *cli, unsigned long long job)
{
    struct conn c = {0};
    struct follow f = {0};
    int r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = follow_open(cli, &c, job, &f);
    if (r == CLI_OK)
        r = follow_until_over(cli, &f);
    if (r == CLI_OK) {
        if (cli->json) {
            char *text = json_dumps(f.state, JSON_REAL_PRECISION(17));
            (void)fprintf(cli->out, "%s\n", text ? text : "{}");
            free(text);
        } else {
            (void)fprintf(cli->out, "job %lld: %s\n", (long long)jobview_int(f.state, "job"),
                          jobview_text(f.state, "state"));
        }
        if (!jobview_completed(f.state)) {
            follow_tell_failure(cli, &c, f.state);
            r = CLI_JOB_FAILED;
        }
    }
    follow_close(&f);
    conn_close(&c);
    return r;
}

static int verb_watch(struct cli *cli, int argc, char **argv)
{
    const struct args_option options[] = {{NULL, 0, ARGS_FLAG, NULL}};
    const char *rest[1] = {NULL};
    unsigned long long id = 0;
    int r = args_parse(cli, argc, argv, options, rest, 0, 1, NULL);
    if (r == CLI_OK && rest[0])
        r = args_job(cli, rest[0], &id);
    return r == CLI_OK ? watch_job(cli, id) : r;
}

static int verb_wait(struct cli *cli, int argc, char **argv)
{
    const struct args_option options[] = {{NULL, 0, ARGS_FLAG, NULL}};
    const char *rest[1];
    unsigned long long id = 0;
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = args_job(cli, rest[0], &id);
    return r == CLI_OK ? wait_job(cli, id) : r;
}

const struct cli_verb verb_follow[] = {
    {"watch", "[ID] [--json]", "a job as it trains (default: your newest); Ctrl-C only looks away",
     verb_watch},
    {"wait", "ID [--json]", "waits for a job's end; 4 if it did not complete", verb_wait},
    {NULL, NULL, NULL, NULL}};
