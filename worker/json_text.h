/* json_text.h - JSON documents as text, numbers as people wrote them. */
#ifndef WORKER_JSON_TEXT_H
#define WORKER_JSON_TEXT_H

#include <jansson.h>

/* json_dumps with the fewest digits that read back as the same document. */
char *json_text(const json_t *o, size_t flags);

#endif
