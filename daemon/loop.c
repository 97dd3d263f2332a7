/* loop.c - start, timers, signals, end. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/alignd.h"
#include "daemon/devices.h"
#include "daemon/gpus.h"
#include "proto/log.h"
#include "proto/proc.h"
#include "proto/sha256.h"

enum {
    TICK_MS = 1000,
    FILE_TICKS = 2,   /* between looks at what may be deleted: bound again within 5 s */
    SLOW_TICKS = 5,   /* between looks at devices                              */
    GOODBYE_MS = 200, /* for answers to leave                                  */
    FILES = 65536,
    LOCK_TRIES = 40,
    LOCK_WAIT_US = 50000,
};

int64_t alignd_boottime_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t alignd_wall_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* RFC 2104 with SHA-256. */
static void hmac(const uint8_t key[STORE_KEY], const void *data, size_t bytes,
                 uint8_t ret[SHA256_BYTES])
{
    uint8_t pad[64], inner[SHA256_BYTES];
    struct sha256 s;

    for (size_t i = 0; i < sizeof pad; i++)
        pad[i] = (uint8_t)((i < STORE_KEY ? key[i] : 0) ^ 0x36);
    sha256_init(&s);
    sha256_add(&s, pad, sizeof pad);
    sha256_add(&s, data, bytes);
    sha256_end(&s, inner);
    for (size_t i = 0; i < sizeof pad; i++)
        pad[i] ^= 0x36 ^ 0x5c;
    sha256_init(&s);
    sha256_add(&s, pad, sizeof pad);
    sha256_add(&s, inner, sizeof inner);
    sha256_end(&s, ret);
}

void alignd_token(const struct alignd *a, uint64_t job, uint32_t attempt, struct msg_token *ret)
{
    char text[96];
    const int n = snprintf(text, sizeof text, "alignd attempt %" PRIu64 " %" PRIu32, job, attempt);

    _Static_assert(sizeof ret->b == SHA256_BYTES, "a token is a SHA-256");
    hmac(store_token_key(a->store), text, (size_t)n, ret->b);
}

bool alignd_may(const struct alignd *a, uint64_t uid, uint64_t owner)
{
    if (uid == owner || uid == geteuid() || uid == 0)
        return true;
    for (int i = 0; i < a->config->n_operators; i++)
        if (uid == a->config->operators[i])
            return true;
    return false;
}

void alignd_give_up(struct alignd *a, const char *why)
{
    (void)a;
    log_error("give_up", "why=\"%s\"; nobody is answered, a restart reads the truth", why);
    _exit(70);
}

/* ---- signals and timers ---- */

static void on_goodbye(uv_timer_t *t)
{
    uv_stop(t->loop);
}

void alignd_stop(struct alignd *a)
{
    if (a->ending)
        return;
    a->ending = true;
    log_info("stop", "all is stored; gangs train on");
    uv_timer_start(&a->goodbye, on_goodbye, GOODBYE_MS, 0);
}

static void on_term(uv_signal_t *s, int n)
{
    struct alignd *a = s->data;

    log_info("signal", "signal=%d", n);
    if (core_stopping(a->core))
        uv_stop(a->loop); /* asked twice */
    else
        effects_step(a, &(struct event){.kind = EV_SHUTDOWN});
}

static void on_hup(uv_signal_t *s, int n)
{
    struct alignd *a = s->data;
    struct err err = {""};

    (void)n;
    if (config_reload(a->config, &err) < 0) {
        log_error("reload", "refused=\"%s\"", err.text);
        return;
    }
    log_set_level(a->config->log_level);
    log_info("reload", "log_level=%d operators=%d", (int)a->config->log_level,
             a->config->n_operators);
}

static void device_name(int i, char name[DEVICES_NAME])
{
    snprintf(name, DEVICES_NAME, "cpu:%d", i);
}

static void tell_device(struct alignd *a, int i)
{
    const bool foreign = a->device_foreign[i];
    char name[DEVICES_NAME], who[DEVICE_LOCK_WHO];
    struct event ev = {.kind = EV_DEVICE};

    device_name(i, name);
    if (foreign)
        device_lock_who(a->config->devices_dir, name, who, sizeof who);
    ev.device = (struct event_device){
        .name = name, .type = JOB_CPU, .foreign = foreign, .note = foreign ? who : NULL};
    effects_step(a, &ev);
}

void loop_device_is_foreign(struct alignd *a, const char *name)
{
    for (int i = 0; i < a->config->cpu_slots; i++) {
        char own[DEVICES_NAME];
        device_name(i, own);
        if (strcmp(own, name) != 0 || a->device_foreign[i])
            continue;
        a->device_foreign[i] = true;
        log_info("device", "device=%s is in use by another program", name);
        tell_device(a, i);
    }
    gpus_locked(a, name);
}

/* Another alignd's gang holds a device of ours, or does so no more. */
static void look_at_devices(struct alignd *a)
{
    for (int i = 0; i < a->config->cpu_slots; i++) {
        char name[DEVICES_NAME];
        bool held;
        device_name(i, name);
        held = !gangs_use_device(a, name) && device_lock_held(a->config->devices_dir, name);
        if (held == a->device_foreign[i])
            continue;
        a->device_foreign[i] = held;
        log_info("device", "device=%s %s", name, held ? "is in use by another program" : "is free");
        tell_device(a, i);
    }
}

/* The folder of a control socket that lies elsewhere (--host) may have been deleted too. */
static int bind_again(struct alignd *a, int s)
{
    char dir[LIMIT_PATH];
    int r = wire_check(a->servers[s]);

    if (r != -ENOENT)
        return r;
    snprintf(dir, sizeof dir, "%s", a->urls[s] + strlen("ipc://"));
    *strrchr(dir, '/') = 0;
    return mkdir(dir, 0700) < 0 ? r : wire_check(a->servers[s]);
}

static void look_at_sockets(struct alignd *a)
{
    for (int s = 0; s < SOCKETS; s++) {
        const int r = bind_again(a, s);
        if (r == 1)
            log_warn("socket", "url=%s was gone: bound again", a->urls[s]);
        else if (r == 2)
            log_warn("socket", "url=%s let nobody in: bound again", a->urls[s]);
        else if (r < 0)
            log_error("socket", "url=%s is gone and cannot be bound again: %s", a->urls[s],
                      strerror(-r));
    }
}

/* SQLite goes on writing into a database that was deleted, and all of it would be lost
 * at our end: better no answers than those. Gangs train on. */
static void look_at_store(struct alignd *a)
{
    struct stat st;

    if (stat(store_path(a->store), &st) == 0 && st.st_dev == a->store_dev &&
        st.st_ino == a->store_ino)
        return;
    log_error("store_gone", "path=%s was deleted or replaced while alignd runs",
              store_path(a->store));
    alignd_give_up(a, "the database is gone");
}

static void on_tick(uv_timer_t *t)
{
    struct alignd *a = t->data;

    effects_step(a, &(struct event){.kind = EV_TICK, .tick.durable_s = effects_durable_s(a)});
    held_expire(a);
    held_look(a);
    gangs_tick(a);
    gpus_tick(a);
    a->ticks++;
    if (a->ticks % FILE_TICKS == 0) {
        look_at_store(a);
        look_at_sockets(a);
    }
    if (a->ticks % SLOW_TICKS == 0) {
        feed_expire(a);
        look_at_devices(a);
    }
}

/* ---- start ---- */

static int take_lock(const char *dir, struct err *err)
{
    char path[LIMIT_PATH + 32], text[32];
    const int n = snprintf(text, sizeof text, "%d\n", (int)getpid());
    int fd, r = -1;

    snprintf(path, sizeof path, "%s/alignd.lock", dir);
    fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    /* One that was killed a moment ago holds it until the last of its threads is gone. */
    for (int i = 0; i < LOCK_TRIES && (r = flock(fd, LOCK_EX | LOCK_NB)) < 0; i++)
        usleep(LOCK_WAIT_US);
    if (r < 0) {
        char other[32] = "";
        const ssize_t k = read(fd, other, sizeof other - 1);
        if (k > 0)
            other[strcspn(other, "\n")] = 0;
        close(fd);
        return err_set(err, -EEXIST, "an alignd serves %s already (process %s)", dir, other);
    }
    if (ftruncate(fd, 0) < 0 || write(fd, text, (size_t)n) != n) {
        /* only a help for people */
    }
    return fd;
}

/* A symbolic link where people look for the socket, when it lies elsewhere. */
static void link_sockets(const struct alignd *a)
{
    static const char *const names[SOCKETS] = {"control.sock", "watch.sock", "worker.sock"};

    for (int s = 0; s < SOCKETS; s++) {
        char path[LIMIT_PATH + 32];
        snprintf(path, sizeof path, "%s/%s", a->config->state, names[s]);
        if (strcmp(a->config->state, a->config->local) == 0 ||
            !strcmp(path, a->urls[s] + strlen("ipc://")))
            continue;
        (void)unlink(path);
        if (symlink(a->urls[s] + strlen("ipc://"), path) < 0)
            log_warn("socket", "no link at %s: %s; ignoring, use --host %s", path, strerror(errno),
                     a->urls[s]);
    }
}

static int set_paths(struct alignd *a, struct err *err)
{
    static const char *const names[SOCKETS] = {"control.sock", "watch.sock", "worker.sock"};
    const struct config *c = a->config;
    struct launch *l = &a->launch;

    for (int s = 0; s < SOCKETS; s++) {
        const int n =
            s == SOCKET_CONTROL && c->host[0]
                ? snprintf(a->urls[s], sizeof a->urls[s], "%s", c->host)
                : snprintf(a->urls[s], sizeof a->urls[s], "ipc://%s/%s", c->local, names[s]);
        if (n - (int)strlen("ipc://") > LIMIT_SOCKET_PATH)
            return err_set(err, -ENAMETOOLONG,
                           "the path of %s has more than the %d bytes that a socket's may have: "
                           "choose a shorter --state folder",
                           names[s], LIMIT_SOCKET_PATH);
    }
    snprintf(l->gangs_dir, sizeof l->gangs_dir, "%s/gangs", c->local);
    snprintf(l->devices_dir, sizeof l->devices_dir, "%s", c->devices_dir);
    snprintf(l->worker, sizeof l->worker, "%s", c->worker);
    snprintf(l->worker_url, sizeof l->worker_url, "%s", a->urls[SOCKET_WORKER]);
    snprintf(l->store8, sizeof l->store8, "%.8s", store_uuid(a->store));
    l->umask = c->umask;
    if (mkdir(l->gangs_dir, 0700) < 0 && errno != EEXIST)
        return err_set(err, -errno, "%s: %s", l->gangs_dir, strerror(errno));
    return 0;
}

static int restore(struct alignd *a, struct err *err)
{
    struct core_opts o = {.boottime_ns = alignd_boottime_ns(),
                          .ended_keep_s = a->config->memory_keep_s};
    int r;

    memcpy(o.boot_id, a->boot_id, sizeof o.boot_id);
    r = core_new(&o, &a->core);
    if (r == 0)
        r = store_restore(a->store, a->core, err);
    return r;
}

static int reconcile(struct alignd *a, struct err *err)
{
    int r = gangs_find(a, err);

    for (int i = 0; r == 0 && i < a->config->cpu_slots; i++) {
        char name[DEVICES_NAME];
        device_name(i, name);
        a->device_foreign[i] =
            !gangs_use_device(a, name) && device_lock_held(a->config->devices_dir, name);
        tell_device(a, i);
    }
    if (r == 0)
        r = gangs_reconcile(a, err);
    if (r == 0)
        gpus_tell(a);
    if (r == 0)
        effects_step(a, &(struct event){.kind = EV_RECONCILED});
    return r;
}

static void raise_files(void)
{
    struct rlimit l;

    if (getrlimit(RLIMIT_NOFILE, &l) < 0)
        return;
    l.rlim_cur = l.rlim_max < FILES ? l.rlim_max : FILES;
    (void)setrlimit(RLIMIT_NOFILE, &l);
}

static void start_timers(struct alignd *a)
{
    uv_timer_init(a->loop, &a->tick);
    uv_timer_init(a->loop, &a->goodbye);
    uv_signal_init(a->loop, &a->sigterm);
    uv_signal_init(a->loop, &a->sigint);
    uv_signal_init(a->loop, &a->sighup);
    a->tick.data = a->goodbye.data = a->sigterm.data = a->sigint.data = a->sighup.data = a;
    uv_timer_start(&a->tick, on_tick, TICK_MS, TICK_MS);
    uv_signal_start(&a->sigterm, on_term, SIGTERM);
    uv_signal_start(&a->sigint, on_term, SIGINT);
    uv_signal_start(&a->sighup, on_hup, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
}

static int remember_store(struct alignd *a, struct err *err)
{
    struct stat st;

    if (stat(store_path(a->store), &st) < 0)
        return err_set(err, -errno, "%s: %s", store_path(a->store), strerror(errno));
    a->store_dev = st.st_dev;
    a->store_ino = st.st_ino;
    return 0;
}

static int start(struct alignd *a, struct err *err)
{
    int r;

    proc_boot_bytes(a->boot_id);
    if (a->config->cpu_slots == 0)
        a->config->cpu_slots =
            devices_usable_cores() < CONFIG_SLOTS_MAX ? devices_usable_cores() : CONFIG_SLOTS_MAX;
    a->threads_per_device = devices_usable_cores() / a->config->cpu_slots;
    if (a->threads_per_device < 1)
        a->threads_per_device = 1;
    r = device_lock_prepare(a->config->devices_dir, err);
    if (r == 0)
        r = store_open(a->config->local, &a->store, err);
    if (r == 0)
        r = remember_store(a, err);
    if (r == 0)
        r = set_paths(a, err);
    if (r == 0)
        r = restore(a, err);
    if (r < 0)
        return r;
    start_timers(a);
    r = effects_open(a);
    tidy_open(a);
    if (r == 0)
        r = gpus_open(a);
    if (r == 0)
        r = reconcile(a, err);
    if (r == 0)
        r = server_open(a, err);
    if (r == 0)
        link_sockets(a);
    return r;
}

static void finish(struct alignd *a)
{
    while (gangs_busy(a)) /* calls in the pool use what is freed below */
        uv_run(a->loop, UV_RUN_ONCE);
    server_close(a);
    effects_close(a);
    held_close(a);
    feed_close(a);
    gangs_close(a);
    gpus_close(a);
    core_free(a->core);
    reads_close();
    store_close(a->store);
}

int loop_run(struct config *config, struct err *err)
{
    struct alignd *a = calloc(1, sizeof *a);
    int r, lock;

    if (!a)
        return -ENOMEM;
    a->config = config;
    a->loop = uv_default_loop();
    lock = take_lock(config->local, err);
    if (lock < 0) {
        free(a);
        return lock;
    }
    raise_files();
    r = start(a, err);
    if (r == 0) {
        log_info("ready", "host=%s store=%s jobs=%zu cpu_slots=%d threads_per_device=%d worker=%s",
                 a->urls[SOCKET_CONTROL], store_uuid(a->store), core_n_jobs(a->core),
                 config->cpu_slots, a->threads_per_device, config->worker);
        uv_run(a->loop, UV_RUN_DEFAULT);
        r = a->exit_code;
    }
    finish(a);
    close(lock);
    free(a);
    return r;
}
