/* screen.c - see screen.h. */
#include "client/screen.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/jobview.h"
#include "client/plot.h"

enum { MIN_PLOT = 4 };

void screen_bar(double share, size_t n, bool utf8, struct buf *out)
{
    /* U+258F .. U+2588: one to eight eighths */
    if (!(share > 0))
        share = 0;
    if (share > 1)
        share = 1;
    size_t eighths = (size_t)(share * (double)n * 8 + 0.5);
    for (size_t i = 0; i < n; i++) {
        size_t here = eighths >= 8 * (i + 1) ? 8 : eighths > 8 * i ? eighths - 8 * i : 0;
        if (!utf8) {
            (void)buf_str(out, here >= 4 ? "#" : "-");
        } else if (here == 0) {
            (void)buf_str(out, "\xc2\xb7");
        } else {
            char ch[4] = {(char)0xe2, (char)0x96, (char)(0x90 - here), '\0'};
            (void)buf_str(out, ch);
        }
    }
}

/* One line: cut to the terminal's width and made plain. */
static void line(const struct screen *s, struct buf *out, size_t *left, const char *text)
{
    char plain[2048];
    if (*left == 0)
        return;
    (void)buf_str(out, format_plain(plain, sizeof plain, text, s->columns));
    (void)buf_str(out, "\n");
    --*left;
}

static void head(const struct screen *s, struct buf *out, size_t *left)
{
    char text[1024], devices[256], where[400] = "", reason[512];
    format_buf clock;
    const char *state = jobview_text(s->job, "state");

    if (jobview_int(s->job, "attempt") > 0)
        (void)snprintf(where, sizeof where, "attempt %lld on %s  %s",
                       (long long)jobview_int(s->job, "attempt"),
                       jobview_devices(s->job, devices, sizeof devices),
                       jobview_text(s->job, "phase"));
    (void)snprintf(text, sizeof text, "job %lld %s  %s  %s  %s  %s",
                   (long long)jobview_int(s->job, "job"), jobview_text(s->job, "name"),
                   jobview_text(s->job, "method"), state,
                   format_clock(clock, jobview_seconds(s->job, s->now_ms)), where);
    line(s, out, left, text);
    if (strcmp(state, "RUNNING") != 0) {
        (void)snprintf(text, sizeof text, "%s", jobview_reason(s->job, reason, sizeof reason));
        if (strcmp(text, "None") != 0)
            line(s, out, left, text);
    }
}

static void progress(const struct screen *s, struct buf *out, size_t *left)
{
    int64_t step = s->curve->step, steps = jobview_int(s->job, "steps");
    double pace = curve_step_seconds(s->curve);
    char right[128];
    format_buf a, b, eta;

    if (step < 0)
        step = jobview_int(s->job, "step");
    if (*left == 0)
        return;
    if (steps > 0)
        (void)snprintf(right, sizeof right, " %s/%s  %3.0f %%  ETA %s", format_count(a, step),
                       format_count(b, steps), 100.0 * (double)step / (double)steps,
                       jobview_over(s->job) ? "-"
                                            : format_about(eta, pace * (double)(steps - step)));
    else
        (void)snprintf(right, sizeof right, " step %s", format_count(a, step));
    size_t w = format_width(right);
    if (s->columns > w + 4)
        screen_bar(steps > 0 ? (double)step / (double)steps : 0, s->columns - w - 1, s->utf8, out);
    char plain[160];
    (void)buf_str(out, format_plain(plain, sizeof plain, right, s->columns));
    (void)buf_str(out, "\n");
    --*left;
}

/* Values beside each other, on as many lines as they take: none is cut off. */
struct flow {
    const struct screen *s;
    struct buf *out;
    size_t *left;
    char text[1024];
};

static void flow_end(struct flow *f)
{
    if (f->text[0])
        line(f->s, f->out, f->left, f->text);
    f->text[0] = '\0';
}

static void flow_put(struct flow *f, const char *name, double v)
{
    char one[128];
    format_buf b;
    if (isnan(v))
        return;
    (void)snprintf(one, sizeof one, "%s %s", name, format_value(b, v));
    size_t n = strlen(f->text);
    if (n && n + 2 + strlen(one) > f->s->columns) {
        flow_end(f);
        n = 0;
    }
    (void)snprintf(f->text + n, sizeof f->text - n, "%s%s", n ? "  " : "", one);
}

static void values(const struct screen *s, struct buf *out, size_t *left)
{
    static const char *const train[] = {"loss", "rewards/accuracies", "rewards/margins",
                                        "mean_token_accuracy"};
    static const char *const eval[] = {"eval_loss", "eval_rewards/accuracies",
                                       "eval_rewards/margins", "eval_mean_token_accuracy"};
    struct flow f = {.s = s, .out = out, .left = left};
    char text[128];
    for (size_t i = 0; i < sizeof train / sizeof train[0]; i++)
        flow_put(&f, train[i], curve_train(s->curve, train[i]));
    flow_end(&f);
    flow_put(&f, "grad_norm", curve_train(s->curve, "grad_norm"));
    flow_put(&f, "learning_rate", curve_train(s->curve, "learning_rate"));
    flow_put(&f, "epoch", curve_train(s->curve, "epoch"));
    flow_put(&f, "tokens/s", curve_train(s->curve, "tokens_per_second"));
    flow_put(&f, "s/step", curve_step_seconds(s->curve));
    flow_end(&f);
    if (s->curve->eval_step >= 0) {
        (void)snprintf(f.text, sizeof f.text, "step %lld:", (long long)s->curve->eval_step);
        for (size_t i = 0; i < sizeof eval / sizeof eval[0]; i++)
            flow_put(&f, eval[i], curve_eval(s->curve, eval[i]));
        flow_end(&f);
    }
    if (s->curve->rewinds) {
        (void)snprintf(text, sizeof text, "went back to step %lld (attempt %lld resumed there)",
                       (long long)s->curve->rewound_to, (long long)jobview_int(s->job, "attempt"));
        line(s, out, left, text);
    }
}

/* The GPUs of the gang, a line per rank; of many as many as leave room for the curve. */
static void gpus(const struct screen *s, struct buf *out, size_t *left)
{
    const json_t *list = json_object_get(s->job, "gpus");
    const size_t n = json_array_size(list), room = *left > MIN_PLOT + 4 ? *left - MIN_PLOT - 4 : 0;
    char text[512];

    for (size_t i = 0; i < n && i < room; i++) {
        if (i + 1 == room && i + 1 < n)
            (void)snprintf(text, sizeof text, "and %zu GPUs more", n - i);
        else
            (void)jobview_gpu(json_array_get(list, i), text, sizeof text);
        line(s, out, left, text);
    }
}

/* Of all ranks, on the processors' side. */
static void host_memory(const struct screen *s, struct buf *out, size_t *left)
{
    const json_t *m = json_object_get(s->job, "host_memory");
    format_buf now, peak;
    char text[160];

    if (!m || *left < 2)
        return;
    (void)snprintf(text, sizeof text, "host memory %s, at most %s",
                   format_bytes(now, 1024.0 * (double)jobview_int(m, "now_kb")),
                   format_bytes(peak, 1024.0 * (double)jobview_int(m, "peak_kb")));
    line(s, out, left, text);
}

static void draw_plot(const struct screen *s, struct buf *out, size_t *left)
{
    const struct curve *c = s->curve;
    if (*left < MIN_PLOT + 2 || c->n < 2)
        return;
    double *x = malloc(2 * c->n * sizeof *x);
    if (!x)
        return;
    double *y = x + c->n;
    for (size_t i = 0; i < c->n; i++) {
        x[i] = (double)c->v[i].step;
        y[i] = c->v[i].loss;
    }
    double steps = (double)jobview_int(s->job, "steps");
    struct plot p = {.x = x,
                     .y = y,
                     .n = c->n,
                     .x_from = 0,
                     .x_to = steps > 0 ? steps : 0,
                     .width = s->columns - 1,
                     .height = *left - 2,
                     .utf8 = s->utf8};
    if (p.height > s->columns / 3)
        p.height = s->columns / 3;
    if (p.height < MIN_PLOT)
        p.height = MIN_PLOT;
    *left -= p.height;
    line(s, out, left, "loss");
    plot_draw(&p, out);
    free(x);
}

static void tell_lost(const struct screen *s, struct buf *out, size_t *left)
{
    char text[120];
    (void)snprintf(text, sizeof text, "alignd does not answer; the job %s; trying again",
                   jobview_goes_on(s->job));
    line(s, out, left, text);
}

void screen_draw(const struct screen *s, struct buf *out)
{
    size_t left = s->rows;
    if (!s->job) {
        line(s, out, &left, "waiting for alignd");
        return;
    }
    /* The last line says what Ctrl-C does, also where values fill a small screen. */
    const bool leaves = !jobview_over(s->job);
    const size_t kept = leaves && left > 2;
    left -= kept;
    head(s, out, &left);
    if (!s->connected)
        tell_lost(s, out, &left);
    progress(s, out, &left);
    values(s, out, &left);
    gpus(s, out, &left);
    host_memory(s, out, &left);
    draw_plot(s, out, &left);
    left += kept;
    if (leaves) {
        char text[80];
        (void)snprintf(text, sizeof text, "Ctrl-C leaves; the job %s", jobview_goes_on(s->job));
        line(s, out, &left, text);
    }
}

static bool is_wanted(const char *name)
{
    static const char *const wanted[] = {"loss",
                                         "rewards/accuracies",
                                         "rewards/margins",
                                         "mean_token_accuracy",
                                         "grad_norm",
                                         "learning_rate",
                                         "tokens_per_second",
                                         "eval_loss",
                                         "eval_rewards/accuracies",
                                         "eval_rewards/margins",
                                         "eval_mean_token_accuracy",
                                         "train_loss",
                                         "train_runtime"};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        if (strcmp(wanted[i], name) == 0)
            return true;
    return false;
}

void screen_line(const json_t *job, const struct msg_row *row, struct buf *out)
{
    int64_t steps = jobview_int(job, "steps");
    char text[1024] = "", plain[1100];
    format_buf b;

    if (row->kind == MSG_ROW_REWIND) {
        (void)buf_printf(out, "went back to step %lld\n", (long long)row->step);
        return;
    }
    if (row->kind == MSG_ROW_START)
        return;
    (void)snprintf(text, sizeof text, "step %lld", (long long)row->step);
    if (steps > 0)
        (void)snprintf(text + strlen(text), sizeof text - strlen(text), "/%lld", (long long)steps);
    if (row->kind == MSG_ROW_SUMMARY)
        (void)snprintf(text, sizeof text, "done");
    for (uint32_t i = 0; i < row->n_values; i++) {
        size_t n = strlen(text);
        if (is_wanted(row->names[i]) && n < sizeof text)
            (void)snprintf(text + n, sizeof text - n, "  %s %s",
                           strcmp(row->names[i], "tokens_per_second") == 0 ? "tokens/s"
                                                                           : row->names[i],
                           format_value(b, row->values[i]));
    }
    (void)buf_printf(out, "%s\n", format_plain(plain, sizeof plain, text, sizeof plain));
}
