/* standalone.c - see standalone.h. The gang folder is output_dir/.gang; what was run there
 * last is told from its gang.json and exit.json. */
#include "worker/standalone.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/atomic_file.h"
#include "worker/claim.h"
#include "worker/device.h"
#include "worker/folder.h"
#include "worker/gang.h"
#include "worker/host.h"
#include "worker/json_text.h"
#include "worker/run.h"
#include "worker/supervise.h"

struct standalone {
    struct standalone_opts o;
    struct job_file *job;
    struct spec *spec; /* the job's, placed                                         */
    struct device_set devices;
    struct claim claim;
    char gang_dir[LIMIT_PATH];
    int dir_fd, lock_fd;
    uint32_t attempt;
    bool finished;
};

static void say(const struct standalone *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void say(const struct standalone *s, const char *format, ...)
{
    char line[LIMIT_PATH + 512];
    va_list ap;

    va_start(ap, format);
    vsnprintf(line, sizeof line, format, ap);
    va_end(ap);
    s->o.say(s->o.arg, line);
}

/* ---- the folder ---- */

static int refuse(const struct standalone *s, const char *holds, struct err *err)
{
    return err_set(err, -EEXIST,
                   "%s holds %s: write another output_dir ({id} and {name} are replaced in it), or "
                   "use --overwrite to remove it",
                   s->spec->output_dir, holds);
}

/* What to do with a folder that holds a run. */
static int look_at_run(struct standalone *s, struct err *err)
{
    struct gang *old = NULL;
    struct gang_exit e;
    struct err why;
    char *text = NULL;
    int fd = open(s->gang_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;

    if (fd < 0 || gang_read(fd, &old, &why) < 0)
        r = refuse(s, "a run that `align-worker run` did not make", err);
    else if (!spec_same_values(old->spec, s->job->resolved))
        r = refuse(s, "a run of another job file", err);
    else if (gang_read_exit(fd, &text, &e) == 0)
        s->finished = e.code == RUN_EXIT_DONE && e.signal == 0 &&
                      old->attempt == folder_newest_attempt(s->spec->output_dir);
    free(text);
    gang_free(old);
    if (fd >= 0)
        close(fd);
    return r;
}

static int look(struct standalone *s, struct err *err)
{
    enum folder_kind kind;
    int r = folder_look(s->spec->output_dir, &kind, err);

    if (r < 0 || kind == FOLDER_FREE || s->o.args->overwrite)
        return r;
    return kind == FOLDER_RUN ? look_at_run(s, err) : refuse(s, "other files", err);
}

/* One `run` at a time in a folder. */
static int lock(struct standalone *s, struct err *err)
{
    char path[LIMIT_PATH];

    snprintf(path, sizeof path, "%s", s->gang_dir);
    for (char *p = path + 1;; p++) { /* mkdir -p */
        const char c = *p;
        if (c != '/' && c != '\0')
            continue;
        *p = '\0';
        if (mkdir(path, 0777) < 0 && errno != EEXIST)
            return err_set(err, -errno, "output_dir: %s: %s", path, strerror(errno));
        *p = c;
        if (c == '\0')
            break;
    }
    s->dir_fd = open(s->gang_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir_fd >= 0)
        s->lock_fd = openat(s->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return err_set(err, -errno, "%s: %s", s->gang_dir, strerror(errno));
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(err, -EBUSY, "another `align-worker run` is training into %s",
                       s->spec->output_dir);
    return 0;
}

/* ---- the gang ---- */

static json_t *describe_gang(const struct standalone *s)
{
    json_t *devices = json_array(), *user = json_loads(s->job->user, 0, NULL);
    char name[32];

    for (int i = 0; i < s->spec->devices; i++) {
        snprintf(name, sizeof name, "cpu:%d", i);
        json_array_append_new(devices, json_string(s->devices.gpu ? s->devices.v[i].uuid : name));
    }
    return json_pack("{s:i,s:i,s:I,s:s,s:o,s:s,s:i,s:s,s:b,s:o,s:o}", "v", 1, "job", 0, "attempt",
                     (json_int_t)s->attempt, "output_dir", s->spec->output_dir, "devices", devices,
                     "device_type", s->devices.gpu ? "gpu" : "cpu", "threads_per_device",
                     host_threads(s->spec->threads_per_device, s->spec->devices), "worker_url", "",
                     "overwrite", (int)s->o.args->overwrite, "spec",
                     json_loads(s->job->resolved, 0, NULL), "user_spec",
                     user ? user : json_object());
}

static int write_gang(const struct standalone *s, struct err *err)
{
    json_t *o = describe_gang(s);
    char *text = o ? json_text(o, JSON_INDENT(1)) : NULL;
    const struct span part = {text, text ? strlen(text) : 0};
    int r = text ? 0 : -ENOMEM;

    if (r == 0 && unlinkat(s->dir_fd, "exit.json", 0) < 0 && errno != ENOENT)
        r = -errno;
    if (r == 0 && unlinkat(s->dir_fd, "pids.json", 0) < 0 && errno != ENOENT)
        r = -errno;
    if (r == 0)
        r = atomic_file_replace(s->dir_fd, "gang.json", &part, 1);
    free(text);
    json_decref(o);
    return r < 0 ? err_set(err, r, "%s: %s", s->gang_dir, strerror(-r)) : 0;
}

static const double *value_of(const struct spool_row *row, const char *name)
{
    for (int i = 0; i < row->n_values; i++)
        if (strcmp(row->values[i].name, name) == 0)
            return &row->values[i].value;
    return NULL;
}

/* step 50/100  loss 0.6712  rewards/accuracies 0.63 ... */
static void show_row(void *arg, const struct spool_row *row, int64_t steps)
{
    static const char *const shown[][2] = {
        {"loss", "eval_loss"},
        {"rewards/accuracies", "eval_rewards/accuracies"},
        {"rewards/margins", "eval_rewards/margins"},
        {"grad_norm", ""},
        {"learning_rate", ""},
    };
    const bool eval = row->kind == SPOOL_EVAL;
    char line[512];
    size_t at;

    if (row->kind == SPOOL_START || row->kind == SPOOL_SUMMARY)
        return;
    at = (size_t)snprintf(line, sizeof line, "%s %lld", eval ? "evaluation at step" : "step",
                          (long long)row->global_step);
    if (steps > 0)
        at += (size_t)snprintf(line + at, sizeof line - at, "/%lld", (long long)steps);
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        const double *v = value_of(row, shown[i][eval]);
        if (v)
            at += (size_t)snprintf(line + at, sizeof line - at, "  %s %.4g", shown[i][eval], *v);
    }
    say(arg, "%s", line);
}

static void say_adapter(const struct standalone *s)
{
    say(s, "the adapter lies in %s; to load it:", s->spec->output_dir);
    say(s, "    from peft import PeftModel");
    say(s, "    from transformers import AutoModelForCausalLM");
    say(s,
        "    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\"%s\"), "
        "\"%s\")",
        s->spec->model_dir, s->spec->output_dir);
}

static int tell_end(const struct standalone *s, const struct gang_exit *e, struct err *err)
{
    if (e->first_rank < 0 && e->signal == 0 && e->code == RUN_EXIT_DONE) {
        say(s, "done: %lld step%s in %.1f s, at most %.2f GB per rank", (long long)e->step,
            e->step == 1 ? "" : "s", e->wall_s, (double)e->peak_rss_kb * 1024 / 1e9);
        say_adapter(s);
        return RUN_EXIT_DONE;
    }
    if (e->first_rank < 0 && e->signal == 0 && e->code == RUN_EXIT_STOPPED) {
        say(s, "stopped at step %lld; the same command continues", (long long)e->step);
        return RUN_EXIT_STOPPED;
    }
    if (e->first_rank >= 0)
        err_set(err, 0, "%s%.800s (output of rank %d: %.120s/attempts/%u/rank-%d.log)",
                strncmp(e->error, "rank ", 5) == 0 ? "" : "a rank failed: ", e->error,
                e->first_rank, s->spec->output_dir, s->attempt, e->first_rank);
    else
        err_set(err, 0, "%s", e->error[0] ? e->error : "the ranks were killed");
    return e->signal != 0 || e->code == 0 ? RUN_EXIT_ERROR : e->code;
}

static int train(struct standalone *s, struct err *err)
{
    const struct supervise_opts so = {
        .dir = s->gang_dir, .token_fd = -1, .lock_fd = s->lock_fd, .row = show_row, .arg = s};
    struct gang_exit e;
    int r;

    s->attempt = s->o.args->overwrite ? 1 : folder_newest_attempt(s->spec->output_dir) + 1;
    r = write_gang(s, err);
    if (r < 0)
        return RUN_EXIT_ERROR;
    const int ranks = s->spec->devices;
    const int threads = host_threads(s->spec->threads_per_device, ranks);
    say(s, "%s: %d rank%s with %d thread%s%s, attempt %u, output in %s", s->spec->name, ranks,
        ranks > 1 ? "s" : "", threads, threads > 1 ? "s" : "", ranks > 1 ? " each" : "", s->attempt,
        s->spec->output_dir);
    r = supervise_gang(&so, &e, err);
    s->lock_fd = -1; /* the supervisor's */
    return r < 0 ? RUN_EXIT_ERROR : tell_end(s, &e, err);
}

/* Devices as this machine has them. */
static int check_devices(struct standalone *s, struct err *err)
{
    const int r = device_look(s->spec, &s->devices, err);

    if (r == 0 && !s->devices.gpu && s->spec->device_type == SPEC_DEVICE_AUTO && host_gpus() > 0)
        say(s, "trains on the CPU; %d GPU%s seen, but: %s", host_gpus(),
            host_gpus() == 1 ? "" : "s", s->devices.why);
    return r;
}

static int claim(struct standalone *s, struct err *err)
{
    const int r = claim_take(&s->claim, &s->devices, s->spec->devices, err);

    for (int i = 0; r == 0 && s->devices.gpu && i < s->spec->devices; i++)
        say(s, "rank %d: %s, %s", i, s->devices.v[i].name, s->devices.v[i].uuid);
    return r;
}

int standalone_run(const struct standalone_opts *o, struct job_file *job, struct err *err)
{
    struct standalone s = {.o = *o, .job = job, .dir_fd = -1, .lock_fd = -1};
    int r = job_file_read(o->args, job, err), code = RUN_EXIT_ERROR;

    if (r < 0)
        return r == -EINVAL ? RUN_EXIT_USAGE : RUN_EXIT_ERROR;
    s.spec = job->spec;
    r = spec_place(s.spec, "local", err);
    if (r == 0)
        r = check_devices(&s, err);
    if (r == 0 &&
        snprintf(s.gang_dir, sizeof s.gang_dir, "%s/.gang", s.spec->output_dir) >= LIMIT_PATH - 64)
        r = err_set(err, -ENAMETOOLONG, "output_dir: too long");
    if (r == 0)
        r = look(&s, err);
    if (r == 0 && s.finished) {
        say(&s, "finished already");
        say_adapter(&s);
        return RUN_EXIT_DONE;
    }
    if (r == 0)
        r = claim(&s, err);
    if (r == 0)
        r = lock(&s, err);
    if (r == 0)
        code = train(&s, err);
    claim_release(&s.claim);
    if (s.lock_fd >= 0)
        close(s.lock_fd);
    if (s.dir_fd >= 0)
        close(s.dir_fd);
    return code;
}
