/* tokenizer_map.h - a table from strings to ids, and back. */
#ifndef WORKER_TOKENIZER_MAP_H
#define WORKER_TOKENIZER_MAP_H

#include <stddef.h>
#include <stdint.h>

enum { TOKENIZER_MAX_ID = 1 << 22 }; /* largest vocabulary known: 2.6e5 (Gemma 3) */

struct tokenizer_map;

int tokenizer_map_new(size_t expected, struct tokenizer_map **ret);
void tokenizer_map_free(struct tokenizer_map *m);

/* The last one put under a string wins, as in serde's maps. The string is copied.
 * -ERANGE: id outside [0, TOKENIZER_MAX_ID). */
int tokenizer_map_put(struct tokenizer_map *m, const char *s, size_t n, int32_t id);
int32_t tokenizer_map_get(const struct tokenizer_map *m, const char *s, size_t n); /* or -1 */
/* The string of an id (NUL-terminated), NULL when there is none. */
const char *tokenizer_map_string(const struct tokenizer_map *m, int32_t id, size_t *ret_n);
int32_t tokenizer_map_end(const struct tokenizer_map *m); /* highest id + 1 */

#endif
