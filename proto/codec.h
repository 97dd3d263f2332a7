/* codec.h - message <-> msgpack, bounds-checked both ways (fuzzed). */
#ifndef PROTO_CODEC_H
#define PROTO_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "proto/err.h"
#include "proto/msg.h"

/* Encodes m->type and its fields. *ret is malloc'ed. Version 0 becomes the newest
 * of the message's dialect. Returns 0; -EINVAL (no such type, a string that is not
 * UTF-8 free of NULs, rows whose parts do not fit together); -EMSGSIZE (a value over
 * its limit, or the frame over LIMIT_MSG_BYTES); -ENOMEM. err may be NULL. */
int codec_encode(const struct msg *m, uint8_t **ret, size_t *ret_bytes, struct err *err);

/* Decodes a frame (hostile input). *ret is to codec_free. Returns 0; -EINVAL (err
 * names the field); -EMSGSIZE (too big, too deep, too many parts); -EPROTONOSUPPORT
 * (a version this build does not speak; codec_peek tells which); -ENOMEM. */
int codec_decode(const void *data, size_t bytes, struct msg **ret, struct err *err);
void codec_free(struct msg *m); /* NULL is a no-op */

/* Type and version of a frame of any version, without the rest. -EINVAL: no map
 * with "v" and "t". The type may be one this build does not know. */
int codec_peek(const void *data, size_t bytes, uint32_t *ret_type, uint32_t *ret_version);

/* NULL: no such type. */
const char *codec_name(enum msg_type t);
enum msg_dialect codec_dialect(enum msg_type t);
enum msg_role codec_role(enum msg_type t);
enum msg_type codec_reply(enum msg_type t); /* the reply of a request */

/* "not found"; for people */
const char *codec_code_text(enum msg_code c);

#endif
