/* verb_queue.c - list, show, devices. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/args.h"
#include "client/conn.h"
#include "client/dropped.h"
#include "client/jobview.h"
#include "client/left.h"
#include "client/table.h"

enum { RECENT_MS = 24 * 3600 * 1000, EXIT_STOPPED = 85 /* docs/STANDALONE.md */ };

/* A request answered with a JSON document. */
static int ask_json(struct cli *cli, struct conn *c, const struct msg *req, json_t **ret,
                    uint64_t *ret_next, uint64_t *ret_hidden)
{
    struct msg *reply = NULL;
    json_error_t je;
    int r = conn_call(cli, c, req, &reply);
    if (r != CLI_OK)
        return r;
    *ret = json_loads(reply->json.text, JSON_DECODE_ANY, &je);
    if (ret_next)
        *ret_next = reply->json.next;
    if (ret_hidden)
        *ret_hidden = reply->json.hidden;
    codec_free(reply);
    return *ret ? CLI_OK
                : err_set(&cli->err, CLI_ERROR, "alignd's answer is no JSON: %.200s", je.text);
}

static void print_json(struct cli *cli, const json_t *j)
{
    char *text = json_dumps(j, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (text)
        (void)fprintf(cli->out, "%s\n", text);
    free(text);
}

/* All pages of the queue in one array. */
static int fetch_list(struct cli *cli, struct conn *c, struct msg_list what, json_t **ret,
                      uint64_t *ret_hidden)
{
    json_t *all = json_array();
    uint64_t after = 0;
    do {
        struct msg req = {.type = MSG_T_list, .list = what};
        json_t *page = NULL;
        uint64_t next = 0;
        req.list.after = after;
        int r = ask_json(cli, c, &req, &page, &next, after ? NULL : ret_hidden);
        if (r != CLI_OK) {
            json_decref(all);
            return r;
        }
        (void)json_array_extend(all, page);
        json_decref(page);
        after = next > after ? next : 0; /* a page that leads nowhere ends it */
    } while (after);
    *ret = all;
    return CLI_OK;
}

static void list_row(struct table *t, const json_t *job, int64_t now_ms)
{
    char devices[256], reason[512];
    format_buf b, loss;
    table_cell(t, "%lld", (long long)jobview_int(job, "job"));
    table_cell(t, "%s", jobview_text(job, "name"));
    table_cell(t, "%s", jobview_text(job, "user"));
    table_cell(t, "%s", jobview_short(jobview_text(job, "state")));
    table_cell(t, "%s", format_clock(b, jobview_seconds(job, now_ms)));
    table_cell(t, "%s", jobview_text(job, "method"));
    table_cell(t, "%s", jobview_step(b, job));
    table_cell(t, "%s", format_loss(loss, jobview_number(job, "loss")));
    table_cell(t, "%s", jobview_devices(job, devices, sizeof devices));
    table_cell(t, "%s", jobview_reason(job, reason, sizeof reason));
}

/* hidden: how many alignd has left out already. */
static int print_list(struct cli *cli, const json_t *jobs, bool all, uint64_t hidden)
{
    static const struct table_column columns[] = {
        {"JOBID", true, 0},     {"NAME", false, 24},  {"USER", false, 12}, {"ST", false, 0},
        {"TIME", true, 0},      {"METHOD", false, 8}, {"STEP", true, 0},   {"LOSS", true, 0},
        {"DEVICES", false, 24}, {"REASON", false, 0}};
    struct table *t = table_new(columns, sizeof columns / sizeof columns[0]);
    int64_t now = jobview_now_ms();
    if (!t)
        return err_set(&cli->err, CLI_ERROR, "out of memory");
    for (size_t i = 0; i < json_array_size(jobs); i++) {
        const json_t *job = json_array_get(jobs, i);
        if (all || !jobview_over(job) || now - jobview_int(job, "ended_ms") < RECENT_MS)
            list_row(t, job, now);
        else
            hidden++;
    }
    int r = table_print(t, cli->out);
    table_free(t);
    if (hidden)
        (void)fprintf(cli->notes, "%llu job%s that ended more than a day ago: --all\n",
                      (unsigned long long)hidden, hidden == 1 ? "" : "s");
    return r < 0 ? err_set(&cli->err, CLI_ERROR, "out of memory") : CLI_OK;
}

static int verb_list(struct cli *cli, int argc, char **argv)
{
    bool all = false, active = false, mine = false;
    const struct args_option options[] = {{"all", 'a', ARGS_FLAG, &all},
                                          {"active", 0, ARGS_FLAG, &active},
                                          {"mine", 'm', ARGS_FLAG, &mine},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    struct conn c = {0};
    json_t *jobs = NULL;
    uint64_t hidden = 0;
    int r = args_parse(cli, argc, argv, options, NULL, 0, 0, NULL);
    struct msg_list what = {.mine = mine, .active = active};
    if (!all && !active && !cli->json) /* of years of jobs only what is shown need be sent */
        what.ended_after_ms = (uint64_t)(jobview_now_ms() - RECENT_MS);
    if (r == CLI_OK)
        r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = fetch_list(cli, &c, what, &jobs, &hidden);
    conn_close(&c);
    if (r == CLI_OK && cli->json)
        print_json(cli, jobs);
    else if (r == CLI_OK)
        r = print_list(cli, jobs, all, hidden);
    json_decref(jobs);
    return r;
}

static void field(struct cli *cli, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void field(struct cli *cli, const char *name, const char *fmt, ...)
{
    char raw[2048], plain[2048];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(raw, sizeof raw, fmt, ap);
    va_end(ap);
    (void)fprintf(cli->out, "%-12s %s\n", name, format_plain(plain, sizeof plain, raw, sizeof raw));
}

/* How an attempt ended, where that says more than its state. */
static const char *exit_text(const json_t *a, char *buf, size_t room)
{
    int64_t code = jobview_int(a, "exit_code"), number = jobview_int(a, "exit_signal");
    int64_t rank = jobview_int(a, "first_rank");
    char who[32] = "";
    if (rank >= 0)
        (void)snprintf(who, sizeof who, "rank %lld: ", (long long)rank);
    buf[0] = '\0';
    if (number)
        (void)snprintf(buf, room, ", %ssignal %lld (%s)", who, (long long)number,
                       strsignal((int)number));
    else if (code == EXIT_STOPPED)
        (void)snprintf(buf, room, ", stopped after a checkpoint");
    else if (code)
        (void)snprintf(buf, room, ", %sexit code %lld", who, (long long)code);
    return buf;
}

static void show_attempts(struct cli *cli, const json_t *job)
{
    const json_t *list = json_object_get(job, "attempts");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *a = json_array_get(list, i);
        char line[1024];
        format_buf from, rss;
        bool now = !jobview_over(job) && jobview_int(a, "attempt") == jobview_int(job, "attempt");
        int n = snprintf(line, sizeof line, "%lld: %s, step %lld, since %s",
                         (long long)jobview_int(a, "attempt"), jobview_text(a, "state"),
                         (long long)jobview_int(now ? job : a, "step"),
                         format_when(from, jobview_int(a, "started_ms")));
        if (jobview_int(a, "resume_step") > 0)
            n += snprintf(line + n, sizeof line - (size_t)n, ", resumed at step %lld",
                          (long long)jobview_int(a, "resume_step"));
        if (jobview_int(a, "peak_rss_kb") > 0)
            n += snprintf(line + n, sizeof line - (size_t)n, ", peak %s a rank",
                          format_bytes(rss, 1024.0 * (double)jobview_int(a, "peak_rss_kb")));
        (void)exit_text(a, line + n, sizeof line - (size_t)n);
        field(cli, i ? "" : "attempts", "%s", line);
    }
}

static void show_dropped(struct cli *cli, const json_t *dropped)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)dropped, key, value)
    {
        format_buf b;
        field(cli, "dropped", "%s row%s: %s", format_count(b, json_integer_value(value)),
              json_integer_value(value) == 1 ? "" : "s", key);
    }
    if (dropped && json_object_size(dropped) == 0)
        field(cli, "dropped", "no row");
}

static void print_show(struct cli *cli, const json_t *job)
{
    char text[1024];
    format_buf a, b;
    field(cli, "job", "%lld", (long long)jobview_int(job, "job"));
    field(cli, "name", "%s", jobview_text(job, "name"));
    field(cli, "user", "%s", jobview_text(job, "user"));
    field(cli, "state", "%s", jobview_text(job, "state"));
    field(cli, "reason", "%s", jobview_reason(job, text, sizeof text));
    field(cli, "method", "%s", jobview_text(job, "method"));
    field(cli, "progress", "step %s, loss %s", jobview_step(a, job),
          format_loss(b, jobview_number(job, "loss")));
    field(cli, "devices", "%s", jobview_devices(job, text, sizeof text));
    field(cli, "submitted", "%s", format_when(a, jobview_int(job, "submitted_ms")));
    if (jobview_int(job, "started_ms") > 0)
        field(cli, "started", "%s, ran %s", format_when(a, jobview_int(job, "started_ms")),
              format_clock(b, jobview_seconds(job, jobview_now_ms())));
    if (jobview_int(job, "ended_ms") > 0 && jobview_over(job))
        field(cli, "ended", "%s", format_when(a, jobview_int(job, "ended_ms")));
    if (jobview_int(job, "priority"))
        field(cli, "priority", "%lld", (long long)jobview_int(job, "priority"));
    field(cli, "output_dir", "%s", jobview_text(job, "output_dir"));
    if (jobview_over(job) && *left_adapter(job, text, sizeof text))
        field(cli, "adapter", "%s", text);
    if (*jobview_text(job, "error"))
        field(cli, "error", "%s", jobview_text(job, "error"));
    show_dropped(cli, json_object_get(job, "dropped"));
    show_attempts(cli, job);
}

static int verb_show(struct cli *cli, int argc, char **argv)
{
    bool spec = false;
    const struct args_option options[] = {{"spec", 0, ARGS_FLAG, &spec},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    const char *rest[1] = {NULL};
    unsigned long long id = 0;
    struct conn c = {0};
    json_t *job = NULL;
    int r = args_parse(cli, argc, argv, options, rest, 0, 1, NULL);
    if (r == CLI_OK && rest[0])
        r = args_job(cli, rest[0], &id);
    if (r == CLI_OK)
        r = conn_open(cli, &c);
    struct msg req = {.type = MSG_T_show, .show = {.job = id}};
    if (r == CLI_OK)
        r = ask_json(cli, &c, &req, &job, NULL, NULL);
    if (r == CLI_OK && !json_object_get(job, "dropped"))
        json_object_set_new(job, "dropped", dropped_count(jobview_text(job, "output_dir")));
    if (r == CLI_OK && spec) {
        struct msg ask = {.type = MSG_T_spec, .spec = {.job = (uint64_t)jobview_int(job, "job")}};
        struct msg *reply = NULL;
        r = conn_call(cli, &c, &ask, &reply);
        if (r == CLI_OK)
            (void)fprintf(cli->out, "%s\n", reply->specs.resolved);
        codec_free(reply);
    } else if (r == CLI_OK && cli->json) {
        print_json(cli, job);
    } else if (r == CLI_OK) {
        print_show(cli, job);
    }
    conn_close(&c);
    json_decref(job);
    return r;
}

static void memory_cell(struct table *t, const json_t *d)
{
    const json_t *used = json_object_get(d, "memory_used"),
                 *total = json_object_get(d, "memory_total");
    if (json_is_number(used) && json_is_number(total))
        table_cell(t, "%.1f/%.1f GiB", json_number_value(used) / (1 << 30),
                   json_number_value(total) / (1 << 30));
    else
        table_cell(t, "-");
}

static void number_cell(struct table *t, const json_t *v, const char *unit)
{
    if (json_is_number(v))
        table_cell(t, "%lld %s", (long long)json_integer_value(v), unit);
    else
        table_cell(t, "-");
}

static void device_row(struct table *t, const json_t *d, bool gpus, bool whole)
{
    const char *reason = jobview_text(d, "reason"), *note = jobview_text(d, "note");
    long long job = jobview_int(d, "job");
    format_buf id;

    table_cell(t, "%s",
               whole ? jobview_text(d, "device") : jobview_device(jobview_text(d, "device"), id));
    table_cell(t, "%s", jobview_text(d, "type"));
    if (gpus)
        table_cell(t, "%s", *jobview_text(d, "name") ? jobview_text(d, "name") : "-");
    table_cell(t, "%s", jobview_text(d, "state"));
    if (job)
        table_cell(t, "%lld", job);
    else
        table_cell(t, "-");
    table_cell(t, "%s", *jobview_text(d, "user") ? jobview_text(d, "user") : "-");
    if (gpus) {
        memory_cell(t, d);
        number_cell(t, json_object_get(d, "utilisation"), "%");
        number_cell(t, json_object_get(d, "temperature"), "C");
    }
    table_cell(t, "%s%s%s", reason, *reason && *note ? "; " : "", note);
}

static bool any_gpu(const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (strcmp(jobview_text(json_array_get(list, i), "type"), "gpu") == 0)
            return true;
    return false;
}

/* Two GPUs have the same beginning: their UUIDs are told whole. */
static bool alike(const json_t *list)
{
    format_buf a, b;
    for (size_t i = 0; i < json_array_size(list); i++)
        for (size_t k = i + 1; k < json_array_size(list); k++)
            if (strcmp(jobview_device(jobview_text(json_array_get(list, i), "device"), a),
                       jobview_device(jobview_text(json_array_get(list, k), "device"), b)) == 0)
                return true;
    return false;
}

static int print_devices(struct cli *cli, const json_t *list)
{
    static const struct table_column with_gpus[] = {
        {"ID", false, 0},  {"TYPE", false, 0},  {"NAME", false, 24}, {"STATE", false, 0},
        {"JOB", true, 0},  {"USER", false, 16}, {"MEMORY", true, 0}, {"UTIL", true, 0},
        {"TEMP", true, 0}, {"REASON", false, 0}};
    static const struct table_column without[] = {{"ID", false, 0},    {"TYPE", false, 0},
                                                  {"STATE", false, 0}, {"JOB", true, 0},
                                                  {"USER", false, 16}, {"REASON", false, 0}};
    const bool gpus = any_gpu(list), whole = alike(list);
    struct table *t = gpus ? table_new(with_gpus, sizeof with_gpus / sizeof with_gpus[0])
                           : table_new(without, sizeof without / sizeof without[0]);
    if (!t)
        return err_set(&cli->err, CLI_ERROR, "out of memory");
    for (size_t i = 0; i < json_array_size(list); i++)
        device_row(t, json_array_get(list, i), gpus, whole);
    int r = table_print(t, cli->out);
    table_free(t);
    return r < 0 ? err_set(&cli->err, CLI_ERROR, "out of memory") : CLI_OK;
}

static int verb_devices(struct cli *cli, int argc, char **argv)
{
    const struct args_option options[] = {{NULL, 0, ARGS_FLAG, NULL}};
    struct msg req = {.type = MSG_T_devices};
    struct conn c = {0};
    json_t *list = NULL;
    int r = args_parse(cli, argc, argv, options, NULL, 0, 0, NULL);
    if (r == CLI_OK)
        r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = ask_json(cli, &c, &req, &list, NULL, NULL);
    if (r == CLI_OK && cli->json)
        print_json(cli, list);
    else if (r == CLI_OK)
        r = print_devices(cli, list);
    if (r == CLI_OK && c.note[0])
        (void)fprintf(cli->notes, "%s\n", c.note);
    conn_close(&c);
    json_decref(list);
    return r;
}

const struct cli_verb verb_queue[] = {
    {"list", "[--all] [--active] [--mine] [--json]", "the queue, in squeue's words", verb_list},
    {"show", "[ID] [--json] [--spec]", "everything about a job (default: your newest)", verb_show},
    {"devices", "[--json]", "the devices, and which job has them", verb_devices},
    {NULL, NULL, NULL, NULL}};
