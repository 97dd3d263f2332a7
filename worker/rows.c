/* rows.c - see rows.h. */
#include "worker/rows.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char human[] = "\n\nHuman:", assistant[] = "\n\nAssistant:";

/* ---- slices, turns ---- */

static struct slice slice_of(const json_t *s)
{
    return (struct slice){json_string_value(s), json_string_length(s)};
}

static bool slice_equal(struct slice a, struct slice b)
{
    return a.n == b.n && (a.n == 0 || !memcmp(a.s, b.s, a.n));
}

struct slice slice_trim(struct slice s)
{
    uint32_t cp;
    while (s.n > 0) {
        const size_t k = text_utf8_get(s.s, s.n, &cp);
        if (!text_is_space(cp))
            break;
        s.s += k;
        s.n -= k;
    }
    while (s.n > 0) {
        size_t i = s.n - 1;
        while (i > 0 && ((unsigned char)s.s[i] & 0xc0) == 0x80)
            i--;
        (void)text_utf8_get(s.s + i, s.n - i, &cp);
        if (!text_is_space(cp))
            break;
        s.n = i;
    }
    return s;
}

static int add_turn(struct row *row, enum turn_role role, struct slice text)
{
    if (row->n_turns == row->cap_turns) {
        const size_t cap = row->cap_turns ? 2 * row->cap_turns : 16;
        struct turn *t = realloc(row->turns, cap * sizeof *t);
        if (!t)
            return -ENOMEM;
        row->turns = t;
        row->cap_turns = cap;
    }
    row->turns[row->n_turns++] = (struct turn){role, text};
    return 0;
}

static int drop(enum drop_reason reason, enum drop_reason *ret)
{
    *ret = reason;
    return 1;
}

/* ---- HH-RLHF transcripts ---- */

static const char *find_last(struct slice s, const char *mark, size_t mark_n)
{
    for (size_t i = s.n >= mark_n ? s.n - mark_n + 1 : 0; i > 0; i--)
        if (s.s[i - 1] == mark[0] && !memcmp(s.s + i - 1, mark, mark_n))
            return s.s + i - 1;
    return NULL;
}

/* Cuts after the last "\n\nAssistant:". */
static bool cut_transcript(struct slice text, struct slice *prompt, struct slice *reply)
{
    const char *at = text.s ? find_last(text, assistant, sizeof assistant - 1) : NULL;
    if (!at)
        return false;
    const size_t n = (size_t)(at - text.s) + sizeof assistant - 1;
    *prompt = (struct slice){text.s, n};
    *reply = (struct slice){text.s + n, text.n - n};
    return true;
}

/* One turn of a transcript, copied to row->own: blank ones are skipped, and two in
 * a row of the same speaker are one, with an empty line between. */
static int add_transcript_turn(struct row *row, enum turn_role role, struct slice text)
{
    text = slice_trim(text);
    if (text.n == 0)
        return 0;
    struct turn *last = row->n_turns ? &row->turns[row->n_turns - 1] : NULL;
    const bool joins = last && last->role == role;
    if (joins && text_adds(&row->own, "\n\n"))
        return -ENOMEM;
    const size_t at = row->own.n; /* room was reserved: `own` does not move */
    if (text_add(&row->own, text.s, text.n))
        return -ENOMEM;
    if (!joins)
        return add_turn(row, role, (struct slice){row->own.s + at, text.n});
    last->text.n += 2 + text.n;
    return 0;
}

/* Marks of a transcript, as memmem finds them. */
static const char *find_mark(struct slice s, enum turn_role *role, size_t *ret_n)
{
    const char *p = s.s;
    while ((p = memmem(p, s.n - (size_t)(p - s.s), "\n\n", 2))) {
        const size_t left = s.n - (size_t)(p - s.s);
        if (left >= sizeof human - 1 && !memcmp(p, human, sizeof human - 1)) {
            *role = TURN_USER;
            *ret_n = sizeof human - 1;
            return p;
        }
        if (left >= sizeof assistant - 1 && !memcmp(p, assistant, sizeof assistant - 1)) {
            *role = TURN_ASSISTANT;
            *ret_n = sizeof assistant - 1;
            return p;
        }
        p++;
    }
    return NULL;
}

static int parse_transcript(struct row *row, struct slice prompt)
{
    enum turn_role role = TURN_USER, next_role = TURN_USER;
    struct slice s = prompt;
    bool first = true;

    row->own.n = 0;
    if (text_reserve(&row->own, prompt.n)) /* marks are longer than what joins turns */
        return -ENOMEM;
    for (;;) {
        size_t mark_n = 0;
        const char *mark = find_mark(s, &next_role, &mark_n);
        const struct slice text = {s.s, mark ? (size_t)(mark - s.s) : s.n};
        if (first)
            row->odd_turns = slice_trim(text).n > 0;
        const int r = first ? 0 : add_transcript_turn(row, role, text);
        if (r || !mark)
            return r;
        first = false;
        role = next_role;
        s.n -= text.n + mark_n;
        s.s = mark + mark_n;
    }
}

static int parse_hh(const struct rows_rule *rule, struct row *row, enum drop_reason *reason)
{
    struct slice prompt[2] = {{0}};
    const json_t *half[2] = {json_object_get(row->root, "chosen"),
                             json_object_get(row->root, "rejected")};
    const int halves = rule->method == SPEC_SFT ? 1 : 2;

    for (int i = 0; i < halves; i++) {
        if (!json_is_string(half[i]))
            return drop(DROP_MISSING_KEY, reason);
        if (!cut_transcript(slice_of(half[i]), &prompt[i], &row->reply[i]))
            return drop(DROP_EMPTY_PROMPT, reason);
    }
    if (halves == 2 && !slice_equal(prompt[0], prompt[1]))
        return drop(DROP_PROMPT_DIFFERS, reason);
    row->prompt = prompt[0];
    row->raw_replies = true;
    return parse_transcript(row, prompt[0]);
}

/* ---- messages ---- */

static bool role_of(const json_t *message, enum turn_role *ret)
{
    static const struct {
        const char *name;
        enum turn_role role;
    } names[] = {{"system", TURN_SYSTEM},
                 {"user", TURN_USER},
                 {"human", TURN_USER},
                 {"assistant", TURN_ASSISTANT},
                 {"gpt", TURN_ASSISTANT}};
    const char *s = json_string_value(json_object_get(message, "role"));
    if (!s)
        s = json_string_value(json_object_get(message, "from")); /* ShareGPT */
    for (size_t i = 0; s && i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(names[i].name, s)) {
            *ret = names[i].role;
            return true;
        }
    return false;
}

static const json_t *content_of(const json_t *message)
{
    const json_t *c = json_object_get(message, "content");
    if (!c)
        c = json_object_get(message, "value");
    /* OpenAI's parts: one part that is text. */
    if (json_is_array(c) && json_array_size(c) == 1)
        c = json_object_get(json_array_get(c, 0), "text");
    return json_is_string(c) ? c : NULL;
}

/* Appends messages[0..n) as turns. */
static int add_messages(struct row *row, const json_t *list, size_t n, enum drop_reason *reason)
{
    for (size_t i = 0; i < n; i++) {
        enum turn_role role;
        const json_t *message = json_array_get(list, i), *content = content_of(message);
        if (!json_is_object(message) || !content)
            return drop(DROP_MISSING_KEY, reason);
        if (!role_of(message, &role))
            return drop(DROP_ROLES, reason);
        if (add_turn(row, role, slice_of(content)))
            return -ENOMEM;
    }
    return 0;
}

/* The last message of a list, which must be the assistant's. */
static int last_reply(const json_t *list, struct slice *ret, enum drop_reason *reason)
{
    enum turn_role role;
    const size_t n = json_array_size(list);
    const json_t *last = n ? json_array_get(list, n - 1) : NULL, *content = content_of(last);

    if (!last)
        return drop(DROP_EMPTY_REPLY, reason);
    if (!content)
        return drop(DROP_MISSING_KEY, reason);
    if (!role_of(last, &role) || role != TURN_ASSISTANT)
        return drop(DROP_ROLES, reason);
    *ret = slice_of(content);
    return 0;
}

/* Same messages but for the last one. */
static bool same_beginning(const json_t *a, const json_t *b)
{
    const size_t n = json_array_size(a);
    if (n != json_array_size(b))
        return false;
    for (size_t i = 0; i + 1 < n; i++)
        if (!json_equal(json_array_get(a, i), json_array_get(b, i)))
            return false;
    return true;
}

/* prompt: a list, a string, or NULL (the whole conversation is in `half`). */
static int parse_conversations(struct row *row, const json_t *prompt, const json_t *const *half,
                               int halves, enum drop_reason *reason)
{
    enum turn_role first = TURN_USER;
    int r = 0;

    for (int i = 0; i < halves && !r; i++)
        r = last_reply(half[i], &row->reply[i], reason);
    if (r)
        return r;
    if (halves == 2 && !same_beginning(half[0], half[1]))
        return drop(DROP_PROMPT_DIFFERS, reason);
    /* UltraFeedback: a prompt string beside conversations that begin with it. */
    const bool whole = json_is_string(prompt) && role_of(json_array_get(half[0], 0), &first) &&
                       first != TURN_ASSISTANT;
    if (json_is_array(prompt))
        r = add_messages(row, prompt, json_array_size(prompt), reason);
    else if (json_is_string(prompt) && !whole)
        r = add_turn(row, TURN_USER, slice_of(prompt));
    return r ? r : add_messages(row, half[0], json_array_size(half[0]) - 1, reason);
}

/* ---- prompt / chosen / rejected, prompt / completion ---- */

/* Reply i is a string, or a list of messages; all alike. */
static int parse_halves(struct row *row, const json_t *prompt, const json_t *const *half,
                        int halves, enum drop_reason *reason)
{
    bool lists = true, strings = true;
    for (int i = 0; i < halves; i++) {
        lists = lists && json_is_array(half[i]);
        strings = strings && json_is_string(half[i]);
    }
    if (lists)
        return parse_conversations(row, prompt, half, halves, reason);
    if (!strings)
        return drop(DROP_MISSING_KEY, reason);
    for (int i = 0; i < halves; i++)
        row->reply[i] = slice_of(half[i]);
    if (json_is_array(prompt))
        return add_messages(row, prompt, json_array_size(prompt), reason);
    row->prompt = slice_of(prompt);
    row->raw_replies = true;
    return add_turn(row, TURN_USER, row->prompt);
}

static int parse_preference(const struct rows_rule *rule, struct row *row, enum drop_reason *reason)
{
    const json_t *prompt = json_object_get(row->root, "prompt");
    const json_t *half[2] = {json_object_get(row->root, "chosen"),
                             json_object_get(row->root, "rejected")};
    if (!json_is_string(prompt) && !json_is_array(prompt))
        return drop(DROP_MISSING_KEY, reason);
    return parse_halves(row, prompt, half, rule->method == SPEC_SFT ? 1 : 2, reason);
}

static int parse_implicit(const struct rows_rule *rule, struct row *row, enum drop_reason *reason,
                          struct err *err)
{
    const json_t *half[2] = {json_object_get(row->root, "chosen"),
                             json_object_get(row->root, "rejected")};
    if (json_is_array(half[0]))
        return parse_halves(row, NULL, half, rule->method == SPEC_SFT ? 1 : 2, reason);
    if (!json_is_string(half[0]))
        return drop(DROP_MISSING_KEY, reason);
    if (find_last(slice_of(half[0]), assistant, sizeof assistant - 1))
        return parse_hh(rule, row, reason);
    return err_set(err, -EINVAL,
                   "chosen and rejected are strings without a \"prompt\" and without "
                   "\"\\n\\nAssistant:\", so nothing says where the prompt ends; give rows with "
                   "prompt, chosen, rejected or with message lists");
}

static int parse_completion(struct row *row, enum drop_reason *reason)
{
    const json_t *prompt = json_object_get(row->root, "prompt");
    const json_t *half[1] = {json_object_get(row->root, "completion")};
    row->kind = ROW_COMPLETION;
    if (!json_is_string(prompt) && !json_is_array(prompt))
        return drop(DROP_MISSING_KEY, reason);
    return parse_halves(row, prompt, half, 1, reason);
}

static int parse_text(struct row *row, enum drop_reason *reason)
{
    const json_t *text = json_object_get(row->root, "text");
    const json_t *half[1] = {json_object_get(row->root, "messages")};

    if (json_is_string(text)) {
        row->kind = ROW_TEXT;
        row->reply[0] = slice_of(text);
        row->raw_replies = true;
        return 0;
    }
    if (!half[0])
        half[0] = json_object_get(row->root, "conversations");
    row->kind = ROW_MESSAGES;
    if (!json_is_array(half[0]))
        return drop(DROP_MISSING_KEY, reason);
    return parse_halves(row, NULL, half, 1, reason);
}

/* ---- PKU-SafeRLHF ---- */

static int parse_pku(const struct rows_rule *rule, struct row *row, enum drop_reason *reason)
{
    static const char *const keys[2] = {"response_0", "response_1"};
    static const char *const safe_keys[2] = {"is_response_0_safe", "is_response_1_safe"};
    const json_t *prompt = json_object_get(row->root, "prompt"), *response[2];
    int chosen;

    for (int i = 0; i < 2; i++)
        response[i] = json_object_get(row->root, keys[i]);
    if (!json_is_string(prompt) || !json_is_string(response[0]) || !json_is_string(response[1]))
        return drop(DROP_MISSING_KEY, reason);
    if (rule->preference == SPEC_PREF_SAFE) { /* exactly one safe response: it is chosen */
        const json_t *a = json_object_get(row->root, safe_keys[0]);
        const json_t *b = json_object_get(row->root, safe_keys[1]);
        if (!json_is_boolean(a) || !json_is_boolean(b))
            return drop(DROP_MISSING_KEY, reason);
        if (json_is_true(a) == json_is_true(b))
            return drop(DROP_NO_PREFERENCE, reason);
        chosen = json_is_true(b);
    } else {
        const json_t *better = json_object_get(row->root, "better_response_id");
        if (!json_is_integer(better))
            return drop(DROP_MISSING_KEY, reason);
        if (json_integer_value(better) != 0 && json_integer_value(better) != 1)
            return drop(DROP_NO_PREFERENCE, reason);
        chosen = (int)json_integer_value(better);
    }
    const json_t *half[2] = {response[chosen], response[!chosen]};
    return parse_halves(row, prompt, half, 2, reason);
}

static int parse_pku_pairs(struct row *row, enum drop_reason *reason)
{
    const json_t *prompt = json_object_get(row->root, "prompt");
    const json_t *pair = json_object_get(row->root, "response");
    const json_t *half[2] = {json_array_get(pair, 0), json_array_get(pair, 1)};

    if (!json_is_string(prompt) || json_array_size(pair) != 2 || !json_is_string(half[0]))
        return drop(DROP_MISSING_KEY, reason);
    return parse_halves(row, prompt, half, 2, reason);
}

/* ---- any ---- */

const char *rows_format_name(enum spec_format f)
{
    static const char *const names[] = {
        "auto",     "hh-rlhf",           "pku", "pku-pairs", "preference",
        "implicit", "prompt-completion", "text"};
    return (size_t)f < sizeof names / sizeof names[0] ? names[f] : "?";
}

static int unknown_format(json_t *root, enum spec_method method, struct err *err)
{
    char keys[256] = "";
    const char *key;
    json_t *value;

    json_object_foreach(root, key, value)
    {
        const size_t n = strlen(keys);
        if (n + strlen(key) + 3 < sizeof keys)
            (void)snprintf(keys + n, sizeof keys - n, "%s%s", n ? ", " : "", key);
    }
    return err_set(err, -EINVAL, "the first row has the keys %s, which is no known format; %s",
                   keys,
                   method == SPEC_SFT
                       ? "for SFT give prompt and completion, text, messages, or preference rows"
                       : "for DPO give chosen and rejected (with or without prompt), or "
                         "PKU-SafeRLHF's columns");
}

int rows_detect(const char *json, size_t n, enum spec_method method, enum spec_format *ret,
                struct err *err)
{
    json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, NULL);
    int r = 0;

    if (!json_is_object(root)) {
        json_decref(root);
        return 1;
    }
    const json_t *chosen = json_object_get(root, "chosen");
    const bool prompt = json_object_get(root, "prompt") != NULL;
    const bool sft = method == SPEC_SFT;
    if (chosen && (sft || json_object_get(root, "rejected"))) {
        *ret = prompt ? SPEC_FORMAT_PREFERENCE : SPEC_FORMAT_IMPLICIT;
        if (!prompt && json_is_string(chosen) &&
            find_last(slice_of(chosen), assistant, sizeof assistant - 1))
            *ret = SPEC_FORMAT_HH_RLHF;
    } else if (json_object_get(root, "response_0") && json_object_get(root, "response_1")) {
        *ret = SPEC_FORMAT_PKU;
    } else if (prompt && json_is_array(json_object_get(root, "response"))) {
        *ret = SPEC_FORMAT_PKU_PAIRS;
    } else if (sft && prompt && json_object_get(root, "completion")) {
        *ret = SPEC_FORMAT_PROMPT_COMPLETION;
    } else if (sft && (json_object_get(root, "text") || json_object_get(root, "messages") ||
                       json_object_get(root, "conversations"))) {
        *ret = SPEC_FORMAT_TEXT;
    } else {
        r = unknown_format(root, method, err);
    }
    json_decref(root);
    return r;
}

/* What every format shares: something asked, something answered, a difference. */
static int check(const struct rows_rule *rule, const struct row *row, enum drop_reason *reason)
{
    const int halves = row->kind == ROW_PAIR && rule->method != SPEC_SFT ? 2 : 1;
    bool asked = row->kind == ROW_TEXT;

    for (size_t i = 0; i < row->n_turns && !asked; i++)
        asked = row->turns[i].role == TURN_USER && slice_trim(row->turns[i].text).n > 0;
    if (!asked)
        return drop(DROP_EMPTY_PROMPT, reason);
    for (int i = 0; i < halves; i++)
        if (slice_trim(row->reply[i]).n == 0)
            return drop(DROP_EMPTY_REPLY, reason);
    if (halves == 2 && slice_equal(slice_trim(row->reply[0]), slice_trim(row->reply[1])))
        return drop(DROP_SAME_REPLY, reason);
    return 0;
}

static int parse(const struct rows_rule *rule, struct row *row, enum drop_reason *reason,
                 struct err *err)
{
    switch (rule->format) {
    case SPEC_FORMAT_HH_RLHF:
        return parse_hh(rule, row, reason);
    case SPEC_FORMAT_PKU:
        return parse_pku(rule, row, reason);
    case SPEC_FORMAT_PKU_PAIRS:
        return parse_pku_pairs(row, reason);
    case SPEC_FORMAT_PREFERENCE:
        return parse_preference(rule, row, reason);
    case SPEC_FORMAT_IMPLICIT:
        return parse_implicit(rule, row, reason, err);
    case SPEC_FORMAT_PROMPT_COMPLETION:
        return parse_completion(row, reason);
    case SPEC_FORMAT_TEXT:
        return parse_text(row, reason);
    default:
        return err_set(err, -EINVAL, "format %s cannot be read", rows_format_name(rule->format));
    }
}

int rows_parse(const struct rows_rule *rule, const char *json, size_t n, struct row *row,
               enum drop_reason *ret_reason, struct err *err)
{
    json_decref(row->root);
    row->root = json_loadb(json, n, JSON_REJECT_DUPLICATES, NULL);
    row->kind = ROW_PAIR;
    row->n_turns = 0;
    row->odd_turns = row->raw_replies = false;
    row->prompt = row->reply[0] = row->reply[1] = (struct slice){NULL, 0};
    if (!json_is_object(row->root))
        return drop(DROP_BAD_JSON, ret_reason);
    const int r = parse(rule, row, ret_reason, err);
    return r ? r : check(rule, row, ret_reason);
}

void rows_free(struct row *row)
{
    json_decref(row->root);
    text_free(&row->own);
    free(row->turns);
    *row = (struct row){0};
}

int rows_first_user(const struct row *row)
{
    const size_t first = row->n_turns > 0 && row->turns[0].role == TURN_SYSTEM;
    if (row->odd_turns || (row->n_turns - first) % 2 != 1)
        return -1;
    for (size_t i = first; i < row->n_turns; i++)
        if (row->turns[i].role != ((i - first) % 2 ? TURN_ASSISTANT : TURN_USER))
            return -1;
    return (int)first;
}
