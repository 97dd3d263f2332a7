/* spec_yaml.h - YAML 1.2 (or JSON) text to a JSON tree that knows its lines. */
#ifndef PROTO_SPEC_YAML_H
#define PROTO_SPEC_YAML_H

#include <jansson.h>
#include <stddef.h>

#include "proto/err.h"
#include "proto/spec.h"

/* Parses one document with the scalar types of YAML 1.2's core schema: `yes` is
 * a string, 5e-5 a number. Aliases are expanded up to a bound; tags other than
 * the core ones and merge keys are refused. An empty text gives an empty object.
 *
 * Returns 0 and *ret (to json_decref), lines appended; -EINVAL with the sentence
 * and *ret_line; -ENOMEM. */
int spec_yaml_parse(const char *text, size_t bytes, json_t **ret, struct spec_lines *lines,
                    int *ret_line, struct err *err);

/* What --set wrote at `path` (and below) stands on no line. */
int spec_lines_forget(struct spec_lines *lines, const char *path);

/* `path` stands where `as` does. */
int spec_lines_alias(struct spec_lines *lines, const char *path, const char *as);

#endif
