/* verb_local.c - check, plan, data, try, tokenize: the worker looks, no daemon is asked. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/args.h"
#include "client/beside.h"
#include "client/dataprint.h"
#include "client/format.h"
#include "client/jobfile.h"
#include "client/jobview.h"
#include "client/planprint.h"
#include "client/summary.h"
#include "proto/buf.h"

enum { OUT_MAX = 256 << 20 };

static void print_json(struct cli *cli, const json_t *j)
{
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(17));
    if (text)
        (void)fprintf(cli->out, "%s\n", text);
    free(text);
}

/* The worker's exit code, as ours. */
static int as_ours(struct cli *cli, const char *verb, int status)
{
    if (status == 0)
        return CLI_OK;
    if (status == CLI_REFUSED)
        return CLI_REFUSED;
    if (status >= 128)
        return err_set(&cli->err, CLI_ERROR, "align-worker %s was ended by signal %d", verb,
                       status - 128);
    return CLI_ERROR;
}

/* Runs the worker's verb on argv's job file; tells problems. CLI_OK: *ret is there. */
static int look(struct cli *cli, int argc, char **argv, const struct args_option *own,
                struct args_sets *sets, struct jobfile *f)
{
    const char *rest[1];
    int r = args_parse(cli, argc, argv, own, rest, 1, 1, NULL);
    if (r != CLI_OK)
        return r;
    r = jobfile_open(cli, rest[0], sets, f);
    if (r != CLI_OK && cli->json) { /* a document, also when the answer is no */
        json_t *j = json_pack("{s:b,s:[{s:i,s:b,s:s}]}", "ok", 0, "problems", "line", 0, "warning",
                              0, "text", cli->err.text);
        if (j)
            print_json(cli, j);
        json_decref(j);
    }
    return r;
}

/* memory: 3.10 GB of 84.00 GB free: weights ..., as the worker plans a rank's. */
static void print_memory(struct cli *cli, const json_t *j)
{
    const char *text = json_string_value(json_object_get(j, "memory_text"));

    if (text)
        (void)fprintf(cli->out, "memory per rank: %s\n", text);
}

static int verb_check(struct cli *cli, int argc, char **argv)
{
    struct args_sets sets = {.n = 0};
    struct jobfile f = {0};
    bool overwrite = false;
    const struct args_option options[] = {{"set", 0, ARGS_SETS, &sets},
                                          {"overwrite", 0, ARGS_FLAG, &overwrite},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    int status = 0;
    char text[1024];
    json_t *j = NULL;
    int r = look(cli, argc, argv, options, &sets, &f);
    if (r == CLI_OK)
        r = jobfile_worker(cli, &f, "--check", overwrite ? "--overwrite" : NULL, NULL, &j, &status);
    if (r == CLI_OK) {
        if (cli->json)
            print_json(cli, j);
        else
            (void)jobfile_tell(cli, &f, j);
        r = as_ours(cli, "--check", status);
        if (r == CLI_OK && !cli->json && jobfile_resolve_quietly(cli, &f) == CLI_OK) {
            (void)fprintf(cli->out, "ok: %s\n",
                          summary_text(f.spec, f.resolved, j, text, sizeof text));
            print_memory(cli, j);
        }
    }
    json_decref(j);
    jobfile_fini(&f);
    return r;
}

/* check's answer, by what the job will do; the output folder is no part of it. */
static int verb_plan(struct cli *cli, int argc, char **argv)
{
    struct args_sets sets = {.n = 0};
    struct jobfile f = {0};
    const struct args_option options[] = {{"set", 0, ARGS_SETS, &sets}, {NULL, 0, ARGS_FLAG, NULL}};
    struct buf b = {.max = OUT_MAX};
    char text[1024];
    int status = 0;
    json_t *j = NULL;
    int r = look(cli, argc, argv, options, &sets, &f);
    if (r == CLI_OK)
        r = jobfile_worker(cli, &f, "--check", "--overwrite", NULL, &j, &status);
    if (r == CLI_OK) {
        if (cli->json)
            print_json(cli, j);
        else
            (void)jobfile_tell(cli, &f, j);
        r = as_ours(cli, "--check", status);
    }
    if (r == CLI_OK && !cli->json && jobfile_resolve_quietly(cli, &f) == CLI_OK) {
        (void)fprintf(cli->out, "plan: %s\n",
                      summary_text(f.spec, f.resolved, j, text, sizeof text));
        planprint(j, &b);
        if (b.bytes)
            (void)fwrite(b.data, 1, b.bytes, cli->out);
    }
    buf_free(&b);
    json_decref(j);
    jobfile_fini(&f);
    return r;
}

static int verb_data(struct cli *cli, int argc, char **argv)
{
    struct args_sets sets = {.n = 0};
    struct jobfile f = {0};
    unsigned long long show = 3;
    const struct args_option options[] = {
        {"set", 0, ARGS_SETS, &sets}, {"show", 'n', ARGS_COUNT, &show}, {NULL, 0, ARGS_FLAG, NULL}};
    struct buf b = {.max = OUT_MAX};
    char count[24];
    int status = 0;
    json_t *j = NULL;
    int r = look(cli, argc, argv, options, &sets, &f);
    (void)snprintf(count, sizeof count, "%llu", show);
    if (r == CLI_OK)
        r = jobfile_worker(cli, &f, "data", "--show", count, &j, &status);
    if (r == CLI_OK) {
        if (cli->json)
            print_json(cli, j);
        else
            (void)jobfile_tell(cli, &f, j);
        r = as_ours(cli, "data", status);
    }
    if (r == CLI_OK && !cli->json) {
        if (show > 0)
            dataprint_rows(j, cli->colour, cli->utf8, &b);
        dataprint_summary(j, &b);
        if (b.bytes)
            (void)fwrite(b.data, 1, b.bytes, cli->out);
        if (b.r < 0)
            r = err_set(&cli->err, CLI_ERROR, "too much to print: fewer rows with --show N");
    }
    buf_free(&b);
    json_decref(j);
    jobfile_fini(&f);
    return r;
}

/* ok: step-0 loss 0.6931 = ln 2; peak 1.2 GB (plan 1.1); 0.31 s/step; ... */
static void print_try(struct cli *cli, const json_t *j)
{
    double first = jobview_number(j, "step0_loss"), want = jobview_number(j, "expected_loss");
    double pace = jobview_number(j, "seconds_per_step"), peak = jobview_number(j, "peak_bytes");
    double plan = jobview_number(j, "plan_bytes"), steps = jobview_number(j, "steps");
    char dropped[700];
    format_buf b;

    (void)fprintf(cli->out, "ok: step-0 loss %s", format_fixed(b, first, 4));
    if (!isnan(want) && fabs(want - log(2)) < 1e-9)
        (void)fprintf(cli->out, " = ln 2");
    else if (!isnan(want))
        (void)fprintf(cli->out, " (expected %s)", format_fixed(b, want, 4));
    if (!isnan(peak))
        (void)fprintf(cli->out, "; peak %s", format_bytes(b, peak));
    if (!isnan(plan))
        (void)fprintf(cli->out, " (plan %s)", format_bytes(b, plan));
    if (!isnan(pace))
        (void)fprintf(cli->out, "; %.2g s/step", pace);
    if (!isnan(pace) && !isnan(steps))
        (void)fprintf(cli->out, "; whole run about %s", format_about(b, pace * steps));
    if (*dataprint_dropped(j, dropped, sizeof dropped))
        (void)fprintf(cli->out, "; %s", dropped);
    (void)fprintf(cli->out, "\n");
}

static int verb_try(struct cli *cli, int argc, char **argv)
{
    struct args_sets sets = {.n = 0};
    struct jobfile f = {0};
    const struct args_option options[] = {{"set", 0, ARGS_SETS, &sets}, {NULL, 0, ARGS_FLAG, NULL}};
    int status = 0;
    json_t *j = NULL;
    int r = look(cli, argc, argv, options, &sets, &f);
    if (r == CLI_OK)
        r = jobfile_worker(cli, &f, "try", NULL, NULL, &j, &status);
    if (r == CLI_OK) {
        if (cli->json)
            print_json(cli, j);
        else
            (void)jobfile_tell(cli, &f, j);
        r = as_ours(cli, "try", status);
        if (r == CLI_OK && !cli->json) {
            print_try(cli, j);
            print_memory(cli, j);
        }
    }
    json_decref(j);
    jobfile_fini(&f);
    return r;
}

static int verb_tokenize(struct cli *cli, int argc, char **argv)
{
    const char *model = NULL;
    bool no_special = false;
    const struct args_option options[] = {{"model", 'm', ARGS_TEXT, &model},
                                          {"no-special", 0, ARGS_FLAG, &no_special},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    const char *argv2[8] = {NULL, "tokenize", "--model"};
    size_t n = 3;
    int status = 0;
    int r = args_parse(cli, argc, argv, options, NULL, 0, 0, NULL);
    if (r == CLI_OK && !model)
        r = err_set(&cli->err, CLI_USAGE, "tokenize: --model DIR is missing");
    if (r != CLI_OK)
        return r;
    argv2[n++] = model;
    if (cli->json)
        argv2[n++] = "--json";
    if (no_special)
        argv2[n++] = "--no-special";
    argv2[n] = NULL;
    r = beside_worker(cli, argv2, NULL, NULL, &status);
    return r == CLI_OK ? as_ours(cli, "tokenize", status) : r;
}

const struct cli_verb verb_local[] = {
    {"check", "JOB [--set KEY=VALUE]... [--overwrite] [--json]",
     "every problem of a job file at once; nothing is started", verb_check},
    {"plan", "JOB [--set KEY=VALUE]... [--json]",
     "what a job will do: steps, tokens, arithmetic, a rank's memory by kind", verb_plan},
    {"data", "JOB [--show N] [--set KEY=VALUE]... [--json]",
     "rows as they will be trained, lengths, rows cut or dropped", verb_data},
    {"try", "JOB [--set KEY=VALUE]... [--json]", "two steps on the longest rows, without the queue",
     verb_try},
    {"tokenize", "--model DIR [--no-special] [--json]", "standard input to token ids",
     verb_tokenize},
    {NULL, NULL, NULL, NULL}};
