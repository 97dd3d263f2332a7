/* codec.c - the tables of the codec, made from msg.h's list. See codec.h. */
#include "proto/codec.h"

#include "proto/codec_impl.h"

enum { NEED_may, NEED_must };
enum { FIELDS_MAX = 32 };

/* The table of one message's fields; `self` is how a field macro that only knows
 * its own name finds its owner. */
#define FIELD(ftype, fname, fneed, flimit, what) \
    {.name = #fname,                             \
     .type = T_##ftype,                          \
     .must = NEED_##fneed == NEED_must,          \
     .limit = (flimit),                          \
     .at = offsetof(self, fname)},
#define X(num, nam, dialect, role, reply, what)                                        \
    static const struct field *fields_##nam(unsigned *ret_n)                           \
    {                                                                                  \
        typedef struct msg_##nam self;                                                 \
        static const struct field v[] = {MSG_##nam(FIELD){.at = sizeof(self)}};        \
        _Static_assert(sizeof v / sizeof v[0] <= FIELDS_MAX, "fields of one message"); \
        *ret_n = sizeof v / sizeof v[0] - 1;                                           \
        return v;                                                                      \
    }
MSG_LIST(X)
#undef X

static const struct desc descs[] = {
#define X(num, nam, dial, rol, rep, what) \
    {.name = #nam,                        \
     .type = MSG_T_##nam,                 \
     .dialect = MSG_##dial,               \
     .role = MSG_##rol,                   \
     .reply = MSG_T_##rep,                \
     .fields = fields_##nam},
    MSG_LIST(X)
#undef X
};

const struct desc *codec_desc(uint32_t type)
{
    for (size_t i = 0; i < sizeof descs / sizeof descs[0]; i++)
        if ((uint32_t)descs[i].type == type)
            return &descs[i];
    return NULL;
}

void codec_versions(enum msg_dialect d, uint32_t *ret_min, uint32_t *ret_max)
{
    *ret_min = d == MSG_WORKER ? MSG_WORKER_V_MIN : MSG_CLIENT_V_MIN;
    *ret_max = d == MSG_WORKER ? MSG_WORKER_V_MAX : MSG_CLIENT_V_MAX;
    if (d == MSG_BOTH) { /* `error` is the same in all of them */
        *ret_min = 1;
        *ret_max = UINT32_MAX;
    }
}

bool codec_utf8(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s, *end = p + n;

    while (p < end) {
        unsigned more, lo = 0x80, hi = 0xbf;
        if (*p > 0 && *p < 0x80) {
            p++;
            continue;
        }
        if (*p >= 0xc2 && *p <= 0xdf)
            more = 1;
        else if (*p >= 0xe0 && *p <= 0xef)
            more = 2;
        else if (*p >= 0xf0 && *p <= 0xf4)
            more = 3;
        else
            return false;
        if (*p == 0xe0)
            lo = 0xa0;
        else if (*p == 0xed)
            hi = 0x9f;
        else if (*p == 0xf0)
            lo = 0x90;
        else if (*p == 0xf4)
            hi = 0x8f;
        if ((size_t)(end - p) <= more || p[1] < lo || p[1] > hi)
            return false;
        for (unsigned i = 2; i <= more; i++)
            if ((p[i] & 0xc0) != 0x80)
                return false;
        p += more + 1;
    }
    return true;
}

const char *codec_name(enum msg_type t)
{
    const struct desc *d = codec_desc((uint32_t)t);
    return d ? d->name : NULL;
}

enum msg_dialect codec_dialect(enum msg_type t)
{
    const struct desc *d = codec_desc((uint32_t)t);
    return d ? d->dialect : MSG_BOTH;
}

enum msg_role codec_role(enum msg_type t)
{
    const struct desc *d = codec_desc((uint32_t)t);
    return d ? d->role : MSG_REPLY;
}

enum msg_type codec_reply(enum msg_type t)
{
    const struct desc *d = codec_desc((uint32_t)t);
    return d ? d->reply : MSG_T_error;
}

const char *codec_code_text(enum msg_code c)
{
    static const char *const text[MSG_CODES] = {
        [MSG_OK] = "ok",
        [MSG_BUSY] = "too many requests at once",
        [MSG_REFUSED] = "refused",
        [MSG_NOT_FOUND] = "not found",
        [MSG_VERSION] = "protocol version not spoken",
        [MSG_RETRY] = "not now, try again",
        [MSG_INVALID] = "invalid request",
        [MSG_CONFLICT] = "this request id was used for something else",
        [MSG_FENCED] = "this attempt is over",
        [MSG_GAP] = "reports are missing",
        [MSG_INTERNAL] = "internal error",
    };
    return (unsigned)c < MSG_CODES ? text[c] : "unknown error code";
}
