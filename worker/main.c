/* main.c - align-worker: trains, supervises who trains, and looks before anybody does. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/log.h"
#include "worker/check.h"
#include "worker/device.h"
#include "worker/rank.h"
#include "worker/run.h"
#include "worker/standalone.h"
#include "worker/supervise.h"
#include "worker/views.h"

static const char usage[] =
    "align-worker run JOB [--set KEY=VALUE]... [--overwrite]   trains without a daemon\n"
    "align-worker --check JOB [--set KEY=VALUE]... [--json]    every problem, before anything "
    "starts\n"
    "align-worker data JOB [--show N] [--set KEY=VALUE]...     rows as they will be trained, JSON\n"
    "align-worker try JOB [--set KEY=VALUE]...                 a few steps in a temporary folder, "
    "JSON\n"
    "align-worker tokenize --model DIR [--json] [--no-special] standard input to ids\n"
    "align-worker devices                                      the GPUs it can train on, JSON\n"
    "align-worker supervise GANGDIR                            started by alignd\n"
    "align-worker rank RANK PID                                started by supervise\n"
    "JOB is a YAML or JSON file; \"-\" reads standard input (--base DIR: what its paths start "
    "from)\n";

struct command {
    struct job_args job;
    const char *model;
    long show;
    bool no_special;
};

static int complain(const char *what)
{
    fprintf(stderr, "align-worker: %s\n", what);
    fputs(usage, stderr);
    return RUN_EXIT_USAGE;
}

/* Options of every verb; returns 0 or RUN_EXIT_USAGE. Leaves optind at what follows. */
static int read_options(int argc, char **argv, struct command *c)
{
    static const struct option options[] = {
        {"set", required_argument, NULL, 's'},  {"base", required_argument, NULL, 'b'},
        {"json", no_argument, NULL, 'j'},       {"overwrite", no_argument, NULL, 'o'},
        {"show", required_argument, NULL, 'n'}, {"model", required_argument, NULL, 'm'},
        {"no-special", no_argument, NULL, 'p'}, {NULL, 0, NULL, 0},
    };
    char *end;
    int k;

    while ((k = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (k) {
        case 's':
            if (c->job.n_sets == sizeof c->job.sets / sizeof c->job.sets[0])
                return complain("more than 64 --set");
            c->job.sets[c->job.n_sets++].text = optarg;
            break;
        case 'b':
            c->job.base = optarg;
            break;
        case 'j':
            c->job.json = true;
            break;
        case 'o':
            c->job.overwrite = true;
            break;
        case 'n':
            c->show = strtol(optarg, &end, 10);
            if (*end || end == optarg || c->show < 0 || c->show > 1000000)
                return complain("--show takes a number of rows");
            break;
        case 'm':
            c->model = optarg;
            break;
        case 'p':
            c->no_special = true;
            break;
        default:
            fputs(usage, stderr);
            return RUN_EXIT_USAGE;
        }
    }
    return 0;
}

static int read_job(int argc, char **argv, struct command *c)
{
    const int r = read_options(argc, argv, c);

    if (r != 0)
        return r;
    if (optind != argc - 1)
        return complain("one JOB file, please");
    c->job.path = argv[optind];
    return 0;
}

static void print_problems(const struct job_file *job, const char *file)
{
    for (size_t i = 0; i < job->problems.n; i++) {
        const struct spec_problem *p = &job->problems.v[i];
        if (p->line > 0)
            fprintf(stderr, "%s:%d: %s%s\n", file, p->line, p->warning ? "note: " : "", p->text);
        else if (strncmp(p->text, file, strlen(file)) == 0)
            fprintf(stderr, "%s\n", p->text);
        else
            fprintf(stderr, "%s: %s%s\n", file, p->warning ? "note: " : "", p->text);
    }
}

static void say_line(void *arg, const char *line)
{
    (void)arg;
    puts(line);
    fflush(stdout);
}

static int run_verb(int argc, char **argv)
{
    struct command c = {0};
    struct job_file job;
    struct err err = {""};
    int r = read_job(argc, argv, &c);

    if (r != 0)
        return r;
    const struct standalone_opts o = {.args = &c.job, .say = say_line};
    memset(&job, 0, sizeof job);
    log_set_level(LOG_WARN); /* people read this; the log is in the folder */
    r = standalone_run(&o, &job, &err);
    print_problems(&job, c.job.path);
    if (err.text[0] && r != RUN_EXIT_DONE && r != RUN_EXIT_STOPPED)
        fprintf(stderr, "align-worker: %s\n", err.text);
    job_file_free(&job);
    return r;
}

static int check_verb(int argc, char **argv)
{
    struct command c = {0};
    struct job_file job;
    struct err err = {""};
    char *text = NULL;
    int r = read_job(argc, argv, &c);

    if (r != 0)
        return r;
    memset(&job, 0, sizeof job);
    r = check_job(&c.job, &job, &text, &err);
    if (c.job.json)
        puts(text ? text : "{\"ok\":false,\"problems\":[]}");
    else
        print_problems(&job, c.job.path);
    if (!c.job.json && r == 0)
        printf("%s: no problem found\n", c.job.path);
    free(text);
    job_file_free(&job);
    return r;
}

static int print_document(char *text, int r)
{
    puts(text ? text : "{\"ok\":false,\"problems\":[]}");
    free(text);
    return r;
}

static int data_verb(int argc, char **argv)
{
    struct command c = {.show = 3};
    char *text = NULL;
    int r = read_job(argc, argv, &c);

    if (r != 0)
        return r;
    r = views_data(&c.job, c.show, &text);
    return print_document(text, r);
}

static int try_verb(int argc, char **argv)
{
    struct command c = {0};
    char *text = NULL;
    int r = read_job(argc, argv, &c);

    if (r != 0)
        return r;
    log_set_level(LOG_WARN);
    r = views_try(&c.job, &text);
    return print_document(text, r);
}

static int tokenize_verb(int argc, char **argv)
{
    struct command c = {0};
    struct err err = {""};
    char *text = NULL;
    int r = read_options(argc, argv, &c);

    if (r != 0)
        return r;
    if (!c.model || optind != argc)
        return complain("tokenize needs --model DIR, and reads standard input");
    r = views_tokenize(c.model, c.job.json, !c.no_special, &text, &err);
    if (r == RUN_EXIT_DONE)
        puts(text);
    else
        fprintf(stderr, "align-worker: %s\n", err.text);
    free(text);
    return r;
}

static int supervise_verb(int argc, char **argv)
{
    const struct supervise_opts o = {
        .dir = argc == 2 ? argv[1] : NULL, .token_fd = 3, .lock_fd = -1};
    struct gang_exit e;
    struct err err = {""};
    int r;

    if (argc != 2)
        return complain("supervise takes one gang folder");
    (void)setsid(); /* already a leader: alignd did it */
    r = supervise_gang(&o, &e, &err);
    if (r < 0)
        log_error("supervise", "dir=%s error=\"%s\"", o.dir, err.text);
    return r < 0 ? RUN_EXIT_ERROR : RUN_EXIT_DONE;
}

static int devices_verb(int argc, char **argv)
{
    char *text;

    (void)argv;
    if (argc != 1)
        return complain("devices takes nothing");
    text = device_json();
    puts(text ? text : "{}");
    free(text);
    return RUN_EXIT_DONE;
}

static int rank_verb(int argc, char **argv)
{
    if (argc != 3)
        return complain("rank is started by supervise");
    return rank_run((int)strtol(argv[1], NULL, 10), (pid_t)strtol(argv[2], NULL, 10));
}

int main(int argc, char **argv)
{
    char why[96];
    static const struct {
        const char *name;
        int (*verb)(int argc, char **argv);
    } verbs[] = {
        {"run", run_verb},   {"--check", check_verb},     {"data", data_verb},
        {"try", try_verb},   {"tokenize", tokenize_verb}, {"supervise", supervise_verb},
        {"rank", rank_verb}, {"devices", devices_verb},
    };

    if (argc >= 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return RUN_EXIT_DONE;
    }
    if (argc >= 2 && strcmp(argv[1], "--version") == 0) {
        puts("align-worker " ALIGND_VERSION);
        return RUN_EXIT_DONE;
    }
    for (size_t i = 0; argc >= 2 && i < sizeof verbs / sizeof verbs[0]; i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].verb(argc - 1, argv + 1);
    if (argc >= 2)
        snprintf(why, sizeof why, "there is no verb %.60s", argv[1]);
    return complain(argc < 2 ? "what shall be done?" : why);
}
