/* supervise_watch.c - which ranks live, which failed first, and what that makes of the gang. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include "proto/log.h"
#include "worker/folder.h"
#include "worker/host.h"
#include "worker/run.h"
#include "worker/supervise_impl.h"

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- ending ---- */

void supervise_watch_tell(struct supervisor *s, unsigned flags)
{
    for (int i = 0; i < s->n_ranks; i++)
        child_tell(&s->ranks[i], flags);
}

void supervise_watch_kill(struct supervisor *s)
{
    for (int i = 0; i < s->n_ranks; i++)
        child_kill(&s->ranks[i]);
}

/* The gang is lost: the others get grace_ms to notice and say so. */
static void end_gang(struct supervisor *s, int rank, const char *why)
{
    if (s->ending_ms == 0) {
        s->ending_ms = now_ms();
        supervise_watch_tell(s, LINK_PEER); /* NCCL itself would not notice */
    }
    if (s->first_rank < 0 && rank >= 0) {
        s->first_rank = rank;
        snprintf(s->why, sizeof s->why, "%s", why);
    }
}

static bool failed_itself(const struct child *c)
{
    if (!c->over || c->killed)
        return false;
    return c->signal != 0 ||
           (c->code != RUN_EXIT_DONE && c->code != RUN_EXIT_STOPPED && c->code != RUN_EXIT_PEER);
}

static void describe_end(const struct child *c, int rank, const struct gang *g, char *buf,
                         size_t size)
{
    if (c->error[0])
        snprintf(buf, size, "%s", c->error);
    else if (c->signal == SIGKILL)
        snprintf(buf, size,
                 "rank %d (%s) was killed with SIGKILL by somebody else; the kernel does that when "
                 "memory runs out",
                 rank, g->devices[rank]);
    else if (c->signal != 0)
        snprintf(buf, size, "rank %d (%s) died of signal %d (%s)", rank, g->devices[rank],
                 c->signal, strsignal(c->signal));
    else
        snprintf(buf, size, "rank %d (%s) exited with code %d", rank, g->devices[rank], c->code);
}

void supervise_watch_reap(struct supervisor *s)
{
    for (int i = 0; i < s->n_ranks; i++) {
        struct child *c = &s->ranks[i];
        struct rusage u;
        char why[1024];

        if (c->over || !child_reap(c, &u))
            continue;
        while (child_hear(c, s->packet) == 1)
            ; /* its last words */
        s->n_alive--;
        timeradd(&s->used.ru_utime, &u.ru_utime, &s->used.ru_utime);
        timeradd(&s->used.ru_stime, &u.ru_stime, &s->used.ru_stime);
        if (u.ru_maxrss > s->peak_kb)
            s->peak_kb = u.ru_maxrss;
        log_info("rank_over", "rank=%d code=%d signal=%d step=%lld", i, c->code, c->signal,
                 (long long)c->step);
        if (c->code == RUN_EXIT_DONE && c->signal == 0)
            continue;
        describe_end(c, i, s->gang, why, sizeof why);
        if (s->first_rank < 0 && c->signal == SIGKILL && !c->killed &&
            host_oom_kills() > s->oom_kills) {
            s->oom = true;
            snprintf(why, sizeof why,
                     "rank %d (%s) was killed by the kernel: the memory limit of its control group "
                     "was reached",
                     i, s->gang->devices[i]);
        }
        if (failed_itself(c))
            end_gang(s, i, why);
        else if (c->code == RUN_EXIT_PEER && !c->killed)
            end_gang(s, -1, why);
    }
}

/* ---- watching ---- */

static void watch_silence(struct supervisor *s, int64_t now)
{
    char why[256];

    for (int i = 0; i < s->n_ranks; i++) {
        struct child *c = &s->ranks[i];
        if (c->over || c->killed || now - c->heard_ms < s->gang->silence_ms)
            continue;
        snprintf(why, sizeof why, "rank %d (%s) was silent for %.0f s and was killed", i,
                 s->gang->devices[i], (double)(now - c->heard_ms) / 1000);
        log_warn("rank_silent", "rank=%d ms=%lld", i, (long long)(now - c->heard_ms));
        end_gang(s, i, why);
        child_kill(c);
    }
}

/* All ranks of a step wait for the slowest: the bound holds for the gang. */
static void watch_steps(struct supervisor *s, int64_t now)
{
    int64_t latest = 0, bound = s->gang->stall_ms;
    int behind = -1;
    char why[256];

    for (int i = 0; i < s->n_ranks; i++) {
        const struct child *c = &s->ranks[i];
        if (c->over || c->phase != LINK_TRAINING)
            return;
        if (c->moved_ms > latest)
            latest = c->moved_ms;
        if (10 * c->step_ms > bound)
            bound = 10 * c->step_ms;
        if (behind < 0 || c->step < s->ranks[behind].step)
            behind = i;
    }
    if (behind < 0 || s->killed || now - latest < bound)
        return;
    snprintf(why, sizeof why,
             "no step for %.0f s (bound %.0f s); rank %d (%s) stands at step %lld; all were killed",
             (double)(now - latest) / 1000, (double)bound / 1000, behind, s->gang->devices[behind],
             (long long)s->ranks[behind].step);
    end_gang(s, behind, why);
    supervise_watch_kill(s);
}

void supervise_watch_turn(struct supervisor *s)
{
    const int64_t now = now_ms();

    if (s->n_alive == 0)
        return;
    watch_silence(s, now);
    if (s->ending_ms == 0)
        watch_steps(s, now);
    else if (now - s->ending_ms >= s->gang->grace_ms)
        supervise_watch_kill(s);
    for (int i = 0; i < s->n_ranks; i++)
        child_cap_log(&s->ranks[i]);
}

/* ---- the end ---- */

bool supervise_watch_stuck(const struct supervisor *s)
{
    const int64_t patience_ms = 2 * s->gang->grace_ms;

    for (int i = 0; i < s->n_ranks; i++) {
        const struct child *c = &s->ranks[i];
        if (!c->over && (!c->killed || now_ms() - c->killed_ms < patience_ms))
            return false;
    }
    return true;
}

/* They count as killed, which they will be when the kernel lets go of them. */
static void name_the_stuck(struct supervisor *s)
{
    for (int i = 0; i < s->n_ranks; i++) {
        struct child *c = &s->ranks[i];
        const size_t n = strlen(s->why);
        if (c->over)
            continue;
        c->signal = SIGKILL;
        snprintf(s->why + n, sizeof s->why - n,
                 "%srank %d (%s) cannot be killed: it hangs in the kernel", n ? "; " : "", i,
                 s->gang->devices[i]);
        log_error("rank_stuck", "rank=%d pid=%d", i, (int)c->pid);
    }
}

static void end_code(const struct supervisor *s, struct gang_exit *e)
{
    const struct child *first = s->first_rank >= 0 ? &s->ranks[s->first_rank] : NULL;

    e->first_rank = s->first_rank;
    if (first) {
        e->code = s->oom ? RUN_EXIT_OOM : first->code;
        e->signal = s->oom ? 0 : first->signal;
        return;
    }
    for (int i = 0; i < s->n_ranks; i++) { /* nobody failed by itself: 75, stopped, done, killed */
        const struct child *c = &s->ranks[i];
        if (c->signal == 0 && c->code == RUN_EXIT_PEER && e->first_rank < 0 && !s->killed) {
            e->first_rank = i;
            e->code = c->code;
            e->signal = 0;
            snprintf(e->error, sizeof e->error, "%s",
                     c->error[0] ? c->error : "every rank saw another one vanish");
        }
        if (e->first_rank < 0 && c->signal != 0)
            e->signal = c->signal;
        if (e->first_rank < 0 && c->code > e->code)
            e->code = c->code;
    }
}

void supervise_watch_record(struct supervisor *s, struct gang_exit *e)
{
    const char *dir = s->gang->output_dir;
    const int64_t checkpoint = folder_newest_checkpoint(dir);

    name_the_stuck(s);
    memset(e, 0, sizeof *e);
    snprintf(e->error, sizeof e->error, "%s", s->why);
    end_code(s, e);
    e->step = s->step;
    e->peak_rss_kb = s->peak_kb;
    e->user_s = (double)s->used.ru_utime.tv_sec + 1e-6 * (double)s->used.ru_utime.tv_usec;
    e->system_s = (double)s->used.ru_stime.tv_sec + 1e-6 * (double)s->used.ru_stime.tv_usec;
    e->wall_s = (double)(now_ms() - s->started_ms) / 1000;
    if (e->code == RUN_EXIT_DONE && e->signal == 0 && e->first_rank < 0 && s->n_ranks > 0)
        snprintf(e->adapter, sizeof e->adapter, "%s", dir);
    else if (checkpoint >= 0)
        snprintf(e->adapter, sizeof e->adapter, "%s/checkpoint-%lld", dir, (long long)checkpoint);
    e->n_ranks = s->n_ranks;
    for (int i = 0; i < s->n_ranks; i++)
        e->ranks[i] = (struct gang_end){s->ranks[i].code, s->ranks[i].signal, s->ranks[i].step};
}
