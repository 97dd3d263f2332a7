/* world.c - the simulated world's daemon shell, store, clients and clocks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/test.h"

#include "tests/sim/world.h"

#define ID(x) ((unsigned long long)(x))

static void crash(struct world *w);

static bool chance(struct world *w, unsigned n) /* also when quiet */
{
    return world_rnd(w) % n == 0;
}

/* ---- what must hold after every event ------------------------------------ */

static void check_pending(const struct world *w, const struct job *j, const struct job **first)
{
    const enum job_reason r = core_reason(w->core, j, NULL, 0);

    if (r == JOB_REASON_NONE || r >= JOB_REASON_LAUNCH_FAILURE)
        fail_msg("job %llu waits for no reason (%s)", ID(j->id), job_reason_name(r));
    if (j->held != (r == JOB_REASON_HELD))
        fail_msg("job %llu: held, or not, but %s", ID(j->id), job_reason_name(r));
    if (r != JOB_REASON_PRIORITY && r != JOB_REASON_RESOURCES)
        return;
    if (!first[j->type] || queue_before(j, first[j->type]))
        first[j->type] = j;
}

static void check_core(struct world *w)
{
    const struct job *first[JOB_TYPES] = {NULL};
    uint32_t free_n[JOB_TYPES] = {0};
    uint64_t holds[DISK_JOBS + 1] = {0};

    for (size_t i = 0; i < core_n_devices(w->core); i++) {
        struct core_device d;
        core_device_at(w->core, i, &d);
        free_n[d.type] += d.state == CORE_DEVICE_FREE;
        if (d.job > DISK_JOBS)
            fail_msg("device %s is held by job %llu", d.name, ID(d.job));
        holds[d.job]++;
    }
    for (size_t i = 0; i < core_n_jobs(w->core); i++) {
        const struct job *j = core_job_at(w->core, i);
        if (j->state == JOB_PENDING)
            check_pending(w, j, first);
        const uint64_t want = job_has_gang(j->state) ? j->devices : 0;
        if (holds[j->id] != want)
            fail_msg("job %llu is %s with %llu devices", ID(j->id), job_state_name(j->state),
                     ID(holds[j->id]));
    }
    for (int t = 1; t < JOB_TYPES; t++)
        if (first[t] && first[t]->devices <= free_n[t])
            fail_msg("job %llu could start: %u devices are free", ID(first[t]->id), free_n[t]);
    uint64_t rev = core_rev(w->core) + 1;
    size_t n = 0;
    for (const struct job *j = core_newest(w->core); j; j = core_older(w->core, j), n++) {
        if (j->rev >= rev)
            fail_msg("job %llu is out of place among the newest", ID(j->id));
        rev = j->rev;
    }
    if (n != core_n_jobs(w->core))
        fail_msg("%zu of %zu jobs among the newest", n, core_n_jobs(w->core));
}

static bool fault_after(const struct effects *fx, size_t n, const char *name, bool fault)
{
    for (size_t i = 0; i < n; i++)
        if (fx->v[i].kind == FX_DEVICE && strcmp(fx->v[i].device.name, name) == 0)
            fault = fx->v[i].device.fault;
    return fault;
}

/* A device that is given out in effect `at` of the open batch: not one that failed, and
 * a GPU that others used is left alone for a while. */
static void check_given(const struct world *w, const char *name, size_t at)
{
    bool fault = world_device_fault(w, name);

    for (unsigned i = 0; i < w->n_queue; i++)
        fault = fault_after(&w->queue[i], w->queue[i].n, name, fault);
    if (fault_after(&w->open, at, name, fault))
        fail_msg("%s is given out, but it is faulty", name);
    for (unsigned i = WORLD_CPUS; i < WORLD_DEVICES; i++)
        if (strcmp(world_device(i), name) == 0 && w->device[i].clean_ns &&
            w->device[i].life == w->life &&
            w->newest_ns - w->device[i].clean_ns < CORE_CLEAN_S * 1000000000LL)
            fail_msg("%s is given out %lld ms after others used it", name,
                     (long long)((w->newest_ns - w->device[i].clean_ns) / 1000000));
}

/* Devices are given by priority, then first come, first served. */
static void check_order(struct world *w, size_t from)
{
    for (size_t i = from; i < w->open.n; i++) {
        const struct effect *e = &w->open.v[i];
        if (e->kind != FX_GANG)
            continue;
        const struct job *placed = core_job(w->core, e->gang.job);
        for (uint32_t d = 0; d < e->gang.n_devices; d++)
            check_given(w, e->gang.devices[d], i);
        for (size_t k = 0; k < core_n_jobs(w->core); k++) {
            const struct job *j = core_job_at(w->core, k);
            if (j->state != JOB_PENDING || j->type != placed->type || !queue_before(j, placed))
                continue;
            const enum job_reason r = core_reason(w->core, j, NULL, 0);
            if (r == JOB_REASON_PRIORITY || r == JOB_REASON_RESOURCES)
                fail_msg("job %llu was placed before job %llu", ID(placed->id), ID(j->id));
        }
    }
}

/* ---- the shell ----------------------------------------------------------- */

static void client_reply(struct world *w, const struct fx_reply *r)
{
    struct world_client *c = &w->client[r->client - 1];
    const struct disk_job *j = r->job && r->job <= DISK_JOBS ? &w->disk.job[r->job] : NULL;

    if (r->code == EVENT_RETRY || r->code == EVENT_STOPPING)
        return;
    if (c->answered && (c->code != (int)r->code || c->job != r->job) &&
        !disk_dropped(&w->disk, &c->ev.req))
        fail_msg("request %llu is answered %d, job %llu, and later %d, job %llu", ID(r->client),
                 c->code, ID(c->job), r->code, ID(r->job));
    c->answered = true;
    c->code = (int)r->code;
    c->job = r->job;
    if (r->code == EVENT_CONFLICT) {
        if (!c->odd)
            fail_msg("request %llu is in conflict with nobody", ID(r->client));
        return;
    }
    if (!disk_stored(&w->disk, &c->ev.req))
        fail_msg("request %llu is answered before it is stored", ID(r->client));
    if (r->code != EVENT_OK)
        return;
    if (c->ev.kind == EV_SUBMIT && (!j || !j->there))
        fail_msg("job %llu is acknowledged before it is stored", ID(r->job));
    if (c->ev.kind == EV_CANCEL && j && !job_is_over(j->row.state) && !j->resumes &&
        j->row.want < JOB_WANT_CANCEL)
        fail_msg("job %llu: a cancel is acknowledged before it is stored", ID(r->job));
}

static void act(struct world *w, const struct effect *e)
{
    switch (e->kind) {
    case FX_LAUNCH:
        world_launch(w, &e->launch);
        break;
    case FX_STOP:
    case FX_KILL:
        world_tell(w, &e->gang_ref, e->kind == FX_KILL);
        break;
    case FX_REPLY:
        if (e->reply.client & 0x800000)
            world_gang_reply(w, &e->reply);
        else if (e->reply.client)
            client_reply(w, &e->reply);
        break;
    default: /* held requests are simply sent again */
        break;
    }
}

static void step(struct world *w, const struct event *ev)
{
    const size_t from = w->open.n;

    if (w->trace)
        print_message("%lld.%03lld s  %s client %llx worker %llu.%u gang %llu.%u\n",
                      (long long)(w->now_ns / 1000000000), (long long)(w->now_ns / 1000000 % 1000),
                      event_kind_name(ev->kind), ID(ev->client), ID(ev->worker.job),
                      ev->worker.attempt, ID(ev->gang.job), ev->gang.attempt);
    w->newest_ns = w->now_ns > w->newest_ns ? w->now_ns : w->newest_ns;
    assert_int_equal(core_step(w->core, w->now_ns, w->wall_ms, ev, &w->open), 0);
    check_order(w, from);
    for (size_t i = from; i < w->open.n; i++) {
        if (w->trace)
            print_message("        %s %llu %s\n", event_fx_name(w->open.v[i].kind),
                          ID(w->open.v[i].gang_ref.job),
                          w->open.v[i].kind == FX_JOB ? job_state_name(w->open.v[i].job.state)
                                                      : "");
        if (w->open.v[i].now)
            act(w, &w->open.v[i]);
    }
    check_core(w);
}

static bool on_faulty(const struct world *w, const struct world_gang *g)
{
    bool any = false;

    for (unsigned i = 0; i < g->n_devices; i++)
        any |= w->device[g->device[i]].fault;
    return any;
}

/* Is this end the right one for what really happened to the attempt? */
static void judge(struct world *w, const struct attempt *a)
{
    struct world_gang *g = world_gang(w, a->job, a->attempt, false);
    const struct world_job *j = &w->job[a->job];
    const struct job *row = &w->disk.job[a->job].row;
    const bool stopped = a->state == JOB_CANCELLED || a->state == JOB_TIMEOUT;
    bool right = stopped;

    if ((a->state == JOB_CANCELLED && !j->cancel) || (a->state == JOB_TIMEOUT && !row->limit_s))
        fail_msg("job %llu is %s but nobody asked", ID(a->job), job_state_name(a->state));
    if (g && g->ranks)
        fail_msg("job %llu: attempt %u ended while its ranks live", ID(a->job), a->attempt);
    if (!g || (!g->lock && !g->launch_failed)) /* never started */
        right |= a->state == JOB_NODE_FAIL;
    else if (g->launch_failed)
        right |= a->state == JOB_FAILED;
    else if (!g->has_exit)
        right |= a->state == JOB_NODE_FAIL || (a->state == JOB_COMPLETED && j->published);
    else if (g->exit.signal)
        right |= a->state == JOB_FAILED;
    else if (g->exit.code == 0)
        right = a->state == JOB_COMPLETED;
    else if (g->exit.code == JOB_EXIT_STOPPED)
        right |= a->state == JOB_PREEMPTED;
    else if (g->exit.code == JOB_EXIT_PEER)
        right |= a->state == JOB_NODE_FAIL;
    else if (g->exit.code == JOB_EXIT_OOM)
        right = a->state == JOB_OUT_OF_MEMORY || (stopped && j->cancel_now);
    else
        right = a->state == JOB_FAILED || (stopped && j->cancel_now);
    if (g && on_faulty(w, g)) /* whatever its ranks said in the end */
        right |= stopped || a->state == JOB_NODE_FAIL;
    if (!right)
        fail_msg("job %llu: attempt %u ended %s; exit record %d, code %d, signal %d", ID(a->job),
                 a->attempt, job_state_name(a->state), g ? g->has_exit : 0, g ? g->exit.code : 0,
                 g ? g->exit.signal : 0);
    if (g)
        g->judged = true;
}

/* An attempt on a device that failed before it ended is not the job's failure. */
static void check_fault(const struct world *w, const struct attempt *a)
{
    const struct world_gang *g = world_gang((struct world *)w, a->job, a->attempt, false);

    if (!g || !g->lock || a->state == JOB_NODE_FAIL || a->state == JOB_COMPLETED ||
        a->state == JOB_CANCELLED || a->state == JOB_TIMEOUT)
        return;
    for (unsigned i = 0; i < g->n_devices; i++)
        if (world_device_fault(w, world_device(g->device[i])))
            fail_msg("job %llu: attempt %u ended %s on %s, which is faulty", ID(a->job), a->attempt,
                     job_state_name(a->state), world_device(g->device[i]));
}

/* A rank may die of its GPU before NVML says so: such an end is not hasty. (The core's
 * clock may be a second ahead.) */
static void check_haste(const struct world *w, const struct attempt *a)
{
    const struct world_gang *g = world_gang((struct world *)w, a->job, a->attempt, false);
    const struct job *row = &w->disk.job[a->job].row;

    if (row->state != JOB_FAILED || a->state != JOB_FAILED || row->attempt != a->attempt || !g ||
        !g->sup || !g->has_exit || row->type != JOB_GPU || row->want != JOB_WANT_RUN ||
        g->said_life != w->life + 1)
        return;
    if (w->now_ns - g->said_ns < (CORE_FAULT_S - 1) * 1000000000LL)
        fail_msg("job %llu: attempt %u ended FAILED before its GPU could be blamed", ID(a->job),
                 a->attempt);
}

static void note_exit(struct world *w, const struct world_mail *m)
{
    struct world_gang *g = &w->gang[m->who];

    if (m->kind != MAIL_EXIT || m->bad_token || g->said_life == w->life + 1)
        return;
    g->said_life = w->life + 1;
    g->said_ns = w->now_ns;
}

static void apply(struct world *w, const struct effects *fx)
{
    for (size_t i = 0; i < fx->n; i++)
        if (fx->v[i].kind == FX_ATTEMPT && !job_has_gang(fx->v[i].attempt.state))
            check_fault(w, &fx->v[i].attempt);
    if (w->trace)
        print_message("        === %zu rows are durable\n", fx->rows);
    disk_apply(&w->disk, fx);
    for (size_t i = 0; i < fx->n; i++)
        if (fx->v[i].kind == FX_ATTEMPT && !job_has_gang(fx->v[i].attempt.state)) {
            judge(w, &fx->v[i].attempt);
            check_haste(w, &fx->v[i].attempt);
        }
}

static void seal(struct world *w)
{
    if (w->open.n == 0 || w->n_queue == WORLD_BATCHES)
        return;
    w->queue_s[w->n_queue] = w->open_s;
    w->queue[w->n_queue++] = w->open;
    memset(&w->open, 0, sizeof(w->open));
    w->open_s = core_age(w->core);
}

static void pop(struct world *w)
{
    event_effects_fini(&w->queue[0]);
    memmove(w->queue, w->queue + 1, --w->n_queue * sizeof(w->queue[0]));
    memmove(w->queue_s, w->queue_s + 1, w->n_queue * sizeof(w->queue_s[0]));
}

/* A job that was told to stop has a worker that was told, and so has one on a device
 * that failed. */
static void check_told(struct world *w)
{
    for (unsigned i = 0; i < w->n_gangs; i++) {
        const struct world_gang *g = &w->gang[i];
        const struct job *j = g->job <= DISK_JOBS ? &w->disk.job[g->job].row : NULL;
        if (!j || !(g->sup || g->spawned) || g->drain || j->attempt != g->attempt ||
            !job_has_gang(j->state) || g->told || g->has_exit)
            continue;
        if (j->want != JOB_WANT_RUN)
            fail_msg("job %llu is to stop, but nobody told its gang", ID(g->job));
        for (unsigned d = 0; d < g->n_devices; d++)
            if (world_device_fault(w, world_device(g->device[d])))
                fail_msg("job %llu trains on %s, which is faulty", ID(g->job),
                         world_device(g->device[d]));
    }
}

static void commit(struct world *w)
{
    struct effects *fx = &w->queue[0];

    if (w->n_queue == 0)
        return;
    if (fx->rows && w->full) {
        w->full--;
        if (!w->full_told)
            step(w, &(struct event){.kind = EV_STORE_FULL});
        w->full_told = true;
        return;
    }
    if (fx->rows && world_one_in(w, w->unknown_in)) {
        if (chance(w, 2)) {
            apply(w, fx);
            pop(w);
        } else {
            while (w->n_queue)
                pop(w);
        }
        crash(w);
        return;
    }
    apply(w, fx);
    for (size_t i = 0; i < fx->n; i++) {
        if (event_is_row(fx->v[i].kind) || fx->v[i].now)
            continue;
        if (world_one_in(w, w->crash_in * 4)) {
            pop(w);
            crash(w);
            return;
        }
        act(w, &fx->v[i]);
    }
    pop(w);
    if (w->full_told) {
        w->full_told = false;
        step(w, &(struct event){.kind = EV_STORE_OK});
    }
    if (w->n_queue == 0 && w->open.n == 0)
        check_told(w);
}

/* kill -9: of what was on its way to the disk, any beginning may be there. */
static void crash(struct world *w)
{
    while (w->n_queue && chance(w, 2)) {
        apply(w, &w->queue[0]);
        pop(w);
    }
    while (w->n_queue)
        pop(w);
    event_effects_fini(&w->open);
    core_free(w->core);
    w->core = NULL;
    w->full_told = false;
    w->life++;
    w->down = (unsigned)(world_rnd(w) % 30);
    if (w->trace)
        print_message("        ------ alignd is dead, life %u\n", w->life);
}

static void tell_gang(struct world *w, uint64_t job, uint32_t attempt)
{
    struct world_gang *g = world_gang(w, job, attempt, false);
    struct event ev = {.kind = EV_GANG_ABSENT, .gang = {.job = job, .attempt = attempt}};
    const char *names[WORLD_DEVICES];

    if (g && world_gang_alive(g)) {
        ev.kind = EV_GANG_ALIVE;
        for (unsigned i = 0; i < g->n_devices; i++)
            names[i] = world_device(g->device[i]);
        ev.gang.devices = names;
        ev.gang.n_devices = g->n_devices;
        g->seen_over = false;
    } else if (g && g->lock) {
        ev.kind = g->has_exit ? EV_GANG_EXITED : EV_GANG_LOST;
        ev.gang.exit = g->exit;
        g->seen_over = true;
    } else if (g) { /* whatever was under way will not come up any more */
        g->spawned = g->launch_failed = false;
    }
    step(w, &ev);
}

static void tell_device(struct world *w, unsigned i)
{
    step(w, &(struct event){.kind = EV_DEVICE,
                            .device = {.name = world_device(i),
                                       .type = i < WORLD_CPUS ? JOB_CPU : JOB_GPU,
                                       .foreign = w->device[i].foreign,
                                       .fenced = w->device[i].fenced,
                                       .unfit = w->device[i].unfit,
                                       .gone = w->device[i].gone}});
}

static void restart(struct world *w)
{
    struct core_opts opts = {.boottime_ns = w->now_ns,
                             .ended_keep_s = w->ended_keep_s,
                             .request_keep_s = w->request_keep_s,
                             .sweep_s = w->sweep_s};
    struct core_gang known[WORLD_DEVICES + 1];
    size_t n = 0;

    memset(opts.boot_id, w->boot, sizeof(opts.boot_id));
    w->newest_ns = w->now_ns;
    w->core = disk_restore(&w->disk, &opts);
    w->open_s = core_age(w->core);
    for (unsigned i = 0; i < WORLD_DEVICES; i++)
        tell_device(w, i);
    for (; n < core_n_gangs(w->core); n++)
        core_gang_at(w->core, n, &known[n]);
    for (size_t i = 0; i < n; i++) {
        const struct world_gang *g = world_gang(w, known[i].job, known[i].attempt, false);
        /* After a reboot the launcher may have forgotten what left no record. */
        if (g && g->lock && !g->has_exit && !world_gang_alive(g) &&
            w->disk.job[g->job].gang.boot_id[0] != w->boot && chance(w, 2))
            continue;
        tell_gang(w, known[i].job, known[i].attempt);
    }
    for (unsigned i = 0; i < w->n_gangs; i++) {
        bool told = false;
        for (size_t k = 0; k < n; k++)
            told |= known[k].job == w->gang[i].job && known[k].attempt == w->gang[i].attempt;
        if (!told && world_gang_alive(&w->gang[i]))
            tell_gang(w, w->gang[i].job, w->gang[i].attempt);
    }
    step(w, &(struct event){.kind = EV_RECONCILED});
}

/* ---- what the core has let go of ------------------------------------------ */

static int64_t durable_s(const struct world *w)
{
    return w->n_queue ? w->queue_s[0] : w->open.n ? w->open_s : core_age(w->core);
}

static void tick(struct world *w)
{
    step(w, &(struct event){.kind = EV_TICK, .tick.durable_s = durable_s(w)});
}

/* Before a change is decided, the store is asked. */
static void recall(struct world *w, const struct event *change)
{
    struct event ev = {.kind = EV_RECALL};
    const size_t from = w->open.n;
    uint64_t job;
    bool answer;

    if (!core_recall_due(w->core, change, &job, &answer))
        return;
    disk_recall(&w->disk, job, answer ? &change->req : NULL, &ev.recall);
    w->jobs_recalled += job != 0;
    w->answers_recalled += ev.recall.request != NULL;
    step(w, &ev);
    for (size_t i = from; i < w->open.n; i++)
        if (w->open.v[i].kind == FX_JOB && w->open.v[i].job.id == job)
            fail_msg("job %llu changes when it is recalled", ID(job));
    if (job && !core_job(w->core, job))
        fail_msg("job %llu is forgotten for ever", ID(job));
    if (!ev.recall.request && core_recall_due(w->core, change, &job, &answer) && job)
        fail_msg("job %llu is asked for again and again", ID(job));
}

/* Its answer is forgotten everywhere, as one about no job may be after a week (and then its
 * id may have been used again); nobody repeats the request after that. */
static bool too_late(const struct world *w, const struct world_client *c)
{
    for (size_t i = 0; i < w->disk.n_requests && c->answered; i++) {
        const struct fx_request *r = &w->disk.request[i];
        if (r->uid != c->ev.req.uid || memcmp(r->id, c->ev.req.id, EVENT_ID_BYTES) != 0)
            continue;
        return c->code == EVENT_CONFLICT
                   ? r->job != c->job
                   : memcmp(r->digest, c->ev.req.digest, EVENT_DIGEST_BYTES) != 0;
    }
    return c->answered;
}

/* ---- mail ---------------------------------------------------------------- */

static void deliver(struct world *w)
{
    struct event_row rows[WORLD_SPOOL];
    int64_t vals[WORLD_SPOOL];

    if (!w->n_mails)
        return;
    const unsigned pick = (unsigned)(world_rnd(w) % w->n_mails);
    const struct world_mail m = w->mail[pick];
    w->mail[pick] = w->mail[--w->n_mails];
    if (m.kind < MAIL_GANG_EXITED && world_one_in(w, 50)) /* lost */
        return;
    struct event ev = {.kind = EV_TICK};
    switch (m.kind) {
    case MAIL_CLIENT:
        ev = w->client[m.who].ev;
        if (too_late(w, &w->client[m.who]))
            return;
        recall(w, &ev);
        break;
    case MAIL_GANG_EXITED:
    case MAIL_GANG_LOST:
    case MAIL_LAUNCH_FAILED:
        if (m.life != w->life) /* it spoke to a daemon that is dead */
            return;
        ev.kind = m.kind == MAIL_GANG_EXITED ? EV_GANG_EXITED
                  : m.kind == MAIL_GANG_LOST ? EV_GANG_LOST
                                             : EV_LAUNCH_FAILED;
        ev.gang.job = w->gang[m.who].job;
        ev.gang.attempt = w->gang[m.who].attempt;
        ev.gang.exit = w->gang[m.who].exit;
        break;
    default:
        world_gang_event(w, &m, &ev, rows, vals);
        note_exit(w, &m);
        break;
    }
    step(w, &ev);
}

/* ---- clients ------------------------------------------------------------- */

static uint64_t some_job(struct world *w)
{
    return 1 + world_rnd(w) % (w->disk.meta.next_job ? w->disk.meta.next_job : 1);
}

static struct world_client *new_client(struct world *w, enum event_kind kind)
{
    if (w->n_clients == WORLD_CLIENTS)
        return NULL;
    struct world_client *c = &w->client[w->n_clients++];
    memset(c, 0, sizeof(*c));
    c->ev.kind = kind;
    c->ev.client = w->n_clients;
    c->ev.req.uid = 1000 + (uint32_t)(w->n_clients % 2);
    c->ev.req.is_operator = true;
    memcpy(c->ev.req.id, &w->n_clients, sizeof(w->n_clients));
    memcpy(c->ev.req.digest, &w->n_clients, sizeof(w->n_clients));
    return c;
}

static void submit(struct world *w)
{
    static const char *const dirs[] = {"/runs/{name}-{id}", "/runs/a", "/runs/x/../a/", "/runs/b",
                                       "relative"};
    struct world_client *c = w->submits < DISK_JOBS ? new_client(w, EV_SUBMIT) : NULL;

    if (!c)
        return;
    w->submits++;
    c->ev.submit = (struct event_submit){.name = "n",
                                         .method = "dpo",
                                         .output_dir = dirs[world_rnd(w) % 12 % 5],
                                         .devices = 1 + (uint32_t)(world_rnd(w) % 3),
                                         .type = (uint8_t)(world_rnd(w) % 4 % JOB_TYPES),
                                         .priority = (int64_t)(world_rnd(w) % 3),
                                         .limit_s = chance(w, 8) ? 60 : 0,
                                         .steps = 2 + (int64_t)(world_rnd(w) % 6),
                                         .held = chance(w, 8),
                                         .user_spec = "{}",
                                         .user_bytes = 2,
                                         .resolved_spec = "spec",
                                         .resolved_bytes = 4};
}

static void request(struct world *w)
{
    static const enum event_kind kinds[] = {EV_CANCEL,  EV_CANCEL,  EV_RESUME, EV_HOLD,
                                            EV_RELEASE, EV_RELEASE, EV_DRAIN};
    const enum event_kind kind = kinds[world_rnd(w) % 7];
    const uint64_t job = some_job(w);
    struct world_client *c = w->n_clients < WORLD_CLIENTS / 2 ? new_client(w, kind) : NULL;

    if (!c)
        return;
    switch (kind) {
    case EV_CANCEL:
        c->ev.cancel.job = job;
        c->ev.cancel.now = chance(w, 3);
        if (job <= DISK_JOBS) {
            w->job[job].cancel = true;
            w->job[job].cancel_now |= c->ev.cancel.now;
        }
        break;
    case EV_RESUME:
        c->ev.resume.job = job;
        c->ev.resume.steps = chance(w, 2) ? 8 + (int64_t)(world_rnd(w) % 6) : 0;
        break;
    case EV_DRAIN:
        c->ev.drain.device = world_device((unsigned)(world_rnd(w) % WORLD_DEVICES));
        c->ev.drain.on = chance(w, 2);
        break;
    default:
        c->ev.hold.job = job;
        break;
    }
    if (chance(w, 10)) { /* the same id as an earlier request's, but another content */
        struct world_client *o = &w->client[world_rnd(w) % w->n_clients];
        if (o != c && !o->odd) {
            o->odd = c->odd = true;
            memcpy(c->ev.req.id, o->ev.req.id, EVENT_ID_BYTES);
            c->ev.req.uid = o->ev.req.uid;
        }
    }
}

static void clients_send(struct world *w, unsigned one_in)
{
    for (unsigned i = 0; i < w->n_clients; i++)
        if (!w->client[i].answered && chance(w, one_in))
            world_post(w, (struct world_mail){.kind = MAIL_CLIENT, .who = i});
    if (w->n_clients && world_one_in(w, 20)) /* a copy that was long on its way */
        world_post(w, (struct world_mail){.kind = MAIL_CLIENT,
                                          .who = (unsigned)(world_rnd(w) % w->n_clients)});
}

/* ---- time and trouble ---------------------------------------------------- */

static void clocks(struct world *w)
{
    w->now_ns += (int64_t)(world_rnd(w) % 1000000000);
    w->wall_ms += (int64_t)(world_rnd(w) % 1000);
    if (world_one_in(w, 200))
        w->now_ns += 900 * 1000000000LL; /* suspended */
    if (world_one_in(w, 200))
        w->wall_ms -= (int64_t)(world_rnd(w) % 100000000);
    if (world_one_in(w, 500)) /* must not happen, must not hurt */
        w->now_ns -= (int64_t)(world_rnd(w) % 1000000000);
}

/* What breaks a GPU may take the daemon along, before it has killed anybody. */
static void fault(struct world *w, unsigned i)
{
    const struct event ev = {.kind = EV_FAULT,
                             .fault = {.name = world_device(i), .type = JOB_GPU, .code = 79}};

    w->device[i].fault = true;
    if (!w->core)
        return;
    step(w, &ev);
    if (chance(w, 3)) {
        seal(w);
        crash(w);
    }
}

static void device_trouble(struct world *w)
{
    const unsigned i = (unsigned)(world_rnd(w) % WORLD_DEVICES);
    const unsigned what = (unsigned)(world_rnd(w) % 8);
    const bool was_foreign = w->device[i].foreign;

    if (what % 4 == 3 && i >= WORLD_CPUS) {
        fault(w, i);
        return;
    }
    w->device[i].foreign = what == 0;
    w->device[i].fenced = what == 1;
    w->device[i].gone = what == 2;
    w->device[i].unfit = what == 4;
    if (w->device[i].foreign) {
        w->device[i].clean_ns = 0;
    } else if (was_foreign && w->core) {
        w->device[i].clean_ns = w->newest_ns > w->now_ns ? w->newest_ns : w->now_ns;
        w->device[i].life = w->life;
    }
    if (w->core)
        tell_device(w, i);
}

static void trouble(struct world *w)
{
    if (world_one_in(w, w->device_in))
        device_trouble(w);
    if (world_one_in(w, w->full_in))
        w->full = 1 + (unsigned)(world_rnd(w) % 20);
    if (w->core && world_one_in(w, w->crash_in))
        crash(w);
    if (world_one_in(w, w->reboot_in)) {
        if (w->core)
            crash(w);
        world_reboot(w);
    }
    if (w->core && world_one_in(w, 1000))
        step(w, &(struct event){.kind = EV_SHUTDOWN});
    if (w->core && core_stopping(w->core) && chance(w, 10)) { /* it exits in good order */
        seal(w);
        while (w->core && w->n_queue && !w->full)
            commit(w);
        if (w->core)
            crash(w);
    }
}

static void turn(struct world *w)
{
    clocks(w);
    if (!w->core && w->down-- == 0) {
        w->down = 0;
        restart(w);
    }
    if (world_one_in(w, w->request_in))
        submit(w);
    if (world_one_in(w, w->request_in))
        request(w);
    clients_send(w, 6);
    for (unsigned i = 0; i < w->n_gangs; i++)
        if (chance(w, 3))
            world_gang_turn(w, &w->gang[i]);
    trouble(w);
    for (unsigned i = (unsigned)(world_rnd(w) % 4); i > 0 && w->core; i--)
        deliver(w);
    if (w->core && chance(w, 4))
        tick(w);
    if (w->core && w->n_queue == 0 && w->open.n == 0 && world_one_in(w, w->tidy_in))
        disk_tidy(&w->disk, 1 + world_rnd(w) % DISK_JOBS, core_age(w->core), w->metrics_keep_s,
                  2 + world_rnd(w) % 4, 1 + world_rnd(w) % 20);
    if (w->core && chance(w, 2))
        seal(w);
    if (w->core && chance(w, 2))
        commit(w);
}

/* ---- the end ------------------------------------------------------------- */

static void calm(struct world *w)
{
    w->quiet = true;
    w->full = 0;
    for (unsigned i = 0; i < WORLD_DEVICES; i++) {
        const bool fault = w->device[i].fault; /* remembered: attempts have ended for it */
        memset(&w->device[i], 0, sizeof(w->device[i]));
        w->device[i].fault = fault;
    }
    if (w->core)
        crash(w);
    w->down = 0;
}

/* Somebody lets go of what is held, drained and faulty. */
static void release(struct world *w)
{
    for (int id = 1; id <= DISK_JOBS; id++) {
        const struct disk_job *j = &w->disk.job[id];
        if (j->there && j->row.held && !job_is_over(j->row.state)) {
            struct world_client *c = new_client(w, EV_RELEASE);
            if (c)
                c->ev.hold.job = (uint64_t)id;
        }
    }
    for (size_t i = 0; i < w->disk.n_devices; i++) {
        const bool out = w->disk.device[i].drained || w->disk.device[i].fault;
        struct world_client *c = out ? new_client(w, EV_DRAIN) : NULL;
        if (c)
            c->ev.drain.device = w->disk.device_name[i];
    }
}

static bool settled(const struct world *w)
{
    for (unsigned i = 0; i < w->n_clients; i++)
        if (!w->client[i].answered)
            return false;
    for (unsigned i = 0; i < w->n_gangs; i++)
        if (world_gang_alive(&w->gang[i]) || w->gang[i].spawned)
            return false;
    for (int id = 1; id <= DISK_JOBS; id++)
        if (w->disk.job[id].there && !job_is_over(w->disk.job[id].row.state))
            return false;
    return w->n_queue == 0 && w->open.n == 0;
}

static void settle(struct world *w)
{
    calm(w);
    for (int round = 0; round < 1500; round++) {
        if (!w->core)
            restart(w);
        if (round > 20 && settled(w))
            return;
        if (round % 50 == 10) /* holds may have arrived since */
            release(w);
        w->now_ns += 4000000000;
        clients_send(w, 3);
        for (unsigned i = 0; i < w->n_gangs; i++)
            world_gang_turn(w, &w->gang[i]);
        for (unsigned n = w->n_mails; n > 0; n--)
            deliver(w);
        tick(w);
        seal(w);
        while (w->n_queue)
            commit(w);
    }
    for (int id = 1; id <= DISK_JOBS; id++)
        if (w->disk.job[id].there && !job_is_over(w->disk.job[id].row.state))
            fail_msg(
                "job %d is %s for ever (want %d, %s)", id,
                job_state_name(w->disk.job[id].row.state), w->disk.job[id].row.want,
                job_reason_name(core_reason(w->core, core_job(w->core, (uint64_t)id), NULL, 0)));
    for (unsigned i = 0; i < w->n_gangs; i++)
        if (world_gang_alive(&w->gang[i]))
            fail_msg("a gang of job %llu, attempt %u, lives for ever", ID(w->gang[i].job),
                     w->gang[i].attempt);
    fail_msg("somebody waits for ever");
}

/* Every metric once: the live rows of a finished job are its steps. */
static void check_rows(struct world *w, uint64_t id)
{
    const struct disk_job *j = &w->disk.job[id];
    bool lost = w->job[id].silent;
    unsigned seen[WORLD_SPOOL] = {0};

    for (unsigned i = 0; i < w->n_gangs; i++) {
        const struct world_gang *g = &w->gang[i];
        if (g->job != id)
            continue;
        lost |= g->rows_lost;
        if (j->attempt[g->attempt].state == JOB_COMPLETED && !g->has_exit) {
            lost = true; /* killed, or lost once more, between its result and its record */
            if (!w->job[id].cancel && !j->row.limit_s && !j->node_fails && !j->resumes)
                fail_msg("job %llu is COMPLETED by attempt %u, which left no record", ID(id),
                         g->attempt);
        }
        if (g->has_exit && !g->rows_lost && j->attempt[g->attempt].exit_known &&
            j->attempt[g->attempt].last_report != g->n_spool)
            fail_msg("job %llu attempt %u: %llu of %llu reports are stored", ID(id), g->attempt,
                     ID(j->attempt[g->attempt].last_report), ID(g->n_spool));
    }
    for (size_t i = 0; i < j->n_rows; i++) {
        const struct disk_row *r = &j->rows[i];
        bool back = false;
        for (size_t k = 0; k < j->n_rows; k++)
            back |=
                j->rows[k].n == 1 && j->rows[k].attempt > r->attempt && j->rows[k].step < r->step;
        if (r->n && back != r->superseded)
            fail_msg("job %llu attempt %u: report %llu is %ssuperseded", ID(id), r->attempt,
                     ID(r->n), back ? "not " : "");
        if (r->n && !r->superseded && r->kind == JOB_REPORT_TRAIN)
            seen[r->step]++;
    }
    if (j->n_rows && j->thin_seq && j->rows[j->n_rows - 1].seq != j->row.seq)
        fail_msg("job %llu: its newest row was thinned", ID(id));
    for (int64_t s = 1; s <= j->row.steps && j->thin_seq; s++)
        if (seen[s] > 1)
            fail_msg("job %llu: step %lld has %u live rows", ID(id), (long long)s, seen[s]);
    lost |= j->thin_seq > 0;
    if (j->row.state != JOB_COMPLETED || lost)
        return;
    for (int64_t s = 1; s <= j->row.steps; s++)
        if (seen[s] != 1)
            fail_msg("job %llu: step %lld has %u live rows", ID(id), (long long)s, seen[s]);
}

static void check_end(struct world *w)
{
    for (uint64_t id = 1; id <= DISK_JOBS; id++) {
        const struct disk_job *j = &w->disk.job[id];
        unsigned resumed = 0;
        if (!j->there)
            continue;
        for (unsigned i = 0; i < w->n_clients; i++)
            resumed += w->client[i].ev.kind == EV_RESUME && w->client[i].code == EVENT_OK &&
                       w->client[i].job == id;
        if (j->resumes != resumed || j->ends != resumed + 1)
            fail_msg("job %llu was resumed %u times, went on %u times and ended %u times", ID(id),
                     resumed, j->resumes, j->ends);
        for (uint32_t a = 1; a <= j->row.attempt; a++)
            if (j->attempt[a].published && j->attempt[a].state != JOB_COMPLETED &&
                j->attempt[a].state != JOB_NODE_FAIL)
                fail_msg("job %llu: attempt %u said that it published and is %s", ID(id), a,
                         job_state_name(j->attempt[a].state));
        check_rows(w, id);
    }
    for (size_t i = 0; i < core_n_devices(w->core); i++) {
        struct core_device d;
        core_device_at(w->core, i, &d);
        if (d.state != CORE_DEVICE_FREE && d.state != CORE_DEVICE_DRAINED)
            fail_msg("device %s is %s in the end", d.name, core_device_state_name(d.state));
    }
    if (core_n_gangs(w->core))
        fail_msg("the core still knows a gang");
}

/* A gang that nobody will know: left by a store that is gone. */
static void add_stray(struct world *w)
{
    struct world_gang *g = world_gang(w, 999, 1, true);

    g->lock = g->sup = g->ranks = true;
    g->deaf = true;
    g->n_devices = 2;
    g->device[0] = 1;
    g->device[1] = 4;
}

void world_run(struct world *w, uint64_t seed, bool trace)
{
    const unsigned long jobs = w->jobs_recalled, answers = w->answers_recalled;

    memset(w, 0, sizeof(*w));
    w->jobs_recalled = jobs;
    w->answers_recalled = answers;
    w->seed = w->rng = seed;
    w->trace = trace;
    w->now_ns = 5000000000;
    w->wall_ms = 1700000000000;
    w->crash_in = 10u << (world_rnd(w) % 8);
    w->repeat_in = 2u << (world_rnd(w) % 6);
    w->death_in = 20u << (world_rnd(w) % 6);
    w->fail_in = 10u << (world_rnd(w) % 6);
    w->launch_in = 3u << (world_rnd(w) % 6);
    w->full_in = 50u << (world_rnd(w) % 6);
    w->unknown_in = 20u << (world_rnd(w) % 6);
    w->device_in = 20u << (world_rnd(w) % 6);
    w->reboot_in = 200u << (world_rnd(w) % 4);
    w->request_in = 4u << (world_rnd(w) % 4);
    w->ended_keep_s = 1u << (world_rnd(w) % 12);
    w->request_keep_s = 1u << (world_rnd(w) % 12);
    w->sweep_s = 1u << (world_rnd(w) % 6);
    w->metrics_keep_s = 1u << (world_rnd(w) % 12);
    w->tidy_in = 1u << (world_rnd(w) % 8);
    const unsigned turns = 16u << (world_rnd(w) % 8); /* short lives end in odd places */
    if (chance(w, 4))
        add_stray(w);
    restart(w);
    for (unsigned i = 0; i < turns; i++)
        turn(w);
    settle(w);
    check_end(w);
    event_effects_fini(&w->open);
    core_free(w->core);
    w->core = NULL;
    disk_fini(&w->disk);
}
