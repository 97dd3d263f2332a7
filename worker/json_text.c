/* json_text.c - see json_text.h. */
#include "worker/json_text.h"

#include <stdlib.h>

char *json_text(const json_t *o, size_t flags)
{
    for (size_t digits = 15; digits < 17; digits++) {
        char *text = json_dumps(o, flags | JSON_REAL_PRECISION(digits));
        json_t *back = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
        const int same = back && json_equal(o, back);
        json_decref(back);
        if (same)
            return text;
        free(text);
    }
    return json_dumps(o, flags | JSON_REAL_PRECISION(17));
}
