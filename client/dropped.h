/* dropped.h - counts of a run's dropped rows by reason, from its dropped.jsonl. */
#ifndef CLIENT_DROPPED_H
#define CLIENT_DROPPED_H

#include <jansson.h>

/* {"empty_reply": 4}; NULL when output_dir has no such file. Lines that are none are
 * passed over. To json_decref. */
json_t *dropped_count(const char *output_dir);

#endif
