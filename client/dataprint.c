/* dataprint.c - see dataprint.h. */
#include "client/dataprint.h"

#include <stdio.h>
#include <string.h>

#include "client/format.h"
#include "client/jobview.h"

#define GREY   "\x1b[90m"
#define GREEN  "\x1b[32m"
#define YELLOW "\x1b[33m"
#define BOLD   "\x1b[1m"
#define PLAIN  "\x1b[0m"

/* A token's text: line ends and control characters visible. */
static void token_text(const char *s, bool utf8, struct buf *out)
{
    for (; *s; s++) {
        if (*s == '\n')
            (void)buf_str(out, utf8 ? "\xe2\x8f\x8e\n" : "\\n\n");
        else if (*s == '\t')
            (void)buf_str(out, "\\t");
        else if (*s == '\r')
            (void)buf_str(out, "\\r");
        else if ((unsigned char)*s < 0x20 || *s == 0x7f)
            (void)buf_printf(out, "<0x%02X>", (unsigned char)*s);
        else
            (void)buf_add(out, s, 1);
    }
}

struct brush {
    bool colour, utf8;
    bool trained; /* what the text so far is painted as */
    struct buf *out;
};

static void paint(struct brush *b, const json_t *token)
{
    bool trained = json_is_true(json_object_get(token, "trained"));
    if (b->colour) {
        (void)buf_str(b->out, trained ? GREEN : GREY);
        if (json_is_true(json_object_get(token, "special")))
            (void)buf_str(b->out, BOLD);
    } else if (trained != b->trained) {
        (void)buf_str(b->out, trained ? "[[" : "]]");
    }
    b->trained = trained;
    token_text(jobview_text(token, "text"), b->utf8, b->out);
    if (b->colour)
        (void)buf_str(b->out, PLAIN);
}

static void paint_all(struct brush *b, const json_t *tokens)
{
    for (size_t i = 0; i < json_array_size(tokens); i++)
        paint(b, json_array_get(tokens, i));
    if (!b->colour && b->trained)
        (void)buf_str(b->out, "]]");
    b->trained = false;
}

static const json_t *part_tokens(const json_t *row, const char *name)
{
    const json_t *parts = json_object_get(row, "parts");
    for (size_t i = 0; i < json_array_size(parts); i++)
        if (strcmp(jobview_text(json_array_get(parts, i), "name"), name) == 0)
            return json_object_get(json_array_get(parts, i), "tokens");
    return NULL;
}

static void reply(struct brush *b, const json_t *row, const char *name, bool cut)
{
    const json_t *tokens = part_tokens(row, name), *prompt = part_tokens(row, "prompt");
    format_buf n, m;
    if (!tokens)
        return;
    (void)buf_printf(b->out, "%s%s (%s + %s tokens%s)%s\n", b->colour ? BOLD : "", name,
                     format_count(n, (int64_t)json_array_size(prompt)),
                     format_count(m, (int64_t)json_array_size(tokens)),
                     cut ? ", cut at max_length" : "", b->colour ? PLAIN : "");
    paint_all(b, prompt);
    (void)buf_printf(b->out, "%s%s%s", b->colour ? YELLOW : "", b->utf8 ? "\xe2\x94\x82" : "|",
                     b->colour ? PLAIN : "");
    paint_all(b, tokens);
    (void)buf_str(b->out, "\n");
}

void dataprint_rows(const json_t *j, bool colour, bool utf8, struct buf *out)
{
    const json_t *rows = json_object_get(j, "examples_shown");
    struct brush b = {.colour = colour, .utf8 = utf8, .out = out};
    if (!json_is_array(rows))
        return;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i), *cut = json_object_get(row, "cut");
        char name[512];
        (void)buf_printf(out, "%s row %lld\n",
                         format_plain(name, sizeof name, jobview_text(row, "path"), 400),
                         (long long)jobview_int(row, "row"));
        reply(&b, row, "chosen", json_is_true(json_array_get(cut, 0)));
        reply(&b, row, "completion", json_is_true(json_array_get(cut, 0)));
        reply(&b, row, "rejected", json_is_true(json_array_get(cut, 1)));
        (void)buf_str(out, "\n");
    }
    (void)buf_printf(out, "%s = trained, %s = masked, %s = where the prompt ends\n",
                     colour ? GREEN "text" PLAIN : "[[text]]", colour ? GREY "text" PLAIN : "text",
                     utf8 ? "\xe2\x94\x82" : "|");
}

static int64_t rows_read(const json_t *j)
{
    const json_t *sources = json_object_get(j, "sources");
    int64_t n = 0;
    if (json_is_integer(json_object_get(j, "rows")))
        return jobview_int(j, "rows");
    for (size_t i = 0; i < json_array_size(sources); i++)
        n += jobview_int(json_array_get(sources, i), "rows");
    return n;
}

/* empty_reply -> empty reply */
static void reason_text(const char *name, char *buf, size_t room)
{
    (void)snprintf(buf, room, "%s", name);
    for (char *p = buf; *p; p++)
        if (*p == '_')
            *p = ' ';
}

const char *dataprint_dropped(const json_t *j, char *buf, size_t room)
{
    const json_t *dropped = json_object_get(j, "dropped");
    const char *key;
    json_t *value;
    int64_t all = 0;
    size_t kinds = json_object_size(dropped);
    char list[512] = "";

    json_object_foreach((json_t *)dropped, key, value)
    {
        char name[64];
        format_buf n;
        size_t used = strlen(list);
        reason_text(key, name, sizeof name);
        all += json_integer_value(value);
        if (used >= sizeof list)
            continue;
        if (kinds == 1)
            (void)snprintf(list, sizeof list, "%s", name);
        else
            (void)snprintf(list + used, sizeof list - used, "%s%s %s", used ? ", " : "",
                           format_count(n, json_integer_value(value)), name);
    }
    format_buf a, b;
    buf[0] = '\0';
    if (all > 0)
        (void)snprintf(buf, room, "%s of %s rows dropped (%s)", format_count(a, all),
                       format_count(b, rows_read(j)), list);
    return buf;
}

static void lengths(const json_t *j, struct buf *out)
{
    const json_t *all = json_object_get(j, "lengths_by_part");
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)all, key, v)
    {
        format_buf a, b, c;
        bool whole = strcmp(key, "pair") == 0 && json_object_get(all, "completion");
        (void)buf_printf(out, "%-11s p50 %s  p95 %s  max %s tokens\n", whole ? "example" : key,
                         format_count(a, jobview_int(v, "p50")),
                         format_count(b, jobview_int(v, "p95")),
                         format_count(c, jobview_int(v, "max")));
    }
}

void dataprint_summary(const json_t *j, struct buf *out)
{
    const json_t *sources = json_object_get(j, "sources");
    char text[800], path[420];
    format_buf a, b, c;

    for (size_t i = 0; i < json_array_size(sources); i++) {
        const json_t *s = json_array_get(sources, i);
        (void)buf_printf(
            out, "%s: %s (%s, template %s): %s rows, %s usable, %s selected\n",
            jobview_text(s, "set"), format_plain(path, sizeof path, jobview_text(s, "path"), 400),
            jobview_text(s, "format"), jobview_text(s, "template"),
            format_count(a, jobview_int(s, "rows")), format_count(b, jobview_int(s, "usable")),
            format_count(c, jobview_int(s, "selected")));
    }
    int64_t examples = jobview_int(j, "examples"), cut = jobview_int(j, "cut");
    (void)buf_printf(out, "%s example%s to train on, %s to evaluate, %s repl%s cut\n",
                     format_count(a, examples), examples == 1 ? "" : "s",
                     format_count(b, jobview_int(j, "eval_examples")), format_count(c, cut),
                     cut == 1 ? "y" : "ies");
    lengths(j, out);
    if (*dataprint_dropped(j, text, sizeof text))
        (void)buf_printf(out, "%s\n", text);
    else
        (void)buf_str(out, "no row dropped\n");
}
