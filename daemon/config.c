/* config.c - see config.h. */
#include "daemon/config.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <linux/magic.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <jansson.h>

#include "proto/device_lock.h"
#include "proto/sha256.h"

const char config_usage[] =
    "usage: alignd --user [options]\n"
    "\n"
    "Schedules alignment jobs on this machine's devices.\n"
    "\n"
    "  --user               run as an ordinary user; everything lies in the state folder\n"
    "  --state DIR          state folder (default: $ALIGND_STATE, $XDG_STATE_HOME/alignd,\n"
    "                       ~/.local/state/alignd)\n"
    "  --host URL           control socket (default: ipc://<state>/control.sock)\n"
    "  --cpu-slots N        CPU devices (default: usable cores)\n"
    "  --worker PATH        the program align-worker (default: beside alignd, then $PATH)\n"
    "  --devices-dir DIR    lock files of devices, one folder per machine\n"
    "                       (default: $ALIGND_DEVICES_DIR, /tmp/alignd-devices)\n"
    "  --log-level LEVEL    error, warn, info, debug\n"
    "  --foreground         log to standard error instead of <state>/alignd.log\n"
    "  --version, --help\n"
    "\n"
    "<state>/alignd.json may hold \"cpu_slots\", \"worker\", \"devices_dir\", \"log_level\",\n"
    "\"operators\" (user names or numbers that may act on all jobs), \"metrics_keep\" and\n"
    "\"logs_keep\" (\"30d\": how long rows and output of ended jobs stay whole) and "
    "\"memory_keep\"\n"
    "(\"7d\": how long ended jobs stay in memory). SIGHUP reads it again: log_level, operators,\n"
    "metrics_keep and logs_keep take effect, a change of the others is refused by name.\n";

/* Magic numbers that linux/magic.h lacks. */
enum { MAGIC_LUSTRE = 0x0BD00BD0, MAGIC_GPFS = 0x47504653, MAGIC_BEEGFS = 0x19830326 };

static int copy(char *to, size_t size, const char *from, const char *what, struct err *err)
{
    if (snprintf(to, size, "%s", from) >= (int)size)
        return err_set(err, -EINVAL, "%s is too long", what);
    return 0;
}

/* Absolute, without asking whether it exists. */
static int absolute(char *path, const char *what, struct err *err)
{
    char cwd[LIMIT_PATH], whole[2 * LIMIT_PATH];

    if (path[0] == '/' || path[0] == 0)
        return 0;
    if (!getcwd(cwd, sizeof cwd))
        return err_set(err, -errno, "%s: the current folder is gone", what);
    snprintf(whole, sizeof whole, "%s/%s", cwd, path);
    return copy(path, LIMIT_PATH, whole, what, err);
}

static int default_state(char *to, struct err *err)
{
    const char *state = getenv("ALIGND_STATE"), *xdg = getenv("XDG_STATE_HOME"),
               *home = getenv("HOME");
    char path[LIMIT_PATH];
    int n;

    if (state && *state)
        return copy(to, LIMIT_PATH, state, "ALIGND_STATE", err);
    if (xdg && *xdg == '/') {
        n = snprintf(path, sizeof path, "%s/alignd", xdg);
    } else {
        if (!home || *home != '/') {
            const struct passwd *pw = getpwuid(geteuid());
            home = pw ? pw->pw_dir : NULL;
        }
        if (!home)
            return err_set(err, -EINVAL, "no home folder is known: use --state");
        n = snprintf(path, sizeof path, "%s/.local/state/alignd", home);
    }
    return n < (int)sizeof path ? copy(to, LIMIT_PATH, path, "the state folder", err)
                                : err_set(err, -EINVAL, "the state folder's path is too long");
}

/* Beside this program (installed), in the build tree's worker/, then $PATH. */
static void default_worker(char *to)
{
    static const char *const places[] = {"align-worker", "../worker/align-worker"};
    char self[LIMIT_PATH], path[2 * LIMIT_PATH];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash;

    to[0] = 0;
    self[n > 0 ? n : 0] = 0;
    slash = strrchr(self, '/');
    if (slash)
        slash[1] = 0;
    for (size_t i = 0; i < sizeof places / sizeof places[0] && !to[0]; i++) {
        snprintf(path, sizeof path, "%s%s", self, places[i]);
        if (access(path, X_OK) == 0)
            snprintf(to, LIMIT_PATH, "%s", path);
    }
    const char *list = getenv("PATH");
    while (!to[0] && list && *list) {
        const size_t k = strcspn(list, ":");
        snprintf(path, sizeof path, "%.*s/align-worker", (int)k, list);
        if (path[0] == '/' && access(path, X_OK) == 0)
            snprintf(to, LIMIT_PATH, "%s", path);
        list += k + (list[k] == ':');
    }
}

static int read_slots(const char *text, int *ret, struct err *err)
{
    char *end;
    long v;

    errno = 0;
    v = strtol(text, &end, 10);
    if (errno || *end || end == text || v < 1 || v > CONFIG_SLOTS_MAX)
        return err_set(err, -EINVAL, "--cpu-slots %s: must be 1 to %d", text, CONFIG_SLOTS_MAX);
    *ret = (int)v;
    return 0;
}

enum opt {
    O_USER = 256,
    O_STATE,
    O_HOST,
    O_SLOTS,
    O_WORKER,
    O_DEVICES,
    O_LEVEL,
    O_FOREGROUND,
    O_VERSION,
};

static int take_option(struct config *c, int o, const char *arg, struct err *err)
{
    struct config_given *g = &c->given;

    switch (o) {
    case O_USER:
        c->user = true;
        return 0;
    case O_STATE:
        return copy(c->state, sizeof c->state, arg, "--state", err);
    case O_HOST:
        if (strncmp(arg, "ipc:///", 7) != 0)
            return err_set(err, -EINVAL, "--host %s: must be ipc:///absolute/path.sock", arg);
        return copy(c->host, sizeof c->host, arg, "--host", err);
    case O_SLOTS:
        g->slots = true;
        return read_slots(arg, &c->cpu_slots, err);
    case O_WORKER:
        g->worker = true;
        return copy(c->worker, sizeof c->worker, arg, "--worker", err);
    case O_DEVICES:
        g->devices = true;
        return copy(c->devices_dir, sizeof c->devices_dir, arg, "--devices-dir", err);
    case O_LEVEL:
        g->level = true;
        if (log_level_parse(arg, &c->log_level) < 0)
            return err_set(err, -EINVAL, "--log-level %s: must be error, warn, info or debug", arg);
        return 0;
    case O_FOREGROUND:
        c->foreground = true;
        return 0;
    case O_VERSION:
        c->version = true;
        return 0;
    case 'h':
        c->help = true;
        return 0;
    default:
        return err_set(err, -EINVAL, "unknown option, or one without its value; see --help");
    }
}

static int command_line(int argc, char **argv, struct config *c, struct err *err)
{
    static const struct option options[] = {
        {"user", no_argument, NULL, O_USER},
        {"state", required_argument, NULL, O_STATE},
        {"host", required_argument, NULL, O_HOST},
        {"cpu-slots", required_argument, NULL, O_SLOTS},
        {"worker", required_argument, NULL, O_WORKER},
        {"devices-dir", required_argument, NULL, O_DEVICES},
        {"log-level", required_argument, NULL, O_LEVEL},
        {"foreground", no_argument, NULL, O_FOREGROUND},
        {"version", no_argument, NULL, O_VERSION},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int o, r = 0;

    optind = 1;
    opterr = 0;
    while (r == 0 && (o = getopt_long(argc, argv, "h", options, NULL)) != -1)
        r = take_option(c, o, optarg, err);
    if (r == 0 && optind < argc)
        r = err_set(err, -EINVAL, "%s: unexpected; see --help", argv[optind]);
    return r;
}

/* ---- alignd.json ---- */

static int take_operators(struct config *c, const json_t *v, struct err *err)
{
    size_t i;
    json_t *o;

    if (!json_is_array(v) || json_array_size(v) > CONFIG_OPERATORS)
        return err_set(err, -EINVAL, "operators: must be a list of at most %d users",
                       CONFIG_OPERATORS);
    c->n_operators = 0;
    json_array_foreach(v, i, o)
    {
        if (json_is_integer(o) && json_integer_value(o) >= 0 &&
            json_integer_value(o) < UINT32_MAX) {
            c->operators[c->n_operators++] = (uint32_t)json_integer_value(o);
        } else if (json_is_string(o)) {
            const struct passwd *pw = getpwnam(json_string_value(o));
            if (!pw)
                return err_set(err, -EINVAL, "operators: there is no user %s",
                               json_string_value(o));
            c->operators[c->n_operators++] = pw->pw_uid;
        } else {
            return err_set(err, -EINVAL, "operators: entry %zu is no user name or number", i + 1);
        }
    }
    return 0;
}

int config_duration(const char *text, int64_t *ret)
{
    static const struct {
        char unit;
        int64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 604800}};
    char *end;
    long v;

    if (strcmp(text, "forever") == 0) {
        *ret = CONFIG_FOREVER;
        return 0;
    }
    errno = 0;
    v = strtol(text, &end, 10);
    if (errno || text[0] < '0' || text[0] > '9' || v < 1 || v > 1000000000 || !end[0] || end[1])
        return -EINVAL;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (*end == units[i].unit) {
            *ret = v * units[i].seconds;
            return 0;
        }
    }
    return -EINVAL;
}

/* 1: key is none of these. */
static int take_keep(struct config *c, const char *key, const char *text, struct err *err)
{
    int64_t *const to = !strcmp(key, "metrics_keep")  ? &c->metrics_keep_s
                        : !strcmp(key, "logs_keep")   ? &c->logs_keep_s
                        : !strcmp(key, "memory_keep") ? &c->file.memory_keep_s
                                                      : NULL;

    if (!to)
        return 1;
    if (!text || config_duration(text, to) < 0)
        return err_set(
            err, -EINVAL,
            "%s: must be a time such as \"90s\", \"12h\", \"30d\", \"2w\" or \"forever\"", key);
    return 0;
}

static int take_key(struct config *c, const char *key, const json_t *v, struct err *err)
{
    const struct config_given *g = &c->given;
    const char *s = json_string_value(v);
    enum log_level level;
    const int keep = take_keep(c, key, s, err);

    if (keep <= 0)
        return keep;
    if (!strcmp(key, "operators"))
        return take_operators(c, v, err);
    if (!strcmp(key, "cpu_slots")) {
        if (!json_is_integer(v) || json_integer_value(v) < 1 ||
            json_integer_value(v) > CONFIG_SLOTS_MAX)
            return err_set(err, -EINVAL, "cpu_slots: must be 1 to %d", CONFIG_SLOTS_MAX);
        c->file.cpu_slots = (int)json_integer_value(v);
        if (!g->slots)
            c->cpu_slots = c->file.cpu_slots;
        return 0;
    }
    if (strcmp(key, "worker") && strcmp(key, "devices_dir") && strcmp(key, "log_level"))
        return err_set(err, -EINVAL,
                       "%s: unknown key; known are cpu_slots, worker, devices_dir, log_level, "
                       "operators, metrics_keep, logs_keep, memory_keep",
                       key);
    if (!s)
        return err_set(err, -EINVAL, "%s: must be a string", key);
    if (!strcmp(key, "worker")) {
        const int r = copy(c->file.worker, sizeof c->file.worker, s, key, err);
        return r < 0 || g->worker ? r : copy(c->worker, sizeof c->worker, s, key, err);
    }
    if (!strcmp(key, "devices_dir")) {
        const int r = copy(c->file.devices_dir, sizeof c->file.devices_dir, s, key, err);
        return r < 0 || g->devices ? r : copy(c->devices_dir, sizeof c->devices_dir, s, key, err);
    }
    if (log_level_parse(s, &level) < 0)
        return err_set(err, -EINVAL, "log_level: must be error, warn, info or debug");
    if (!g->level)
        c->log_level = level;
    return 0;
}

static int read_file(struct config *c, struct err *err)
{
    char path[LIMIT_PATH + 16];
    json_error_t je;
    json_t *o, *v;
    const char *key;
    int r = 0;

    snprintf(path, sizeof path, "%s/alignd.json", c->state);
    if (access(path, F_OK) < 0 && errno == ENOENT)
        return 0;
    o = json_load_file(path, JSON_REJECT_DUPLICATES, &je);
    if (!json_is_object(o)) {
        json_decref(o);
        return err_set(err, -EINVAL, "%s:%d: %s", path, je.line, o ? "must be an object" : je.text);
    }
    json_object_foreach(o, key, v)
    {
        if (r == 0)
            r = take_key(c, key, v, err);
    }
    json_decref(o);
    return r < 0 ? err_prefix(err, r, "%s", path) : 0;
}

int config_read(int argc, char **argv, struct config **ret, struct err *err)
{
    struct config *c = calloc(1, sizeof *c);
    int r;

    if (!c)
        return -ENOMEM;
    c->log_level = LOG_INFO;
    c->metrics_keep_s = c->logs_keep_s = CONFIG_KEEP_S;
    r = command_line(argc, argv, c, err);
    if (r == 0 && !c->state[0])
        r = default_state(c->state, err);
    if (r == 0)
        r = absolute(c->state, "--state", err);
    if (r == 0 && !c->help && !c->version)
        r = read_file(c, err);
    c->memory_keep_s = c->file.memory_keep_s ? c->file.memory_keep_s : CONFIG_MEMORY_KEEP_S;
    if (r == 0 && !c->devices_dir[0])
        r = copy(c->devices_dir, sizeof c->devices_dir, device_lock_folder(), "ALIGND_DEVICES_DIR",
                 err);
    if (r == 0)
        r = absolute(c->devices_dir, "--devices-dir", err);
    if (r == 0 && !c->worker[0])
        default_worker(c->worker);
    if (r == 0)
        r = absolute(c->worker, "--worker", err);
    if (r < 0) {
        free(c);
        return r;
    }
    *ret = c;
    return 0;
}

void config_free(struct config *c)
{
    free(c);
}

int config_reload(struct config *c, struct err *err)
{
    struct config *n = malloc(sizeof *n);
    const char *changed = NULL;
    int r;

    if (!n)
        return -ENOMEM;
    *n = *c;
    n->file = (struct config_fixed){0};
    n->n_operators = 0;
    n->metrics_keep_s = n->logs_keep_s = CONFIG_KEEP_S;
    if (!c->given.level)
        n->log_level = LOG_INFO;
    r = read_file(n, err);
    if (n->file.cpu_slots != c->file.cpu_slots)
        changed = "cpu_slots";
    else if (strcmp(n->file.worker, c->file.worker) != 0)
        changed = "worker";
    else if (strcmp(n->file.devices_dir, c->file.devices_dir) != 0)
        changed = "devices_dir";
    else if (n->file.memory_keep_s != c->file.memory_keep_s)
        changed = "memory_keep";
    if (r == 0 && changed)
        r = err_set(err, -EINVAL, "%s cannot change while alignd runs; start it again", changed);
    if (r == 0) {
        c->log_level = n->log_level;
        c->metrics_keep_s = n->metrics_keep_s;
        c->logs_keep_s = n->logs_keep_s;
        memcpy(c->operators, n->operators, sizeof c->operators);
        c->n_operators = n->n_operators;
    }
    free(n);
    return r;
}

/* ---- the state folder ---- */

static int make_folders(const char *path, struct err *err)
{
    char part[LIMIT_PATH];

    for (const char *p = path + 1;; p++) {
        if (*p && *p != '/')
            continue;
        snprintf(part, sizeof part, "%.*s", (int)(p - path), path);
        if (mkdir(part, *p ? 0755 : 0700) < 0 && errno != EEXIST)
            return err_set(err, -errno, "cannot make the folder %s: %s", part, strerror(errno));
        if (!*p)
            return 0;
    }
}

static int own_folder(const char *path, bool links, struct err *err)
{
    struct stat st;

    if ((links ? stat : lstat)(path, &st) < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return err_set(err, -ENOTDIR, "%s is not a folder", path);
    if (st.st_uid != geteuid())
        return err_set(err, -EACCES, "%s belongs to another user", path);
    if (chmod(path, 0700) < 0)
        return err_set(err, -errno, "%s: %s", path, strerror(errno));
    return 0;
}

static const char *network_name(const char *path)
{
    struct statfs f;

    if (statfs(path, &f) < 0)
        return NULL;
    switch ((unsigned long)f.f_type & 0xffffffffUL) {
    case NFS_SUPER_MAGIC:
        return "NFS";
    case SMB_SUPER_MAGIC:
    case CIFS_SUPER_MAGIC:
    case SMB2_SUPER_MAGIC:
        return "SMB";
    case FUSE_SUPER_MAGIC:
        return "FUSE";
    case AFS_SUPER_MAGIC:
        return "AFS";
    case CEPH_SUPER_MAGIC:
        return "Ceph";
    case V9FS_MAGIC:
        return "9P";
    case MAGIC_LUSTRE:
        return "Lustre";
    case MAGIC_GPFS:
        return "GPFS";
    case MAGIC_BEEGFS:
        return "BeeGFS";
    default:
        return NULL;
    }
}

int config_prepare(struct config *c, char *note, size_t size, struct err *err)
{
    uint8_t digest[SHA256_BYTES];
    char hex[SHA256_HEX];
    const char *net;
    int r = make_folders(c->state, err);

    note[0] = 0;
    if (r == 0)
        r = own_folder(c->state, true, err);
    if (r < 0)
        return r;
    snprintf(c->local, sizeof c->local, "%s", c->state);
    net = network_name(c->state);
    if (!net)
        return 0;
    sha256_of(c->state, strlen(c->state), digest);
    sha256_hex(digest, hex);
    hex[12] = 0;
    snprintf(c->local, sizeof c->local, "/tmp/alignd-%u-%s", geteuid(), hex);
    if (mkdir(c->local, 0700) < 0 && errno != EEXIST)
        return err_set(err, -errno, "cannot make %s: %s", c->local, strerror(errno));
    r = own_folder(c->local, false, err);
    if (r < 0)
        return r;
    if (network_name(c->local))
        return err_set(err, -EINVAL,
                       "%s is on a network file system (%s), and so is /tmp; name a "
                       "local folder with --state",
                       c->state, net);
    snprintf(note, size, "%s is on %s, which keeps no locks and sockets: %s is used instead",
             c->state, net, c->local);
    return 0;
}
