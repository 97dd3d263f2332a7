/* check.c - see check.h. One thing's failure does not hide another's. */
#include "worker/check.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/buf.h"
#include "proto/spec.h"
#include "proto/spec_key.h"
#include "worker/dataset.h"
#include "worker/device.h"
#include "worker/flops.h"
#include "worker/folder.h"
#include "worker/gang.h"
#include "worker/host.h"
#include "worker/json_text.h"
#include "worker/model.h"
#include "worker/plan.h"
#include "worker/run.h"
#include "worker/tokenizer.h"
#include "worker/trainer.h"
#include "worker/views.h"

struct check {
    const struct job_args *args;
    struct job_file *job;
    struct spec *spec; /* the job's, or its draft                                     */
    struct device_set devices;
    json_t *o;
    bool used_folder; /* a problem is output_dir's                                   */
    int others;       /* problems besides                                            */
};

static void problem(struct check *c, const char *key, const char *text)
{
    (void)job_file_problem(c->job, key, false, text);
    c->others++;
}

static void check_devices(struct check *c)
{
    struct err err;
    char text[512];

    if (device_look(c->spec, &c->devices, &err) < 0) {
        problem(c, "device_type", err.text);
    } else if (!c->devices.gpu && c->spec->device_type == SPEC_DEVICE_AUTO && host_gpus() > 0) {
        snprintf(text, sizeof text, "device_type: auto: trains on the CPU, %d GPU%s seen but: %s",
                 host_gpus(), host_gpus() == 1 ? "" : "s", c->devices.why);
        (void)job_file_problem(c->job, "device_type", true, text);
    }
    device_settle(c->spec, c->devices.gpu);
    json_object_set_new(c->o, "device_type", json_string(c->devices.gpu ? "gpu" : "cpu"));
}

/* The run that `align-worker run` would continue is no obstacle. */
static bool same_run(const struct check *c, const char *dir)
{
    char path[LIMIT_PATH];
    struct gang *g = NULL;
    struct err err;
    bool same = false;
    int fd;

    if (snprintf(path, sizeof path, "%s/.gang", dir) >= (int)sizeof path)
        return false;
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (gang_read(fd, &g, &err) == 0)
        same = c->job->resolved && spec_same_values(g->spec, c->job->resolved);
    gang_free(g);
    close(fd);
    return same;
}

/* With {id} in it, the folder gets a name that is new; what is above it counts. */
static void check_folder(struct check *c)
{
    const char *dir = c->spec->output_dir;
    enum folder_kind kind;
    struct err err;
    char text[512];

    if (folder_look(dir, &kind, &err) < 0) {
        problem(c, "output_dir", err.text);
        return;
    }
    if (kind == FOLDER_FREE || c->args->overwrite || same_run(c, dir))
        return;
    snprintf(text, sizeof text,
             "output_dir: %.300s holds %s: put {id} into output_dir, or use --overwrite", dir,
             kind == FOLDER_RUN ? "another run" : "other files");
    (void)job_file_problem(c->job, "output_dir", false, text);
    c->used_folder = true;
}

static void set_data(struct check *c, const struct dataset *d)
{
    const struct spec *s = c->job->spec;
    int64_t rows = 0, usable = 0, counts[DROP_REASONS] = {0};
    json_t *dropped = json_object();

    for (int i = 0; i < s->n_train; i++) {
        rows += d->n_rows[i];
        usable += d->n_usable[i];
    }
    for (int64_t i = 0; i < d->n_dropped; i++)
        counts[d->dropped[i].reason]++;
    for (int i = 0; i < DROP_REASONS; i++)
        if (counts[i] > 0)
            json_object_set_new(dropped, drop_reason_name((enum drop_reason)i),
                                json_integer(counts[i]));
    json_object_set_new(c->o, "rows", json_integer(rows));
    json_object_set_new(c->o, "usable", json_integer(usable));
    json_object_set_new(c->o, "dropped", dropped);
    json_object_set_new(c->o, "cut", json_integer(d->n_cut));
    json_object_set_new(c->o, "examples", json_integer(d->n_train));
    json_object_set_new(c->o, "eval_examples", json_integer(d->n_eval));
    json_object_set_new(c->o, "longest", json_integer(d->longest));
}

/* Memory for one rank: its share of the host's, or all of a GPU. What the driver and kernels'
 * code take there is measured when the job starts: to look means to open the device, where
 * others may be training. So nothing is refused here that might fit. */
static size_t memory_for_rank(const struct check *c)
{
    struct kn_ctx *ctx = NULL;
    struct kn_info info = {.mem_free = SIZE_MAX};

    if (c->devices.gpu)
        return c->devices.v[0].mem_total;
    if (c->devices.ops->open(&(struct kn_open){.threads = 1, .compute = KN_F32}, &ctx) == 0)
        (void)c->devices.ops->info(ctx, &info);
    c->devices.ops->close(ctx);
    return info.mem_free / (size_t)(c->spec->devices > 1 ? c->spec->devices : 1);
}

static void set_memory(struct check *c, const struct memory_plan *m)
{
    char text[320];

    memory_text(m, text, sizeof text);
    json_object_set_new(c->o, "plan_bytes", json_integer((json_int_t)m->need));
    json_object_set_new(c->o, "memory", views_memory(m));
    json_object_set_new(c->o, "memory_text", json_string(text));
}

/* Of all ranks; "reference" is part of "run". */
static void set_flops(struct check *c, const struct dataset *d, const struct model_config *config,
                      const struct memory_plan *m, int64_t parameters)
{
    const double first = m->plan.epochs < 1 ? m->plan.epochs : 1;
    struct flops f;

    flops_count(config, d, parameters, &f);
    if (c->spec->method != SPEC_DPO)
        f.reference = 0;
    json_object_set_new(c->o, "flops",
                        json_pack("{s:f,s:f,s:f}", "step",
                                  flops_step(&f, &m->plan, m->recompute, m->layers), "reference",
                                  f.reference * first, "run",
                                  flops_run(&f, &m->plan, m->recompute, m->layers)));
}

static void set_plan(struct check *c, const struct dataset *d, const struct model_config *config)
{
    struct memory_plan memory;
    struct plan plan;
    struct err err;
    struct moments_shape adapter;

    if (plan_make(c->spec, d, 0, &plan, &err) < 0 ||
        lora_shape(config, c->spec, &adapter, &err) < 0) {
        problem(c, NULL, err.text);
        return;
    }
    json_object_set_new(c->o, "lora_parameters", json_integer(adapter.n));
    if (c->devices.ops) {
        const struct memory_ask ask = {.spec = c->spec,
                                       .ops = c->devices.ops,
                                       .config = config,
                                       .data = d,
                                       .adapter = adapter,
                                       .gpu = c->devices.gpu,
                                       .free = memory_for_rank(c),
                                       .sharing = c->devices.gpu ? 1 : c->spec->devices};
        if (memory_choose(&ask, &memory, &err) < 0) {
            problem(c, NULL, err.text);
        } else {
            plan = memory.plan;
            set_memory(c, &memory);
            set_flops(c, d, config, &memory, adapter.n);
        }
    }
    json_object_set_new(c->o, "steps", json_integer(plan.steps));
    json_object_set_new(c->o, "steps_per_epoch", json_integer(plan.steps_per_epoch));
    json_object_set_new(c->o, "epochs", json_real(plan.epochs));
    json_object_set_new(c->o, "warmup_steps", json_integer(plan.warmup));
    json_object_set_new(c->o, "token_budget", json_integer(plan.token_budget));
    json_object_set_new(c->o, "train_tokens", json_integer(plan.train_tokens));
}

/* Of a file with problems the data are read only where they are what was meant, and there:
 * reading the file has told which are not. */
static bool data_readable(const struct check *c)
{
    const struct spec *s = c->spec;

    if (c->job->spec)
        return true;
    for (int i = 0; i < s->n_train + s->n_eval; i++)
        if (access(i < s->n_train ? s->train[i].path : s->eval[i - s->n_train].path, R_OK) < 0)
            return false;
    return c->job->more.values_right;
}

/* Model, then tokenizer, then data: each needs the one before. */
static void check_inputs(struct check *c)
{
    struct model *model = NULL;
    struct tokenizer *tok = NULL;
    struct dataset *data = NULL;
    struct model_config config = {0};
    struct err err;

    if (model_open(c->spec->model_dir, &model, &err) < 0) {
        problem(c, "model_name_or_path", err.text);
    } else {
        config = model->config;
        json_object_set_new(c->o, "parameters", json_integer(model_parameters(&model->config)));
    }
    model_close(model);
    if (tokenizer_open(c->spec->model_dir, &tok, &err) < 0)
        problem(c, "model_name_or_path", err.text);
    if (tok && config.vocab > 0 && data_readable(c)) {
        if (dataset_open(c->spec, tok, (int32_t)config.vocab, &data, &err) < 0) {
            (void)job_file_data_problem(c->job, c->spec, err.text);
            c->others++;
        } else if (c->job->spec) {
            set_data(c, data);
            set_plan(c, data, &config);
        }
    }
    dataset_close(data);
    tokenizer_close(tok);
}

static void set_spec(struct check *c)
{
    const struct spec *s = c->job->spec;
    const int64_t per_device = s->per_device_train_batch_size > 0
                                   ? s->per_device_train_batch_size
                                   : (s->train_batch_size + s->devices - 1) / s->devices;
    const int64_t accumulation =
        s->gradient_accumulation_steps > 0 ? s->gradient_accumulation_steps : 1;

    json_object_set_new(c->o, "name", json_string(s->name));
    json_object_set_new(c->o, "method", json_string(s->method == SPEC_DPO ? "dpo" : "sft"));
    json_object_set_new(c->o, "batch",
                        json_pack("{s:I,s:I,s:I,s:i}", "total", (json_int_t)s->train_batch_size,
                                  "per_device", (json_int_t)per_device, "accumulation",
                                  (json_int_t)accumulation, "devices", s->devices));
    json_object_set_new(c->o, "optim", json_string(spec_word_text(spec_optim_words, s->optim)));
    json_object_set_new(c->o, "learning_rate", json_real(s->learning_rate));
    json_object_set_new(c->o, "threads_per_device",
                        json_integer(host_threads(s->threads_per_device, s->devices)));
    json_object_set_new(c->o, "output_dir", json_string(s->output_dir));
}

/* The specs go in as the texts they are. */
static char *finish(struct check *c, bool ok)
{
    struct buf out = {.max = LIMIT_MSG_BYTES};
    char *text;

    json_object_set_new(c->o, "ok", json_boolean(ok));
    json_object_set_new(c->o, "problems", views_problems(&c->job->problems));
    text = json_text(c->o, JSON_COMPACT);
    json_decref(c->o);
    if (!text || !c->job->resolved || !c->job->user)
        return text;
    (void)buf_add(&out, text, strlen(text) - 1);
    (void)buf_printf(&out, ",\"resolved\":%s,\"user\":%s}", c->job->resolved, c->job->user);
    free(text);
    if (out.r < 0) {
        buf_free(&out);
        return NULL;
    }
    return out.data;
}

int check_job(const struct job_args *a, struct job_file *job, char **ret_json, struct err *err)
{
    struct check c = {.args = a, .job = job, .o = json_object()};
    const int r = job_file_read(a, job, err);

    if (r < 0 && r != -EINVAL) {
        (void)job_file_problem(job, NULL, false, err->text);
        *ret_json = finish(&c, false);
        return RUN_EXIT_USAGE;
    }
    c.spec = r == 0 ? job->spec : job->more.draft;
    if (r == 0)
        set_spec(&c);
    if (c.spec) {
        check_devices(&c);
        if (strcmp(c.spec->output_dir, "/") != 0)
            check_folder(&c);
        if (strcmp(c.spec->model_dir, "/") != 0)
            check_inputs(&c);
    }
    *ret_json = finish(&c, r == 0 && c.others == 0 && !c.used_folder);
    if (r < 0 || c.others > 0)
        return RUN_EXIT_ERROR;
    return c.used_folder ? CHECK_USED_FOLDER : RUN_EXIT_DONE;
}
