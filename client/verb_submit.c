/* verb_submit.c - submit, rerun, resume. */
#include <stdlib.h>
#include <string.h>

#include "client/args.h"
#include "client/conn.h"
#include "client/jobfile.h"
#include "client/jobview.h"
#include "client/summary.h"
#include "proto/spec_value.h"

struct submit {
    struct args_sets sets;
    bool watch, wait, parsable, overwrite, no_check, hold;
    const char *key;
    struct jobfile file;
    uint64_t job;
    char *was; /* rerun, resume: the stored resolved spec */
};

#define SUBMIT_OPTIONS(s)                                                                       \
    {"set", 0, ARGS_SETS, &(s).sets}, {"watch", 0, ARGS_FLAG, &(s).watch},                      \
        {"wait", 0, ARGS_FLAG, &(s).wait}, {"parsable", 0, ARGS_FLAG, &(s).parsable},           \
        {"overwrite", 0, ARGS_FLAG, &(s).overwrite}, {"no-check", 0, ARGS_FLAG, &(s).no_check}, \
        {"hold", 0, ARGS_FLAG, &(s).hold}, {"key", 0, ARGS_TEXT, &(s).key},                     \
    {                                                                                           \
        NULL, 0, ARGS_FLAG, NULL                                                                \
    }

static const char *method_name(const struct spec *s)
{
    return s->method == SPEC_SFT ? "sft" : "dpo";
}

static const char *type_name(const struct spec *s)
{
    static const char *const names[] = {
        [SPEC_DEVICE_AUTO] = "auto", [SPEC_DEVICE_GPU] = "gpu", [SPEC_DEVICE_CPU] = "cpu"};
    return names[s->device_type];
}

static void print_submitted(struct cli *cli, const struct submit *s, const struct msg_submitted *m)
{
    if (cli->json) {
        json_t *j = json_pack("{s:I,s:s}", "job", (json_int_t)m->job, "output_dir", m->output_dir);
        char *text = j ? json_dumps(j, 0) : NULL;
        (void)fprintf(cli->out, "%s\n", text ? text : "{}");
        free(text);
        json_decref(j);
    } else if (s->parsable) {
        (void)fprintf(cli->out, "%llu\n", (unsigned long long)m->job);
    } else {
        (void)fprintf(cli->out, "Submitted job %llu\n", (unsigned long long)m->job);
    }
    (void)fflush(cli->out);
}

/* Checks here, so that what cannot run is not queued (service.md 21). */
static int prepare(struct cli *cli, struct submit *s)
{
    char text[1500];
    int r = s->no_check ? jobfile_resolve(cli, &s->file) : jobfile_resolve_quietly(cli, &s->file);
    bool readable = r == CLI_OK;
    if (readable && !s->overwrite)
        r = jobfile_output_free(cli, &s->file);
    if (!s->no_check && (r == CLI_OK || !readable)) {
        r = jobfile_check(cli, &s->file, s->overwrite);
        if (r == CLI_OK && !readable)
            r = jobfile_resolve(cli, &s->file);
    }
    if (r == CLI_OK)
        (void)fprintf(
            cli->notes, "%s\n",
            summary_text(s->file.spec, s->file.resolved, s->file.check, text, sizeof text));
    return r;
}

static int send(struct cli *cli, struct conn *c, struct submit *s)
{
    const struct spec *spec = s->file.spec;
    struct msg *reply = NULL;
    struct msg req = {.type = MSG_T_submit,
                      .submit = {.name = spec->name,
                                 .user_spec = s->file.user,
                                 .resolved = s->file.resolved,
                                 .output_dir = spec->output_dir,
                                 .method = method_name(spec),
                                 .device_type = type_name(spec),
                                 .devices = (uint64_t)spec->devices,
                                 .steps = (uint64_t)jobview_int(s->file.check, "steps"),
                                 .priority = spec->priority,
                                 .hold = s->hold,
                                 .overwrite = s->overwrite}};
    int r = conn_key(cli, s->key, &req.submit.key);
    if (r == CLI_OK)
        r = conn_call(cli, c, &req, &reply);
    if (r != CLI_OK)
        return r;
    s->job = reply->submitted.job;
    print_submitted(cli, s, &reply->submitted);
    codec_free(reply);
    return CLI_OK;
}

static int follow_up(struct cli *cli, const struct submit *s)
{
    if (s->watch)
        return watch_job(cli, s->job);
    return s->wait ? wait_job(cli, s->job) : CLI_OK;
}

static int verb_submit_run(struct cli *cli, int argc, char **argv)
{
    struct submit s = {.sets = {.n = 0}};
    const struct args_option options[] = {SUBMIT_OPTIONS(s)};
    const char *rest[1];
    struct conn c = {0};
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = jobfile_open(cli, rest[0], &s.sets, &s.file);
    if (r == CLI_OK)
        r = conn_open(cli, &c); /* before the check: it may take long */
    if (r == CLI_OK)
        r = prepare(cli, &s);
    if (r == CLI_OK)
        r = send(cli, &c, &s);
    conn_close(&c);
    jobfile_fini(&s.file);
    return r == CLI_OK ? follow_up(cli, &s) : r;
}

/* The stored job file, with --set over it. */
static int stored(struct cli *cli, struct conn *c, uint64_t job, struct submit *s)
{
    struct msg req = {.type = MSG_T_spec, .spec = {.job = job}}, *reply = NULL;
    int r = conn_call(cli, c, &req, &reply);
    if (r == CLI_OK)
        r = jobfile_from_text(cli, reply->specs.user_spec, &s->sets, &s->file);
    if (r == CLI_OK)
        s->was = strdup(reply->specs.resolved);
    codec_free(reply);
    return r;
}

static int verb_rerun(struct cli *cli, int argc, char **argv)
{
    struct submit s = {.sets = {.n = 0}};
    const struct args_option options[] = {SUBMIT_OPTIONS(s)};
    const char *rest[1];
    unsigned long long id = 0;
    struct conn c = {0};
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = args_job(cli, rest[0], &id);
    if (r == CLI_OK)
        r = conn_open(cli, &c);
    if (r == CLI_OK)
        r = stored(cli, &c, id, &s);
    if (r == CLI_OK)
        r = prepare(cli, &s);
    if (r == CLI_OK)
        r = send(cli, &c, &s);
    conn_close(&c);
    jobfile_fini(&s.file);
    free(s.was);
    return r == CLI_OK ? follow_up(cli, &s) : r;
}

/* device_type: auto: alignd has settled it when the job was submitted. */
static bool left_open(const char *key, const json_t *now)
{
    const char *text = json_string_value(now);
    return strcmp(key, "device_type") == 0 && text && strcmp(text, "auto") == 0;
}

/* What alignd has given a job stays with it: another value would be ignored. */
static int kept(struct cli *cli, const struct submit *s)
{
    static const char *const keys[] = {
        "name",
        "method",
        "optim",
        "output_dir",
        "devices",
        "device_type",
        "priority",
        "dtype",
        "load_in_4bit",
        "bnb_4bit_quant_type",
        "lora_r",
        "lora_alpha",
        "lora_target_modules",
        "use_rslora",
        "train",
        "max_length",
        "train_batch_size",
        "seed",
        "data_seed",
        "model_name_or_path",
        "bnb_4bit_use_double_quant",
    };
    json_t *was = s->was ? json_loads(s->was, 0, NULL) : NULL;
    json_t *now = json_loads(s->file.resolved, 0, NULL);
    json_t *a = json_object_get(was, "values"), *b = json_object_get(now, "values");
    int r = CLI_OK;
    spec_value_fill(a);
    for (size_t i = 0; a && b && r == CLI_OK && i < sizeof keys / sizeof keys[0]; i++)
        if (!json_equal(json_object_get(a, keys[i]), json_object_get(b, keys[i])) &&
            !left_open(keys[i], json_object_get(b, keys[i])))
            r = err_set(&cli->err, CLI_REFUSED,
                        "%s: a resumed job keeps it; alignctl rerun makes a new job", keys[i]);
    json_decref(was);
    json_decref(now);
    return r;
}

/* With --set: the changed spec goes along. The data are checked when it starts, in
 * the run's own folder. */
static int changed_spec(struct cli *cli, struct conn *c, struct submit *s, struct msg_resume *m)
{
    int r = stored(cli, c, m->job, s);
    if (r == CLI_OK)
        r = jobfile_resolve(cli, &s->file);
    if (r == CLI_OK)
        r = kept(cli, s);
    if (r != CLI_OK)
        return r;
    m->user_spec = s->file.user;
    m->resolved = s->file.resolved;
    m->steps = s->file.spec->max_steps > 0 ? (uint64_t)s->file.spec->max_steps : 0;
    return CLI_OK;
}

/* Fewer steps than were done already would end the job without a word. */
static int steps_left(struct cli *cli, struct conn *c, const struct msg_resume *m)
{
    struct msg req = {.type = MSG_T_show, .show = {.job = m->job}}, *reply = NULL;
    if (m->steps == 0)
        return CLI_OK;
    int r = conn_call(cli, c, &req, &reply);
    if (r != CLI_OK)
        return r;
    json_t *job = json_loads(reply->json.text, 0, NULL);
    int64_t done = jobview_int(job, "step");
    codec_free(reply);
    json_decref(job);
    if (done <= (int64_t)m->steps)
        return CLI_OK;
    return err_set(&cli->err, CLI_REFUSED,
                   "job %llu has done %lld step%s already: max_steps must not be less",
                   (unsigned long long)m->job, (long long)done, done == 1 ? "" : "s");
}

static int verb_resume(struct cli *cli, int argc, char **argv)
{
    struct submit s = {.sets = {.n = 0}};
    const struct args_option options[] = {{"set", 0, ARGS_SETS, &s.sets},
                                          {"watch", 0, ARGS_FLAG, &s.watch},
                                          {"wait", 0, ARGS_FLAG, &s.wait},
                                          {"key", 0, ARGS_TEXT, &s.key},
                                          {NULL, 0, ARGS_FLAG, NULL}};
    const char *rest[1];
    unsigned long long id = 0;
    struct conn c = {0};
    struct msg req = {.type = MSG_T_resume}, *reply = NULL;
    int r = args_parse(cli, argc, argv, options, rest, 1, 1, NULL);
    if (r == CLI_OK)
        r = args_job(cli, rest[0], &id);
    if (r == CLI_OK)
        r = conn_key(cli, s.key, &req.resume.key);
    if (r == CLI_OK)
        r = conn_open(cli, &c);
    req.resume.job = s.job = id;
    if (r == CLI_OK && s.sets.n)
        r = changed_spec(cli, &c, &s, &req.resume);
    if (r == CLI_OK && s.sets.n)
        r = steps_left(cli, &c, &req.resume);
    if (r == CLI_OK)
        r = conn_call(cli, &c, &req, &reply);
    if (r == CLI_OK && cli->json)
        (void)fprintf(cli->out, "{\"job\": %llu}\n", id);
    else if (r == CLI_OK)
        (void)fprintf(cli->out, "%s\n",
                      *reply->done.text ? reply->done.text : "the job goes on as its next attempt");
    (void)fflush(cli->out);
    codec_free(reply);
    conn_close(&c);
    jobfile_fini(&s.file);
    free(s.was);
    return r == CLI_OK ? follow_up(cli, &s) : r;
}

#define SUBMIT_USAGE                                                               \
    "[--set KEY=VALUE]... [--watch] [--wait] [--parsable] [--overwrite] [--hold] " \
    "[--key HEX] [--no-check] [--json]"

const struct cli_verb verb_submit[] = {
    {"submit", "JOB " SUBMIT_USAGE, "checks a job file and queues it", verb_submit_run},
    {"resume", "ID [--set KEY=VALUE]... [--watch] [--wait] [--key HEX]",
     "continues a job as its next attempt", verb_resume},
    {"rerun", "ID " SUBMIT_USAGE, "submits a job's stored file as a new job", verb_rerun},
    {NULL, NULL, NULL, NULL}};
