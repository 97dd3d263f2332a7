/* rowjson.c - see rowjson.h. */
#include "client/rowjson.h"

#include <math.h>

const char *rowjson_kind(enum msg_kind kind)
{
    static const char *const names[MSG_ROW_KINDS] = {"start", "train", "eval", "summary", "rewind"};
    return (unsigned)kind < MSG_ROW_KINDS ? names[kind] : "?";
}

void rowjson_add(const struct msg_row *row, struct buf *out)
{
    const char *comma = "";
    bool odd = false;
    (void)buf_printf(out,
                     "{\"seq\":%llu,\"attempt\":%u,\"n\":%llu,\"kind\":\"%s\",\"global_step\":%lld,"
                     "\"wall_ms\":%lld",
                     (unsigned long long)row->seq, row->attempt, (unsigned long long)row->n,
                     rowjson_kind(row->kind), (long long)row->step, (long long)row->wall_ms);
    if (row->superseded)
        (void)buf_str(out, ",\"superseded\":true");
    for (uint32_t i = 0; i < row->n_values; i++) {
        (void)buf_str(out, ",");
        (void)buf_json(out, row->names[i]);
        (void)buf_str(out, ":");
        (void)buf_json_double(out, row->values[i]);
        odd = odd || !isfinite(row->values[i]);
    }
    if (odd) {
        (void)buf_str(out, ",\"nonfinite\":[");
        for (uint32_t i = 0; i < row->n_values; i++) {
            if (isfinite(row->values[i]))
                continue;
            (void)buf_str(out, comma);
            (void)buf_json(out, row->names[i]);
            comma = ",";
        }
        (void)buf_str(out, "]");
    }
    (void)buf_str(out, "}\n");
}
