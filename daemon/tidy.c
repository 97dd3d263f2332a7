/* tidy.c - when the store tidies up: a piece at a time, while it has nothing else to do. */
#include <errno.h>
#include <string.h>

#include "daemon/alignd.h"
#include "proto/log.h"

enum {
    FIRST_MS = 1000,  /* after the start                                             */
    NEXT_MS = 20,     /* between pieces; a commit may come between any two           */
    IDLE_MS = 60000,  /* when nothing was left to do                                 */
    AGAIN_MS = 60000, /* after a full disk                                           */
};

static void on_timer(uv_timer_t *t)
{
    struct alignd *a = t->data;
    const struct store_keep keep = {.age_s = core_age(a->core),
                                    .metrics_s = a->config->metrics_keep_s,
                                    .logs_s = a->config->logs_keep_s};

    if (core_stopping(a->core))
        return;
    if (a->store_full || !effects_tidy(a, &keep))
        uv_timer_start(t, on_timer, a->store_full ? AGAIN_MS : NEXT_MS, 0);
}

void tidy_done(struct alignd *a, int r, const struct store_tidied *what, const char *why)
{
    struct store_tidied *sum = &a->tidied;

    if (r < 0 && r != -ENOSPC) { /* an old page that cannot be read must not end the service */
        log_error("tidy", "failed=\"%s\"; old rows and output stay until the next start", why);
        return;
    }
    sum->rows += what->rows;
    sum->log_bytes += what->log_bytes;
    sum->pages += what->pages;
    if (r == 0 && !what->more && (sum->rows || sum->log_bytes || sum->pages)) {
        log_info("tidy", "rows=%llu log_bytes=%llu pages=%llu", (unsigned long long)sum->rows,
                 (unsigned long long)sum->log_bytes, (unsigned long long)sum->pages);
        *sum = (struct store_tidied){0};
    }
    uv_timer_start(&a->tidy, on_timer, r < 0 ? AGAIN_MS : what->more ? NEXT_MS : IDLE_MS, 0);
}

void tidy_open(struct alignd *a)
{
    uv_timer_init(a->loop, &a->tidy);
    a->tidy.data = a;
    uv_timer_start(&a->tidy, on_timer, FIRST_MS, 0);
}
