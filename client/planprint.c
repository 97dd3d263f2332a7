/* planprint.c - see planprint.h. */
#include "client/planprint.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "client/format.h"
#include "client/jobview.h"

/* 1.25 TFLOP */
static const char *flops_text(format_buf b, double v)
{
    static const char *const units[] = {"", "k", "M", "G", "T", "P", "E", "Z"};
    size_t u = 0;

    for (; v >= 999.5 && u + 1 < sizeof units / sizeof units[0]; u++)
        v /= 1000;
    (void)snprintf(b, FORMAT_ROOM, "%.3g %sFLOP", v, units[u]);
    return b;
}

static void schedule(const json_t *j, struct buf *out)
{
    format_buf a, b, c, d;

    (void)buf_printf(out, "steps       %s, %s an epoch; warmup %s\n",
                     format_count(a, jobview_int(j, "steps")),
                     format_count(b, jobview_int(j, "steps_per_epoch")),
                     format_count(c, jobview_int(j, "warmup_steps")));
    (void)buf_printf(out, "tokens      %s in the training set%s; micro-batches of at most %s\n",
                     format_count(a, jobview_int(j, "train_tokens")),
                     strcmp(jobview_text(j, "method"), "dpo") == 0 ? ", a pair's prompt once" : "",
                     format_count(d, jobview_int(j, "token_budget")));
}

static void work(const json_t *flops, struct buf *out)
{
    const double run = jobview_number(flops, "run"), ref = jobview_number(flops, "reference");
    format_buf a, b;

    if (isnan(run) || run <= 0)
        return;
    (void)buf_printf(out, "work        %s a step, %s in all",
                     flops_text(a, jobview_number(flops, "step")), flops_text(b, run));
    if (ref > 0)
        (void)buf_printf(out, ", %.0f %% of it the reference", 100 * ref / run);
    (void)buf_str(out, "\n");
}

static void memory(const json_t *j, const json_t *m, struct buf *out)
{
    const bool gpu = strcmp(jobview_text(j, "device_type"), "gpu") == 0;
    const long long again = (long long)jobview_int(m, "recomputed_layers");
    char layers[64] = "all kept", dequantise[64] = "";
    const struct {
        const char *key, *name, *what;
    } rows[] = {
        {"weights", "weights", dequantise},     {"tables", "embedding, norms", ""},
        {"activations", "activations", layers}, {"scratch", "within a pass", ""},
        {"backend", "the backend's own", ""},   {"adapter", "adapter, moments", ""},
        {"rest", "other buffers", ""},          {"process", gpu ? "kernels" : "process", ""}};
    format_buf a, b;

    if (again > 0)
        (void)snprintf(layers, sizeof layers, "%lld of %lld layers computed again", again,
                       (long long)jobview_int(m, "layers"));
    if (json_is_true(json_object_get(m, "in_4bit")))
        (void)snprintf(dequantise, sizeof dequantise, "4 bits, dequantised %s",
                       jobview_text(m, "dequantise"));
    (void)buf_printf(out, "memory      %s of %s%s, of each rank:\n",
                     format_bytes(a, jobview_number(m, "need")),
                     format_bytes(b, jobview_number(m, "free")), gpu ? "" : " free");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (jobview_number(m, rows[i].key) > 0)
            (void)buf_printf(out, "  %-18s%10s%s%s\n", rows[i].name,
                             format_bytes(a, jobview_number(m, rows[i].key)),
                             *rows[i].what ? "  " : "", rows[i].what);
}

void planprint(const json_t *j, struct buf *out)
{
    const json_t *m = json_object_get(j, "memory");

    schedule(j, out);
    work(json_object_get(j, "flops"), out);
    if (m)
        memory(j, m, out);
}
