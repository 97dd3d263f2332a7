/* verb_output.c - logs, metrics: what a job wrote and reported. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/args.h"
#include "client/follow.h"
#include "client/jobview.h"
#include "client/rowjson.h"
#include "client/screen.h"

enum { OUT_MAX = 64 << 20 };

struct log_at {
    uint64_t job, rank, attempt, offset;
};

static void print_chunk(struct cli *cli, uint64_t rank, const struct msg_chunk *k)
{
    struct buf b = {.max = OUT_MAX};
    if (!cli->json) {
        (void)fwrite(k->bytes.data, 1, k->bytes.bytes, cli->out);
        return;
    }
    char *text = k->bytes.bytes ? strndup(k->bytes.data, k->bytes.bytes) : NULL;
    if (text) {
        (void)buf_printf(&b, "{\"attempt\":%llu,\"rank\":%llu,\"offset\":%llu,\"text\":",
                         (unsigned long long)k->attempt, (unsigned long long)rank,
                         (unsigned long long)k->offset);
        (void)buf_json(&b, text);
        (void)fprintf(cli->out, "%s}\n", b.data ? b.data : "{\"text\":null");
    }
    free(text);
    buf_free(&b);
}

/* One page of a rank's output; *ret_end: there is no more now. */
static int log_page(struct cli *cli, struct conn *c, struct log_at *at, int64_t from, bool *ret_end,
                    bool *ret_over)
{
    struct msg req = {
        .type = MSG_T_logs,
        .logs = {.job = at->job, .attempt = at->attempt, .rank = at->rank, .offset = from}};
    struct msg *reply = NULL;
    int r = conn_call(cli, c, &req, &reply);
    if (r != CLI_OK)
        return r;
    const struct msg_chunk *k = &reply->chunk;
    if (from >= 0 && k->offset > (uint64_t)from)
        (void)fprintf(cli->notes, "alignctl: bytes %lld to %llu are gone\n", (long long)from,
                      (unsigned long long)k->offset);
    print_chunk(cli, at->rank, k);
    if (ferror(cli->out))
        r = cli_out_failed(cli);
    at->attempt = k->attempt;
    at->offset = k->offset + k->bytes.bytes;
    *ret_end = at->offset >= k->size || k->bytes.bytes == 0;
    *ret_over = k->over && at->offset >= k->size;
    codec_free(reply);
    return r;
}

/* After an attempt is over: the next one's, or the end. */
static int next_attempt(struct cli *cli, struct conn *c, struct log_at *at, bool *ret_done)
{
    struct msg req = {.type = MSG_T_show, .show = {.job = at->job}}, *reply = NULL;
    int r = conn_call(cli, c, &req, &reply);
    if (r != CLI_OK)
        return r;
    json_t *job = json_loads(reply->json.text, 0, NULL);
    codec_free(reply);
    if ((uint64_t)jobview_int(job, "attempt") > at->attempt) {
        at->attempt++;
        at->offset = 0;
        (void)fflush(cli->out);
        (void)fprintf(cli->notes, "alignctl: attempt %llu\n", (unsigned long long)at->attempt);
    } else if (jobview_over(job)) {
        *ret_done = true;
    }
    json_decref(job);
    return CLI_OK;
}

static void nap(void)
{
    struct timespec t = {0, 300000000};
    (void)nanosleep(&t, NULL);
}

static int follow_log(struct cli *cli, struct conn *c, struct log_at *at, bool one_attempt)
{
    bool done = false;
    while (!done) {
        bool end = false, over = false;
        int r = log_page(cli, c, at, (int64_t)at->offset, &end, &over);
        if (r == CLI_UNREACHABLE) { /* restarting: the wire dials again by itself */
            nap();
            continue;
        }
        if (r != CLI_OK)
            return r;
        if (fflush(cli->out) != 0)
            return cli_out_failed(cli);
        if (over && one_attempt)
            return CLI_OK;
        if (over)
            r = next_attempt(cli, c, at, &done);
        if (r != CLI_OK && r != CLI_UNREACHABLE)
            return r;
        if (end && !done)
            nap();
    }
    return CLI_OK;
}

/* A rank that the job does not have is not one that printed nothing. */
static int rank_is_there(struct cli *cli, struct conn *c, uint64_t id, uint64_t rank)
{
    struct msg req = {.type = MSG_T_show, .show = {.job = id}}, *reply = NULL;
    int r = conn_call(cli, c, &req, &reply);
    if (r != CLI_OK)
        return r;
    json_t *job = json_loads(reply->json.text, 0, NULL);
    int64_t devices = jobview_int(job, "devices");
    codec_free(reply);
    json_decref(job);
    if (devices <= 0 || rank < (uint64_t)devices)
        return CLI_OK;
    return err_set(&cli->err, CLI_NOT_FOUND, "job %llu has %lld rank%s, numbered from 0",
                   (unsigned long long)id, (long long)devices, devices == 1 ? "" : "s");
}

static int verb_logs(struct cli *cli, int argc, char **argv)
{
    bool follow = false;
    unsigned long long rank = 0, attempt = 0, tail = 0, id = 0;
    const struct args_option options[] = {{"follow", 'f', ARGS_FLAG, &follow},
                                          {"rank", 'r', ARGS_COUNT, &rank},
                                          {"attempt", 0, ARGS_COUNT, &attempt},
                                          {"tail", 0, ARGS_COUNT, &tail},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    const char *rest[1];
    struct conn c = {0};
    bool end = false, over = false;
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = args_job(cli, rest[0], &id);
    if (r == CLI_OK && (rank >= LIMIT_RANKS || tail > LIMIT_LOG_BYTES))
        r = err_set(&cli->err, CLI_USAGE, "--rank: 0 to %d; --tail: at most %d bytes",
                    LIMIT_RANKS - 1, LIMIT_LOG_BYTES);
    if (r == CLI_OK)
        r = conn_open(cli, &c);
    if (r == CLI_OK && rank > 0)
        r = rank_is_there(cli, &c, id, rank);
    struct log_at at = {.job = id, .rank = rank, .attempt = attempt};
    int64_t from = tail ? -(int64_t)tail : 0;
    while (r == CLI_OK && !end) {
        r = log_page(cli, &c, &at, from, &end, &over);
        from = (int64_t)at.offset;
    }
    (void)fflush(cli->out);
    if (r == CLI_OK && at.offset == 0)
        (void)fprintf(cli->notes, "rank %llu of job %llu has printed nothing\n", rank, id);
    if (r == CLI_OK && follow)
        r = follow_log(cli, &c, &at, attempt != 0);
    conn_close(&c);
    return r;
}

/* ---- metrics ---- */

static void print_rows(struct cli *cli, const json_t *job, const struct msg_rows *rows)
{
    struct buf b = {.max = OUT_MAX};
    for (size_t i = 0; i < rows->n; i++) {
        if (cli->json)
            rowjson_add(&rows->v[i], &b);
        else
            screen_line(job, &rows->v[i], &b);
    }
    if (b.bytes)
        (void)fwrite(b.data, 1, b.bytes, cli->out);
    (void)fflush(cli->out);
    buf_free(&b);
}

static void tell_thinned(struct cli *cli, uint64_t since, uint64_t thinned, bool *told)
{
    if (thinned <= since || *told)
        return;
    (void)fprintf(cli->notes,
                  "alignctl: rows up to %llu were thinned out; metrics.jsonl in output_dir has "
                  "them all\n",
                  (unsigned long long)thinned);
    *told = true;
}

static int all_pages(struct cli *cli, struct conn *c, uint64_t job, bool all)
{
    uint64_t since = 0;
    bool more = true, told = false;
    while (more) {
        struct msg req = {.type = MSG_T_metrics,
                          .metrics = {.job = job, .since = since, .all = all}};
        struct msg *reply = NULL;
        int r = conn_call(cli, c, &req, &reply);
        if (r != CLI_OK)
            return r;
        const struct msg_page *p = &reply->page;
        tell_thinned(cli, since, p->thinned, &told);
        print_rows(cli, NULL, &p->rows);
        if (since == 0 && p->rows.n == 0 && !p->more)
            (void)fprintf(cli->notes, "job %llu has reported nothing%s\n", (unsigned long long)job,
                          p->thinned ? " that is still kept" : "");
        if (ferror(cli->out))
            r = cli_out_failed(cli);
        more = p->more && p->last > since;
        since = p->last;
        codec_free(reply);
        if (r != CLI_OK)
            return r;
    }
    return CLI_OK;
}

static int follow_rows(struct cli *cli, struct conn *c, uint64_t job)
{
    struct follow f = {0};
    bool told = false;
    int r = follow_open(cli, c, job, &f);
    while (r == CLI_OK && !f.over) {
        struct msg *news = NULL;
        uint64_t since = f.since;
        r = follow_next(cli, &f, 1000, &news);
        if (news) {
            tell_thinned(cli, since, f.thinned, &told);
            print_rows(cli, f.state, &news->job_news.rows);
        }
        codec_free(news);
        if (r == CLI_OK && ferror(cli->out))
            r = cli_out_failed(cli);
    }
    follow_close(&f);
    return r;
}

static int verb_metrics(struct cli *cli, int argc, char **argv)
{
    bool follow = false, all = false;
    const struct args_option options[] = {{"follow", 'f', ARGS_FLAG, &follow},
                                          {"all", 'a', ARGS_FLAG, &all},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    const char *rest[1];
    unsigned long long id = 0;
    struct conn c = {0};
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = args_job(cli, rest[0], &id);
    if (r == CLI_OK && follow && all)
        r = err_set(&cli->err, CLI_USAGE, "--follow and --all: one of them");
    if (r == CLI_OK)
        r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = follow ? follow_rows(cli, &c, id) : all_pages(cli, &c, id, all);
    conn_close(&c);
    return r;
}

const struct cli_verb verb_output[] = {
    {"logs", "ID [-f] [--rank R] [--attempt N] [--tail BYTES] [--json]", "what a rank printed",
     verb_logs},
    {"metrics", "ID [--json] [--follow] [--all]", "what a job reported; --all: superseded rows too",
     verb_metrics},
    {NULL, NULL, NULL, NULL}};
