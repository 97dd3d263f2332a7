/* event.c - the list of effects that one batch is made of, and its memory. */
#include "daemon/event.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 16 << 10, ALIGN = 16 };

struct fx_block {
    struct fx_block *next;
    size_t used, size;
    _Alignas(ALIGN) unsigned char data[];
};

bool event_is_row(enum effect_kind kind)
{
    return kind > 0 && kind < FX_ROWS_END;
}

struct effect *event_add(struct effects *fx, enum effect_kind kind)
{
    static _Thread_local struct effect dummy;

    if (fx->n == fx->cap) {
        const size_t cap = fx->cap ? 2 * fx->cap : 16;
        struct effect *v = realloc(fx->v, cap * sizeof *v);
        if (!v) {
            fx->failed = true;
            memset(&dummy, 0, sizeof dummy);
            return &dummy;
        }
        fx->v = v;
        fx->cap = cap;
    }
    struct effect *e = &fx->v[fx->n++];
    memset(e, 0, sizeof *e);
    e->kind = kind;
    fx->rows += event_is_row(kind);
    return e;
}

static void *take(struct effects *fx, size_t n)
{
    struct fx_block *b = fx->blocks;
    const size_t want = (n + ALIGN - 1) / ALIGN * ALIGN;

    if (want < n)
        goto fail;
    if (!b || b->size - b->used < want) {
        const size_t size = want > BLOCK_BYTES / 4 ? want : BLOCK_BYTES;
        struct fx_block *made = malloc(sizeof *made + size);
        if (!made)
            goto fail;
        made->used = 0;
        made->size = size;
        if (b && want > BLOCK_BYTES / 4) { /* keep filling the one we have */
            made->next = b->next;
            b->next = made;
        } else {
            made->next = b;
            fx->blocks = made;
        }
        b = made;
    }
    void *p = b->data + b->used;
    b->used += want;
    return p;
fail:
    fx->failed = true;
    return NULL;
}

void *event_copy(struct effects *fx, const void *bytes, size_t n)
{
    void *p = bytes ? take(fx, n ? n : 1) : NULL;

    if (p && n)
        memcpy(p, bytes, n);
    return p;
}

const char *event_text(struct effects *fx, const char *s)
{
    return s ? event_copy(fx, s, strlen(s) + 1) : NULL;
}

const char *event_format(struct effects *fx, const char *fmt, ...)
{
    char buf[1024];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    return event_text(fx, buf);
}

void event_effects_fini(struct effects *fx)
{
    if (!fx)
        return;
    while (fx->blocks) {
        struct fx_block *next = fx->blocks->next;
        free(fx->blocks);
        fx->blocks = next;
    }
    free(fx->v);
    memset(fx, 0, sizeof *fx);
}

const char *event_kind_name(enum event_kind k)
{
    static const char *const names[EVENT_KINDS] = {
        [EV_SUBMIT] = "submit",
        [EV_CANCEL] = "cancel",
        [EV_RESUME] = "resume",
        [EV_HOLD] = "hold",
        [EV_RELEASE] = "release",
        [EV_DRAIN] = "drain",
        [EV_HELLO] = "hello",
        [EV_REPORT] = "report",
        [EV_EXIT_RECORD] = "exit_record",
        [EV_POLL] = "poll",
        [EV_RDV_PUT] = "rdv_put",
        [EV_RDV_GET] = "rdv_get",
        [EV_GANG_ALIVE] = "gang_alive",
        [EV_GANG_ABSENT] = "gang_absent",
        [EV_GANG_EXITED] = "gang_exited",
        [EV_GANG_LOST] = "gang_lost",
        [EV_LAUNCH_FAILED] = "launch_failed",
        [EV_DEVICE] = "device",
        [EV_FAULT] = "fault",
        [EV_RECONCILED] = "reconciled",
        [EV_STORE_FULL] = "store_full",
        [EV_STORE_OK] = "store_ok",
        [EV_TICK] = "tick",
        [EV_RECALL] = "recall",
        [EV_SHUTDOWN] = "shutdown",
    };
    return (unsigned)k < EVENT_KINDS && names[k] ? names[k] : "?";
}

const char *event_fx_name(enum effect_kind k)
{
    static const char *const names[EFFECT_KINDS] = {
        [FX_SUBMITTED] = "submitted",
        [FX_RESPEC] = "respec",
        [FX_JOB] = "job",
        [FX_ATTEMPT] = "attempt",
        [FX_GANG] = "gang",
        [FX_GANG_GONE] = "gang_gone",
        [FX_DEVICE] = "device",
        [FX_REPORTED] = "reported",
        [FX_REPORT] = "report",
        [FX_REWIND] = "rewind",
        [FX_RDV_PUT] = "rdv_put",
        [FX_RDV_CLEAR] = "rdv_clear",
        [FX_REQUEST] = "request",
        [FX_REQUEST_DROP] = "request_drop",
        [FX_META] = "meta",
        [FX_LAUNCH] = "launch",
        [FX_STOP] = "stop",
        [FX_KILL] = "kill",
        [FX_REPLY] = "reply",
        [FX_HOLD] = "hold",
    };
    return (unsigned)k < EFFECT_KINDS && names[k] ? names[k] : "?";
}
