/* spec_value.h - checks one value of a job file, and the file as a whole. */
#ifndef PROTO_SPEC_VALUE_H
#define PROTO_SPEC_VALUE_H

#include <jansson.h>

#include "proto/spec_key.h"

/* Where problems go. path: "train.0.format"; text: a sentence without the line. */
struct spec_sink {
    void (*add)(void *ctx, const char *path, bool warning, const char *text);
    void *ctx;
    int problems; /* warnings not counted */
};
void spec_sink_add(struct spec_sink *sink, const char *path, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void spec_sink_note(struct spec_sink *sink, const char *path, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Checks `v` as a value of key `k` and returns it in the one form a resolved spec
 * has (to json_decref), or NULL with the problems in `sink`. */
json_t *spec_value_check(const struct spec_key *k, const json_t *v, struct spec_sink *sink);

/* Puts the fallbacks of keys that came later into the values of a resolved spec that has them
 * not. */
void spec_value_fill(json_t *values);

/* Writes a checked value into the struct. Returns 0 or -ENOMEM. */
int spec_value_store(const struct spec_key *k, const json_t *checked, struct spec *spec);

/* What no key says alone. Paths must be absolute by now. */
void spec_value_whole(const struct spec *spec, struct spec_sink *sink);

/* Text for messages: a value as JSON, shortened. */
const char *spec_value_show(const json_t *v, char *buf, size_t room);

#endif
