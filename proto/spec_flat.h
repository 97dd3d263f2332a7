/* spec_flat.h - a job file's keys under alignd's own names, and where each came
 * from: between the tree a person wrote and the resolved spec. */
#ifndef PROTO_SPEC_FLAT_H
#define PROTO_SPEC_FLAT_H

#include <jansson.h>

#include "proto/spec_value.h"

struct spec_flat {
    json_t *values;  /* canonical key -> value as written (turned where an alias turns it) */
    json_t *from;    /* canonical key -> the key the person wrote                          */
    json_t *aliases; /* written name -> canonical key                                      */
    json_t *ignored; /* [{key, reason}]                                                    */
};

/* Sorts the keys of `root`: own, other names, known without effect, refused, unknown.
 * Problems go to `sink` with the written key as path. Returns 0 or -ENOMEM. */
int spec_flat_make(const json_t *root, struct spec_flat *flat, struct spec_sink *sink);
void spec_flat_fini(struct spec_flat *flat);

#endif
