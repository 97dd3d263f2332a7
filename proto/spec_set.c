/* spec_set.c - see spec_set.h. */
#include "proto/spec_set.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "proto/spec_key.h"

enum { KEY_ROOM = 256 };

static const char *canonical(const char *name)
{
    for (size_t i = 0; i < spec_n_aliases; i++)
        if (strcmp(spec_aliases[i].name, name) == 0)
            return spec_aliases[i].key;
    return name;
}

static bool is_per_device(const char *name)
{
    return strcmp(name, "per_device_train_batch_size") == 0 ||
           strcmp(name, "gradient_accumulation_steps") == 0;
}

/* Does a new value for `name` make the file's `other` void? */
static bool replaces(const char *name, const char *other)
{
    const char *a = canonical(name), *b = canonical(other);
    if (strcmp(name, other) == 0)
        return false;
    return strcmp(a, b) == 0 || (strcmp(a, "train_batch_size") == 0 && is_per_device(b)) ||
           (is_per_device(a) && strcmp(b, "train_batch_size") == 0);
}

static void drop_replaced(json_t *root, const char *name)
{
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(root, next, key, value)
    {
        if (replaces(name, key))
            (void)json_object_del(root, key);
    }
}

/* Index text of an array; false if it is none or out of range (n itself appends). */
static bool list_index(const char *s, size_t n, size_t *ret)
{
    char *end = NULL;
    if (!*s || strlen(s) > 6 || strspn(s, "0123456789") != strlen(s))
        return false;
    *ret = (size_t)strtoul(s, &end, 10);
    return *ret <= n;
}

/* Puts value (stolen) at part, in map or list. */
static int put_at(json_t *where, const char *part, json_t *value, struct err *err)
{
    size_t i;
    int r;
    if (json_is_object(where)) {
        r = json_object_set_new(where, part, value);
        return r < 0 ? err_set(err, -EINVAL, "`%.60s` is not a key", part) : 0;
    }
    if (!json_is_array(where) || !list_index(part, json_array_size(where), &i)) {
        json_decref(value);
        return err_set(err, -EINVAL, "there is no entry `%.60s` to set", part);
    }
    r = i == json_array_size(where) ? json_array_append_new(where, value)
                                    : json_array_set_new(where, i, value);
    return r < 0 ? -ENOMEM : 0;
}

/* The child to go on in; made when it is missing or null. */
static json_t *step_into(json_t *where, const char *part, struct err *err)
{
    size_t i;
    json_t *next = NULL;
    if (json_is_object(where))
        next = json_object_get(where, part);
    else if (json_is_array(where) && list_index(part, json_array_size(where), &i))
        next = json_array_get(where, i);
    if (json_is_object(next) || json_is_array(next))
        return next;
    if (next && !json_is_null(next)) {
        (void)err_set(err, -EINVAL, "`%.60s` has nothing below it", part);
        return NULL;
    }
    next = json_object();
    if (!next || put_at(where, part, next, err) < 0)
        return NULL;
    return next;
}

static int walk(json_t *root, char *key, json_t *value, struct err *err)
{
    json_t *where = root;
    char *part = key, *dot;
    while ((dot = strchr(part, '.'))) {
        *dot = '\0';
        where = step_into(where, part, err);
        if (!where) {
            json_decref(value);
            return -EINVAL;
        }
        part = dot + 1;
    }
    if (json_is_null(value) && json_is_object(where)) {
        (void)json_object_del(where, part);
        json_decref(value);
        return 0;
    }
    return put_at(where, part, value, err);
}

int spec_set_apply(json_t *root, struct spec_lines *lines, const char *text, struct err *err)
{
    char key[KEY_ROOM], full[KEY_ROOM];
    const char *eq = strchr(text, '=');
    struct err why = {""};
    json_t *value = NULL;
    int line;

    if (!eq || eq == text || (size_t)(eq - text) >= sizeof key)
        return err_set(err, -EINVAL, "--set %.100s: must be key=value", text);
    memcpy(key, text, (size_t)(eq - text));
    key[eq - text] = '\0';
    memcpy(full, key, sizeof full);
    if (key[0] == '.' || strstr(key, "..") || key[strlen(key) - 1] == '.')
        return err_set(err, -EINVAL, "--set %.100s: `%.60s` is not a key", text, key);
    if (eq[1 + strspn(eq + 1, " ")] == '\0')
        value = json_null();
    else if (spec_yaml_parse(eq + 1, strlen(eq + 1), &value, NULL, &line, &why) < 0)
        return err_set(err, -EINVAL, "--set %.100s: %.300s", text, why.text);
    int r = walk(root, key, value, &why);
    if (r < 0)
        return err_set(err, r, "--set %.100s: %.300s", text, why.text);
    if (!strchr(full, '.'))
        drop_replaced(root, full);
    return spec_lines_forget(lines, full);
}
