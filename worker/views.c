/* views.c - see views.h. */
#include "worker/views.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/buf.h"
#include "worker/claim.h"
#include "worker/dataset.h"
#include "worker/dataview.h"
#include "worker/device.h"
#include "worker/host.h"
#include "worker/json_text.h"
#include "worker/model.h"
#include "worker/run.h"
#include "worker/text.h"
#include "worker/tokenizer.h"
#include "worker/try.h"

struct json_t *views_problems(const struct spec_problems *p)
{
    json_t *list = json_array();

    for (size_t i = 0; i < p->n; i++)
        json_array_append_new(list, json_pack("{s:i,s:b,s:s}", "line", p->v[i].line, "warning",
                                              (int)p->v[i].warning, "text", p->v[i].text));
    return list;
}

struct json_t *views_memory(const struct memory_plan *m)
{
    const struct {
        const char *name;
        size_t bytes;
    } v[] = {{"free", m->free},
             {"need", m->need},
             {"weights", m->engine.weights},
             {"tables", m->engine.tables},
             {"activations", m->engine.activations},
             {"scratch", m->engine.scratch},
             {"backend", m->engine.context},
             {"adapter", m->adapter},
             {"rest", m->rest},
             {"process", m->process}};
    json_t *o = json_object();

    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++)
        json_object_set_new(o, v[i].name, json_integer((json_int_t)v[i].bytes));
    json_object_set_new(o, "in_4bit", json_boolean(m->in_4bit));
    json_object_set_new(o, "dequantise", json_string(m->per_use ? "for each product" : "once"));
    json_object_set_new(o, "layers", json_integer((json_int_t)m->layers));
    json_object_set_new(o, "recomputed_layers", json_integer((json_int_t)m->recompute));
    json_object_set_new(o, "token_budget", json_integer((json_int_t)m->plan.token_budget));
    return o;
}

/* Takes o. */
static char *finish(json_t *o, struct job_file *job, bool ok)
{
    char *text;

    json_object_set_new(o, "ok", json_boolean(ok));
    json_object_set_new(o, "problems", views_problems(&job->problems));
    text = json_text(o, JSON_COMPACT);
    json_decref(o);
    job_file_free(job);
    return text;
}

/* The job file, or a document that says why not. */
static int begin(const struct job_args *a, struct job_file *job, char **ret_json)
{
    struct err err = {""};
    const int r = job_file_read(a, job, &err);

    if (r == 0)
        return 0;
    if (r != -EINVAL)
        (void)job_file_problem(job, NULL, false, err.text);
    *ret_json = finish(json_object(), job, false);
    return r == -EINVAL ? RUN_EXIT_ERROR : RUN_EXIT_USAGE;
}

/* ---- data ---- */

static json_t *part_of(const char *name, const json_t *tokens)
{
    json_t *list = json_array();

    for (size_t i = 0; i < json_array_size(tokens); i++) {
        const json_t *t = json_array_get(tokens, i); /* [id, text, trained, kind] */
        const char *kind = json_string_value(json_array_get(t, 3));
        const bool special = kind && (strcmp(kind, "bos") == 0 || strcmp(kind, "eos") == 0);
        json_array_append_new(list, json_pack("{s:O,s:O,s:b,s:O}", "id", json_array_get(t, 0),
                                              "text", json_array_get(t, 1), "special", (int)special,
                                              "trained", json_array_get(t, 2)));
    }
    return json_pack("{s:s,s:o}", "name", name, "tokens", list);
}

static json_t *example_of(const json_t *row)
{
    static const char *const parts[] = {"prompt", "chosen", "rejected", "completion"};
    json_t *list = json_array();

    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const json_t *tokens = json_object_get(row, parts[i]);
        if (json_array_size(tokens) > 0)
            json_array_append_new(list, part_of(parts[i], tokens));
    }
    return json_pack("{s:O,s:O,s:O,s:o}", "path", json_object_get(row, "source"), "row",
                     json_object_get(row, "row"), "cut", json_object_get(row, "cut"), "parts",
                     list);
}

static int64_t sum_rows(const json_t *sources)
{
    int64_t rows = 0;

    for (size_t i = 0; i < json_array_size(sources); i++) {
        const json_t *s = json_array_get(sources, i);
        const char *set = json_string_value(json_object_get(s, "set"));
        if (set && strcmp(set, "train") == 0)
            rows += json_integer_value(json_object_get(s, "rows"));
    }
    return rows;
}

/* dataview's document in the words of docs/PROCESSES.md. */
static json_t *data_document(const json_t *view)
{
    json_t *shown = json_array(), *o;
    const json_t *rows = json_object_get(view, "rows");
    const json_t *lengths = json_object_get(json_object_get(view, "lengths"), "pair");

    for (size_t i = 0; i < json_array_size(rows); i++)
        json_array_append_new(shown, example_of(json_array_get(rows, i)));
    o = json_object();
    json_object_set(o, "sources", json_object_get(view, "sources"));
    json_object_set_new(o, "rows", json_integer(sum_rows(json_object_get(view, "sources"))));
    json_object_set(o, "dropped", json_object_get(view, "dropped"));
    json_object_set(o, "cut", json_object_get(view, "cut"));
    json_object_set(o, "examples", json_object_get(view, "train"));
    json_object_set(o, "eval_examples", json_object_get(view, "eval"));
    json_object_set(o, "longest", json_object_get(view, "longest"));
    if (lengths)
        json_object_set_new(o, "lengths", json_deep_copy(lengths));
    json_object_set(o, "lengths_by_part", json_object_get(view, "lengths"));
    json_object_set_new(o, "examples_shown", shown);
    return o;
}

static int read_data(const struct spec *spec, int64_t show, json_t **ret, struct err *err)
{
    struct model_config config;
    struct tokenizer *tok = NULL;
    struct dataset *data = NULL;
    struct text text = {0};
    json_t *view = NULL;
    int r = model_config_read(spec->model_dir, &config, err);

    if (r == 0)
        r = tokenizer_open(spec->model_dir, &tok, err);
    if (r == 0)
        r = dataset_open(spec, tok, (int32_t)config.vocab, &data, err);
    if (r == 0 && dataview_show(data, spec, tok, show, &text) < 0)
        r = err_set(err, -ENOMEM, "no memory to show the data");
    if (r == 0) {
        view = json_loadb(text.s, text.n, 0, NULL);
        if (!view)
            r = err_set(err, -EIO, "the data cannot be shown as JSON");
    }
    if (r == 0)
        *ret = data_document(view);
    json_decref(view);
    text_free(&text);
    dataset_close(data);
    tokenizer_close(tok);
    return r;
}

int views_data(const struct job_args *a, int64_t show, char **ret_json)
{
    struct job_file job;
    struct err err = {""};
    json_t *o = NULL;
    int r = begin(a, &job, ret_json);

    if (r != 0)
        return r;
    r = read_data(job.spec, show, &o, &err);
    if (r < 0)
        (void)job_file_data_problem(&job, job.spec, err.text);
    *ret_json = finish(o ? o : json_object(), &job, r == 0);
    return r == 0 ? RUN_EXIT_DONE : RUN_EXIT_ERROR;
}

/* ---- try ---- */

static json_t *number_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *try_document(const struct spec *spec, const struct try_result *t)
{
    json_t *dropped = json_object(), *o = json_object();
    char text[320];

    for (int i = 0; i < DROP_REASONS; i++)
        if (t->dropped[i] > 0)
            json_object_set_new(dropped, drop_reason_name((enum drop_reason)i),
                                json_integer(t->dropped[i]));
    json_object_set_new(o, "method", json_string(spec->method == SPEC_DPO ? "dpo" : "sft"));
    json_object_set_new(o, "step0_loss", number_or_null(t->step0_loss));
    json_object_set_new(o, "expected_loss",
                        t->starts_at_reference ? json_real(M_LN2) : json_null());
    json_object_set_new(o, "step1_loss", number_or_null(t->step1_loss));
    json_object_set_new(o, "grad_norm", number_or_null(t->grad_norm));
    json_object_set_new(o, "eval_loss", number_or_null(t->eval_loss));
    json_object_set_new(o, "peak_bytes", json_integer((json_int_t)t->peak_bytes));
    json_object_set_new(o, "plan_bytes", json_integer((json_int_t)t->plan_bytes));
    memory_text(&t->memory, text, sizeof text);
    json_object_set_new(o, "memory", views_memory(&t->memory));
    json_object_set_new(o, "memory_text", json_string(text));
    json_object_set_new(o, "longest_seconds", number_or_null(t->longest_seconds));
    json_object_set_new(o, "seconds_per_step", number_or_null(t->seconds_per_step));
    json_object_set_new(o, "total_seconds", number_or_null(t->total_seconds));
    json_object_set_new(o, "steps", json_integer(t->plan.steps));
    json_object_set_new(o, "epochs", number_or_null(t->plan.epochs));
    json_object_set_new(o, "rows", json_integer(t->rows));
    json_object_set_new(o, "dropped", dropped);
    json_object_set_new(o, "cut", json_integer(t->n_cut));
    json_object_set_new(o, "longest", json_integer(t->longest));
    json_object_set_new(o, "lora_parameters", json_integer(t->lora_parameters));
    json_object_set_new(o, "checkpoint", json_boolean(t->checkpoint));
    json_object_set_new(o, "checkpoint_bytes", json_integer((json_int_t)t->checkpoint_bytes));
    return o;
}

int views_try(const struct job_args *a, char **ret_json)
{
    struct claim claim = {.n = 0};
    struct device_set devices;
    struct try_result result;
    struct job_file job;
    struct err err = {""};
    int r = begin(a, &job, ret_json);

    if (r != 0)
        return r;
    host_calm_threads();
    r = device_look(job.spec, &devices, &err);
    device_settle(job.spec, devices.gpu);
    if (r == 0)
        r = claim_take(&claim, &devices, 1, &err);
    if (r == 0)
        r = try_run(job.spec, &devices,
                    host_threads(job.spec->threads_per_device, job.spec->devices), &result, &err);
    claim_release(&claim);
    if (r < 0)
        (void)job_file_data_problem(&job, job.spec, err.text);
    json_t *o = r == 0 ? try_document(job.spec, &result) : json_object();
    *ret_json = finish(o, &job, r == 0);
    return r == 0 ? RUN_EXIT_DONE : r == -ENOMEM ? RUN_EXIT_OOM : RUN_EXIT_ERROR;
}

/* ---- tokenize ---- */

static int read_input(struct buf *b)
{
    char chunk[65536];

    for (;;) {
        const ssize_t n = read(STDIN_FILENO, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : b->r;
        (void)buf_add(b, chunk, (size_t)n);
    }
}

int views_tokenize(const char *model_dir, bool json, bool special, char **ret_text, struct err *err)
{
    struct tokenizer *tok = NULL;
    struct tokens ids = {0};
    struct buf in = {.max = LIMIT_ROW_BYTES}, out = {.max = (size_t)16 * LIMIT_ROW_BYTES};
    int r = read_input(&in);

    if (r < 0) {
        err_set(err, r, "standard input: %s", strerror(-r));
        goto done;
    }
    r = tokenizer_open(model_dir, &tok, err);
    if (r < 0)
        goto done;
    r = tokenizer_encode(tok, in.data ? in.data : "", in.bytes, special, &ids);
    if (r < 0) {
        err_set(err, r, "standard input: %s",
                r == -EILSEQ ? "not UTF-8: save the text as UTF-8" : strerror(-r));
        goto done;
    }
    (void)buf_str(&out, json ? "[" : "");
    for (size_t i = 0; i < ids.n; i++)
        (void)buf_printf(&out, "%s%d", i == 0 ? "" : json ? ", " : " ", ids.ids[i]);
    (void)buf_str(&out, json ? "]" : "");
    r = out.r < 0 ? err_set(err, out.r, "too much text") : 0;
    if (r == 0) {
        *ret_text = out.data ? out.data : calloc(1, 1);
        out.data = NULL;
    }

done:
    buf_free(&in);
    buf_free(&out);
    tokens_free(&ids);
    tokenizer_close(tok);
    return r < 0 ? RUN_EXIT_ERROR : RUN_EXIT_DONE;
}
