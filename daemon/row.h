/* row.h - a report's named values as one run of bytes.
 *
 * Packed: the number of values and of name bytes (uint32 each), the names, each
 * with its NUL, then the values as doubles. It is what the core carries as
 * event_row.vals; the store splits it, because rows of a kind share their names. */
#ifndef DAEMON_ROW_H
#define DAEMON_ROW_H

#include <stddef.h>
#include <stdint.h>

#include "proto/msg.h"

size_t row_packed_bytes(const struct msg_row *r);
void row_pack(const struct msg_row *r, void *to); /* row_packed_bytes(r) bytes */

/* The two parts of packed bytes. -EINVAL: not packed by row_pack. */
int row_split(const void *packed, size_t bytes, const char **ret_names, size_t *ret_names_bytes,
              const void **ret_values, uint32_t *ret_n);

/* Values to and from a msgpack array of float64. *ret of row_values_pack is
 * malloc'ed; row_values_unpack fills n doubles. -EINVAL, -ENOMEM. */
int row_values_pack(const void *values, uint32_t n, uint8_t **ret, size_t *ret_bytes);
int row_values_unpack(const void *data, size_t bytes, double *to, uint32_t n);

/* Rows that own their memory. {0} is empty. */
struct row_page {
    struct msg_row *v;
    size_t n, cap;
    void **blocks;
    size_t n_blocks, cap_blocks;
};

/* Appends *r with copies of its names (n_values strings, one after the other) and
 * values. Equal names of neighbours are kept once. -ENOMEM. */
int row_page_add(struct row_page *p, const struct msg_row *r, const char *names, size_t names_bytes,
                 const void *values);
void row_page_fini(struct row_page *p);

#endif
