/* codec_impl.h - the tables that both directions of the codec walk; theirs alone. */
#ifndef PROTO_CODEC_IMPL_H
#define PROTO_CODEC_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/msg.h"

enum field_type { T_u64, T_i64, T_flag, T_str, T_bin, T_key, T_token, T_rows };
enum { ROW_PARTS = 9, NAME_BYTES = 64 }; /* of a metric row on the wire */

struct field {
    const char *name;
    enum field_type type;
    bool must;
    uint64_t limit;
    size_t at; /* offset in the message's struct */
};

struct desc {
    const char *name;
    enum msg_type type;
    enum msg_dialect dialect;
    enum msg_role role;
    enum msg_type reply;
    const struct field *(*fields)(unsigned *ret_n);
};

const struct desc *codec_desc(uint32_t type); /* NULL: no such message */
/* Versions of a dialect that this build speaks. */
void codec_versions(enum msg_dialect d, uint32_t *ret_min, uint32_t *ret_max);
bool codec_utf8(const char *s, size_t n); /* RFC 3629, without NULs */

#endif
