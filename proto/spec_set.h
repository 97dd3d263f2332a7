/* spec_set.h - --set key=value over a job file's tree. */
#ifndef PROTO_SPEC_SET_H
#define PROTO_SPEC_SET_H

#include <jansson.h>

#include "proto/err.h"
#include "proto/spec_yaml.h"

/* key may be nested: train.0.samples, eval.split_from_train. The value is YAML;
 * null leaves the key out. Replaces other names of the same key, and the other
 * form of the batch size. Returns 0; -EINVAL with the sentence; -ENOMEM. */
int spec_set_apply(json_t *root, struct spec_lines *lines, const char *text, struct err *err);

#endif
