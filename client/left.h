/* left.h - the adapter that a job left: as it said itself, or its newest checkpoint. */
#ifndef CLIENT_LEFT_H
#define CLIENT_LEFT_H

#include <jansson.h>
#include <stddef.h>

/* A job that was killed says nothing; what it wrote is there all the same, where this
 * machine can see its output_dir. "": none is known. */
const char *left_adapter(const json_t *job, char *buf, size_t room);

#endif
