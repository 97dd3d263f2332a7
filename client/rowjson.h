/* rowjson.h - a report row as one line of JSON, as `metrics --json` prints it. */
#ifndef CLIENT_ROWJSON_H
#define CLIENT_ROWJSON_H

#include "proto/buf.h"
#include "proto/msg.h"

/* {"seq":1,"attempt":1,"kind":"train","global_step":1,"loss":0.69,...} and a newline. A
 * value that is not finite is null and named in "nonfinite". */
void rowjson_add(const struct msg_row *row, struct buf *out);
const char *rowjson_kind(enum msg_kind kind);

#endif
