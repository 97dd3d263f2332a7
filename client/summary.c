/* summary.c - see summary.h. */
#include "client/summary.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client/dataprint.h"
#include "client/format.h"
#include "client/jobview.h"

struct sentence {
    char *buf;
    size_t used, room;
};

static void add(struct sentence *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct sentence *s, const char *fmt, ...)
{
    va_list ap;
    if (s->used >= s->room)
        return;
    va_start(ap, fmt);
    int n = vsnprintf(s->buf + s->used, s->room - s->used, fmt, ap);
    va_end(ap);
    s->used += n > 0 ? (size_t)n : 0;
}

static void batch(struct sentence *s, const struct spec *spec, const json_t *check)
{
    long long whole = (long long)spec->train_batch_size;
    const json_t *split = json_object_get(check, "batch");
    int64_t per = jobview_int(split, "per_device"), acc = jobview_int(split, "accumulation");
    add(s, "batch %lld", whole);
    if (per > 0 && acc > 0 && per * acc * spec->devices == whole)
        add(s, " = %lld x %lld x %d device%s", (long long)per, (long long)acc, spec->devices,
            spec->devices == 1 ? "" : "s");
    else if (spec->per_device_train_batch_size > 0)
        add(s, " = %lld x %lld x %d device%s", (long long)spec->per_device_train_batch_size,
            (long long)spec->gradient_accumulation_steps, spec->devices,
            spec->devices == 1 ? "" : "s");
    else if (spec->devices > 1 && whole % spec->devices == 0)
        add(s, " = %lld x %d devices", whole / spec->devices, spec->devices);
    else if (spec->devices > 1)
        add(s, " over %d devices", spec->devices);
}

static void steps(struct sentence *s, const struct spec *spec, const json_t *check)
{
    format_buf a, b;
    const char *what = spec->method == SPEC_DPO ? "pair" : "example";
    if (check) {
        double epochs = jobview_number(check, "epochs");
        add(s, "; %s step%s = %.*f epochs of %s %s%s", format_count(a, jobview_int(check, "steps")),
            jobview_int(check, "steps") == 1 ? "" : "s",
            epochs >= 0.95     ? 1
            : epochs >= 0.0095 ? 2
                               : 4,
            epochs, /* never "0.0" */
            format_count(b, jobview_int(check, "examples")), what,
            jobview_int(check, "examples") == 1 ? "" : "s");
        if (jobview_int(check, "eval_examples") > 0)
            add(s, ", evaluated on %s", format_count(a, jobview_int(check, "eval_examples")));
    } else if (spec->max_steps > 0) {
        add(s, "; %s step%s", format_count(a, spec->max_steps), spec->max_steps == 1 ? "" : "s");
    } else {
        add(s, "; %g epoch%s", spec->num_train_epochs, spec->num_train_epochs == 1 ? "" : "s");
    }
}

const char *summary_text(const struct spec *spec, const char *resolved, const json_t *check,
                         char *buf, size_t room)
{
    struct sentence s = {.buf = buf, .room = room};
    json_t *j = json_loads(resolved, 0, NULL);
    const json_t *origin = json_object_get(j, "origin");
    char dropped[700];

    batch(&s, spec, check);
    steps(&s, spec, check);
    add(&s, "; learning_rate %g (%s)", spec->learning_rate, jobview_text(origin, "learning_rate"));
    if (spec->method == SPEC_DPO)
        add(&s, "; beta %g (%s)", spec->beta, jobview_text(origin, "beta"));
    add(&s, "; %s r %d, alpha %d", spec->load_in_4bit ? "QLoRA" : "LoRA", spec->lora_r,
        spec->lora_alpha);
    if (spec->optim == SPEC_ADAMW_8BIT)
        add(&s, "; optim adamw_8bit");
    add(&s, "; max_length %lld (%s)", (long long)spec->max_length,
        jobview_text(origin, "max_length"));
    if (check && *dataprint_dropped(check, dropped, sizeof dropped))
        add(&s, "; %s", dropped);
    json_decref(j);
    return buf;
}
