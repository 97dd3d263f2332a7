/* gangs.c - the machine's side of the simulated world: supervisors, ranks, and the
 * launcher's eyes. */
#include <stdio.h>
#include <string.h>

#include "tests/support/test.h"

#include "tests/sim/world.h"

#define ID(x) ((unsigned long long)(x))

/* splitmix64 */
uint64_t world_rnd(struct world *w)
{
    w->rng += 0x9e3779b97f4a7c15u;
    uint64_t z = w->rng;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

bool world_one_in(struct world *w, unsigned n)
{
    return !w->quiet && world_rnd(w) % n == 0;
}

/* The network: what is sent may be lost, and may arrive twice and in any order. The
 * launcher is a part of the daemon: it may be slow, but says everything once. */
void world_post(struct world *w, struct world_mail m)
{
    m.life = w->life;
    const unsigned room = m.kind < MAIL_GANG_EXITED ? WORLD_MAILS - WORLD_GANGS : WORLD_MAILS;
    if (w->n_mails + 2 > room)
        return;
    w->mail[w->n_mails++] = m;
    if (m.kind < MAIL_GANG_EXITED && world_one_in(w, w->repeat_in))
        w->mail[w->n_mails++] = m;
}

const char *world_device(unsigned i)
{
    static const char *const names[WORLD_DEVICES] = {"cpu:0", "cpu:1", "cpu:2",
                                                     "cpu:3", "gpu:0", "gpu:1"};
    return names[i];
}

bool world_device_fault(const struct world *w, const char *name)
{
    for (size_t i = 0; i < w->disk.n_devices; i++)
        if (strcmp(w->disk.device[i].name, name) == 0)
            return w->disk.device[i].fault && w->disk.device[i].boot_id[0] == w->boot;
    return false;
}

bool world_gang_alive(const struct world_gang *g)
{
    return g->sup || g->ranks;
}

struct world_gang *world_gang(struct world *w, uint64_t job, uint32_t attempt, bool make)
{
    for (unsigned i = 0; i < w->n_gangs; i++)
        if (w->gang[i].job == job && w->gang[i].attempt == attempt)
            return &w->gang[i];
    if (!make)
        return NULL;
    if (w->n_gangs == WORLD_GANGS)
        fail_msg("more gangs than there can be");
    struct world_gang *g = &w->gang[w->n_gangs++];
    memset(g, 0, sizeof(*g));
    g->job = job;
    g->attempt = attempt;
    return g;
}

/* ---- launcher ------------------------------------------------------------ */

static unsigned index_of(const struct world *w, const struct world_gang *g)
{
    return (unsigned)(g - w->gang);
}

static void check_launch(struct world *w, const struct fx_launch *l)
{
    const struct disk_job *j = disk_job(&w->disk, l->job);

    if (j->row.attempt < l->attempt || !j->attempt[l->attempt].attempt)
        fail_msg("job %llu: attempt %u is launched before it is stored", ID(l->job), l->attempt);
    for (unsigned i = 0; i < w->n_gangs; i++) {
        const struct world_gang *o = &w->gang[i];
        if (o->job == l->job && o->attempt == l->attempt)
            continue;
        if (o->job == l->job && o->attempt > l->attempt)
            fail_msg("job %llu: attempt %u after attempt %u", ID(l->job), l->attempt, o->attempt);
        if (o->job == l->job && (o->ranks || (o->sup && !o->has_exit) || o->spawned))
            fail_msg("job %llu: attempts %u and %u live together", ID(l->job), o->attempt,
                     l->attempt);
        if (!o->ranks && !(o->sup && !o->has_exit))
            continue;
        for (unsigned a = 0; a < o->n_devices; a++)
            for (unsigned b = 0; b < l->n_devices; b++)
                if (strcmp(world_device(o->device[a]), l->devices[b]) == 0)
                    fail_msg("jobs %llu and %llu share %s", ID(o->job), ID(l->job), l->devices[b]);
    }
}

void world_launch(struct world *w, const struct fx_launch *l)
{
    struct world_gang *g = world_gang(w, l->job, l->attempt, true);

    check_launch(w, l);
    if (g->sup || g->spawned) /* loses the lock */
        return;
    if (l->drain) {
        if (!g->has_exit || g->ranks)
            fail_msg("job %llu: there is nothing to drain", ID(l->job));
        if (world_one_in(w, w->launch_in)) {
            world_post(w, (struct world_mail){.kind = world_rnd(w) % 2 ? MAIL_LAUNCH_FAILED
                                                                       : MAIL_GANG_EXITED,
                                              .who = index_of(w, g)});
            g->rows_lost = true;
            return;
        }
        g->sup = g->drain = true;
        g->hello = g->fenced = g->seen_over = false;
        g->fill = 1;
        g->fill_expect = 0;
        return;
    }
    if (g->lock)
        fail_msg("job %llu: attempt %u is started a second time", ID(l->job), l->attempt);
    if (g->launch_failed)
        fail_msg("job %llu: attempt %u is launched after it failed", ID(l->job), l->attempt);
    if (l->n_devices == 0)
        fail_msg("job %llu: launched on nothing", ID(l->job));
    g->n_devices = l->n_devices;
    for (unsigned i = 0; i < l->n_devices; i++)
        for (unsigned k = 0; k < WORLD_DEVICES; k++)
            if (strcmp(world_device(k), l->devices[i]) == 0)
                g->device[i] = k;
    if (world_one_in(w, w->launch_in)) {
        g->launch_failed = true;
        world_post(w, (struct world_mail){.kind = MAIL_LAUNCH_FAILED, .who = index_of(w, g)});
        return;
    }
    g->spawned = true;
    g->steps = w->disk.job[l->job].row.steps;
    g->deaf = world_one_in(w, 10);
}

void world_tell(struct world *w, const struct fx_gang_ref *r, bool kill)
{
    struct world_gang *g = world_gang(w, r->job, r->attempt, false);

    if (!g)
        return;
    g->told = true;
    if (!kill) {
        g->stop |= g->sup; /* SIGTERM before it listens is nothing */
        return;
    }
    g->kill = true;
    g->sup = false;
    if (g->spawned) {
        g->spawned = false;
        g->lock = true; /* it was there, and is gone */
    }
    if (g->drain)
        g->rows_lost = true;
}

/* What the launcher sees of a gang, and says once (or twice). */
static void launcher_turn(struct world *w, struct world_gang *g)
{
    if (g->ranks && !g->sup && (w->quiet || world_rnd(w) % 3 == 0))
        g->ranks = false; /* PDEATHSIG, or the launcher's kill */
    if (!g->lock || world_gang_alive(g) || g->seen_over || !w->core)
        return;
    g->seen_over = true;
    world_post(w, (struct world_mail){.kind = g->has_exit ? MAIL_GANG_EXITED : MAIL_GANG_LOST,
                                      .who = index_of(w, g)});
}

void world_reboot(struct world *w)
{
    for (unsigned i = 0; i < w->n_gangs; i++) {
        struct world_gang *g = &w->gang[i];
        if (g->spawned)
            g->lock = true;
        g->rows_lost |= g->drain && g->sup;
        g->spawned = g->sup = g->ranks = false;
    }
    w->boot++;
    w->now_ns = 1000000000;
}

/* ---- ranks --------------------------------------------------------------- */

static void spool(struct world_gang *g, uint8_t kind, int64_t step)
{
    if (g->n_spool == WORLD_SPOOL)
        fail_msg("a spool is full");
    g->spool[g->n_spool++] = (struct world_spool){kind, step};
}

static void ranks_end(struct world_gang *g, int code, int signal)
{
    g->ranks = false;
    g->ending = true;
    g->exit = (struct event_exit){.code = code,
                                  .signal = signal,
                                  .first_rank = code || signal ? 0 : -1,
                                  .step = g->step,
                                  .error = code ? "it failed" : NULL,
                                  .adapter = code == 85 ? "/a/checkpoint" : NULL};
}

static void publish(struct world *w, struct world_gang *g)
{
    w->job[g->job].published = g->steps;
    g->phase = JOB_PHASE_DONE;
}

static void fail_somehow(struct world *w, struct world_gang *g)
{
    static const int codes[] = {1, JOB_EXIT_PEER, JOB_EXIT_STOPPED, JOB_EXIT_OOM, 0, 2};
    const int code = codes[world_rnd(w) % 6];

    if (code == JOB_EXIT_STOPPED)
        w->job[g->job].saved = g->step;
    ranks_end(g, code, code == 0 ? 9 : 0); /* 0: a rank was killed */
}

static void load(struct world *w, struct world_gang *g)
{
    struct world_job *j = &w->job[g->job];

    if (j->published && j->published >= g->steps) { /* a finished run says so */
        g->step = j->published;
        ranks_end(g, 0, 0);
        return;
    }
    if (world_one_in(w, 40)) { /* so quick that it never said that it began */
        j->silent = true;
        g->step = j->saved = g->steps;
        publish(w, g);
        g->phase = JOB_PHASE_LOADING;
        ranks_end(g, 0, 0);
        return;
    }
    if (!g->met)
        return;
    g->start = g->step = j->saved;
    spool(g, JOB_REPORT_START, g->start);
    g->phase = JOB_PHASE_TRAINING;
}

static void ranks_turn(struct world *w, struct world_gang *g)
{
    if (g->job > DISK_JOBS) /* the stray runs until somebody ends it */
        return;
    if (g->phase == JOB_PHASE_DONE) {
        ranks_end(g, 0, 0);
        return;
    }
    if (world_one_in(w, w->fail_in)) {
        fail_somehow(w, g);
        return;
    }
    if (g->deaf) {
        if (w->quiet && !g->stop) /* its supervisor tires of a rank that is silent */
            ranks_end(g, 0, 9);
        return;
    }
    if (g->phase == JOB_PHASE_LOADING) {
        if (g->stop)
            ranks_end(g, JOB_EXIT_STOPPED, 0);
        else
            load(w, g);
        return;
    }
    if (g->step >= g->steps) { /* also if told to stop: it was the last step */
        spool(g, JOB_REPORT_SUMMARY, g->step);
        publish(w, g);
        return;
    }
    spool(g, JOB_REPORT_TRAIN, ++g->step);
    if (g->step % 2 == 0 || g->stop || g->step == g->steps)
        w->job[g->job].saved = g->step;
    if (g->stop && g->step < g->steps)
        ranks_end(g, JOB_EXIT_STOPPED, 0);
}

/* ---- supervisor ---------------------------------------------------------- */

static void send_rows(struct world *w, struct world_gang *g, uint32_t attempt, uint64_t first,
                      uint64_t n)
{
    world_post(w, (struct world_mail){.kind = MAIL_REPORT,
                                      .who = index_of(w, g),
                                      .rows_attempt = attempt,
                                      .first = first,
                                      .n = n,
                                      .phase = g->phase,
                                      .step = g->step});
}

static void fill_turn(struct world *w, struct world_gang *g)
{
    const struct world_gang *old = world_gang(w, g->job, g->fill, false);
    const uint64_t have = old ? old->n_spool : 0;

    if (g->fill_expect == 0)
        send_rows(w, g, g->fill, 0, 0);
    else if (g->fill_expect <= have)
        send_rows(w, g, g->fill, g->fill_expect, have - g->fill_expect + 1);
    else {
        g->fill++;
        g->fill_expect = 0;
    }
}

static void report_turn(struct world *w, struct world_gang *g)
{
    uint64_t first = g->acked + 1;

    if (world_one_in(w, 6))
        first = 1 + world_rnd(w) % first; /* forgets what was acknowledged */
    else if (world_one_in(w, 12))
        first += 1 + world_rnd(w) % 2; /* leaves a gap */
    uint64_t n = first <= g->n_spool ? g->n_spool - first + 1 : 0;
    if (n > 1 && world_one_in(w, 2))
        n = 1 + world_rnd(w) % n;
    send_rows(w, g, g->attempt, first, n);
}

static void talk(struct world *w, struct world_gang *g)
{
    const struct world_mail m = {.who = index_of(w, g)};
    struct world_mail k = m;

    if (world_one_in(w, 20)) { /* somebody else pretends to be it */
        k.kind = (enum world_mail_kind)(MAIL_HELLO + world_rnd(w) % 4);
        k.first = 1;
        k.bad_token = true;
        world_post(w, k);
        k = m;
    }
    if (!g->hello)
        k.kind = MAIL_HELLO;
    else if (g->ranks && !g->met)
        k.kind = g->put ? MAIL_GET : MAIL_PUT;
    else if (g->fill < g->attempt) {
        fill_turn(w, g);
        return;
    } else if (g->has_exit && g->acked >= g->n_spool)
        k.kind = MAIL_EXIT;
    else if (world_rnd(w) % 3 == 0)
        k.kind = MAIL_POLL;
    else {
        report_turn(w, g);
        return;
    }
    world_post(w, k);
    if (world_rnd(w) % 2)
        world_post(w, (struct world_mail){.kind = MAIL_POLL, .who = index_of(w, g)});
}

void world_gang_turn(struct world *w, struct world_gang *g)
{
    if (g->spawned) {
        g->spawned = false;
        g->lock = g->sup = g->ranks = true;
        g->fill = 1;
        return;
    }
    if (!g->sup) {
        launcher_turn(w, g);
        return;
    }
    if (world_one_in(w, w->death_in)) { /* the supervisor alone dies */
        g->sup = false;
        g->rows_lost |= g->drain;
        return;
    }
    if (g->ranks && world_rnd(w) % 2)
        ranks_turn(w, g);
    else if (g->ending && !g->has_exit)
        g->has_exit = true;
    else
        talk(w, g);
}

/* The daemon's answer to one of its messages. */
void world_gang_reply(struct world *w, const struct fx_reply *r)
{
    struct world_gang *g = &w->gang[(r->client & 0x7fffff) >> 4];
    const enum world_mail_kind kind = (enum world_mail_kind)(r->client & 15);
    const uint32_t rows_attempt = (uint32_t)(r->client >> 32);
    const struct attempt *a = g->job <= DISK_JOBS ? &w->disk.job[g->job].attempt[g->attempt] : NULL;

    if (r->code == EVENT_FENCED) {
        if (a && a->attempt && job_has_gang(a->state))
            fail_msg("job %llu: attempt %u is fenced while it is the newest", ID(g->job),
                     g->attempt);
        g->sup = false;
        return;
    }
    if (r->code == EVENT_RETRY || r->code == EVENT_NOTHING || !a || !g->sup)
        return;
    if (r->code != EVENT_OK && r->code != EVENT_GAP)
        fail_msg("job %llu: a supervisor's message is answered %d", ID(g->job), r->code);
    if ((r->directives & EVENT_STOP) && w->disk.job[g->job].row.want == JOB_WANT_RUN &&
        job_has_gang(a->state))
        fail_msg("job %llu: told to stop before that is stored", ID(g->job));
    switch (kind) {
    case MAIL_HELLO:
        g->hello = true;
        g->acked = r->expect_n - 1 > g->acked ? r->expect_n - 1 : g->acked;
        break;
    case MAIL_REPORT:
        if (r->expect_n - 1 >
            w->disk.job[g->job].attempt[rows_attempt ? rows_attempt : g->attempt].last_report)
            fail_msg("job %llu: reports are acknowledged before they are stored", ID(g->job));
        if (rows_attempt == g->attempt && r->expect_n - 1 > g->acked)
            g->acked = r->expect_n - 1;
        if (rows_attempt == g->fill && rows_attempt != g->attempt)
            g->fill_expect = r->expect_n;
        break;
    case MAIL_EXIT:
        if (job_has_gang(a->state) || !a->exit_known)
            fail_msg("job %llu: an exit is acknowledged before it is stored", ID(g->job));
        g->sup = false; /* its work is done */
        break;
    case MAIL_PUT:
        g->put = true;
        break;
    case MAIL_GET: {
        uint64_t v = 0;
        if (r->bytes == sizeof(v))
            memcpy(&v, r->value, sizeof(v));
        if (v != g->job * 1000 + g->attempt)
            fail_msg("job %llu: the rendezvous value is %llu", ID(g->job), ID(v));
        g->met = true;
        break;
    }
    default:
        break;
    }
    g->stop |= kind == MAIL_POLL && (r->directives & EVENT_STOP);
}

/* Makes the event of a message: what the shell would have decoded. */
void world_gang_event(struct world *w, const struct world_mail *m, struct event *ev,
                      struct event_row *rows, int64_t *vals)
{
    static const enum event_kind kinds[] = {
        [MAIL_HELLO] = EV_HELLO, [MAIL_REPORT] = EV_REPORT, [MAIL_EXIT] = EV_EXIT_RECORD,
        [MAIL_POLL] = EV_POLL,   [MAIL_PUT] = EV_RDV_PUT,   [MAIL_GET] = EV_RDV_GET};
    static uint64_t value;
    const struct world_gang *g = &w->gang[m->who];
    const struct world_gang *of =
        m->rows_attempt ? world_gang(w, g->job, m->rows_attempt, false) : g;

    ev->kind = kinds[m->kind];
    if (!m->bad_token)
        ev->client = 0x800000 | m->who << 4 | m->kind | (uint64_t)m->rows_attempt << 32;
    ev->worker = (struct event_worker){g->job, g->attempt, !m->bad_token};
    switch (m->kind) {
    case MAIL_REPORT:
        ev->report = (struct event_report){.rows_attempt = m->rows_attempt,
                                           .first_n = m->first,
                                           .n = (uint32_t)m->n,
                                           .rows = rows,
                                           .phase = m->phase,
                                           .step = m->step,
                                           .steps = g->steps};
        for (uint64_t i = 0; i < m->n; i++) {
            const struct world_spool *s = &of->spool[m->first + i - 1];
            vals[i] = s->step;
            rows[i] = (struct event_row){.kind = s->kind,
                                         .step = s->step,
                                         .loss = 0.5,
                                         .vals = &vals[i],
                                         .bytes = sizeof(vals[i])};
        }
        break;
    case MAIL_EXIT:
        ev->exit_record = g->exit;
        break;
    case MAIL_PUT:
    case MAIL_GET:
        value = g->job * 1000 + g->attempt;
        ev->rdv.key = "a";
        ev->rdv.value = &value;
        ev->rdv.bytes = sizeof(value);
        break;
    default:
        break;
    }
    if (m->bad_token && m->kind == MAIL_EXIT)
        ev->exit_record = (struct event_exit){.code = 1};
}
