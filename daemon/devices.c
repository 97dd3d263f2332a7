/* devices.c - see devices.h. */
#include "daemon/devices.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/limit.h"

enum { CORES_MAX = 4096, LOCK_TRIES = 20, LOCK_WAIT_US = 5000 };

/* cgroup v2: "max 100000" or "150000 100000"; 0: no limit, or not known. */
static int cgroup_cores(void)
{
    static const char *const files[] = {"/sys/fs/cgroup/cpu.max"};
    long long quota, period;
    int n = 0;
    FILE *f = fopen(files[0], "re");

    if (!f)
        return 0;
    if (fscanf(f, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0)
        n = (int)((quota + period - 1) / period);
    fclose(f);
    return n;
}

int devices_usable_cores(void)
{
    cpu_set_t *set = CPU_ALLOC(CORES_MAX);
    const size_t bytes = CPU_ALLOC_SIZE(CORES_MAX);
    const int quota = cgroup_cores();
    int n = 1;

    if (set && sched_getaffinity(0, bytes, set) == 0)
        n = CPU_COUNT_S(bytes, set);
    if (set)
        CPU_FREE(set);
    if (quota > 0 && quota < n)
        n = quota;
    return n > 0 ? n : 1;
}

int devices_gpus_seen(void)
{
    DIR *d = opendir("/dev");
    struct dirent *e;
    int n = 0;

    while (d && (e = readdir(d))) {
        const char *p = e->d_name;
        if (strncmp(p, "nvidia", 6) == 0 && p[6] && strspn(p + 6, "0123456789") == strlen(p + 6))
            n++;
    }
    if (d)
        closedir(d);
    return n;
}

/* Where kernels/backend.c looks. */
static bool module_there(const char *worker, const char *backend)
{
    static const char *const folders[] = {"", "/../lib/alignd", "/../kernels"};
    const char *env = getenv("ALIGND_KERNELS");
    char path[2 * LIMIT_PATH], program[LIMIT_PATH];
    char *slash;

    if (env && *env) {
        (void)snprintf(path, sizeof path, "%s/kn_%s.so", env, backend);
        return access(path, R_OK) == 0;
    }
    (void)snprintf(program, sizeof program, "%s", worker);
    slash = strrchr(program, '/');
    if (slash)
        *slash = 0;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        (void)snprintf(path, sizeof path, "%s%s/kn_%s.so", program, folders[i], backend);
        if (access(path, R_OK) == 0)
            return true;
    }
    return false;
}

/* As worker/device.c: tests name another backend. */
bool devices_gpu_module(const char *worker)
{
    const char *told = getenv("ALIGND_BACKEND");

    if (told && *told)
        return !strcmp(told, "sim") || !strcmp(told, "cuda");
    return module_there(worker, "cuda");
}

int devices_prepare(const char *dir, struct err *err)
{
    struct stat st;

    if (mkdir(dir, 0700) == 0) {
        /* not subject to the umask: other users' alignds must find it */
        if (chmod(dir, 01777) < 0)
            return err_set(err, -errno, "%s: %s", dir, strerror(errno));
    } else if (errno != EEXIST) {
        return err_set(err, -errno, "cannot make %s, the folder of device locks: %s", dir,
                       strerror(errno));
    }
    if (lstat(dir, &st) < 0 || !S_ISDIR(st.st_mode))
        return err_set(err, -ENOTDIR, "%s, the folder of device locks, is not a folder", dir);
    if (st.st_uid != geteuid() && st.st_uid != 0 && !(st.st_mode & S_ISVTX))
        return err_set(
            err, -EACCES,
            "%s, the folder of device locks, belongs to user %u and is not sticky; remove "
            "it or name another with --devices-dir",
            dir, st.st_uid);
    return 0;
}

static int lock_path(const char *dir, const char *name, char *path, size_t size)
{
    if (!*name || strlen(name) >= DEVICES_NAME || name[0] == '.' || strchr(name, '/'))
        return -EINVAL;
    return snprintf(path, size, "%s/%s.lock", dir, name) < (int)size ? 0 : -ENAMETOOLONG;
}

/* Others' files are opened as they are: creating in a sticky folder is refused for
 * files of others (fs.protected_regular). */
static int lock_open(const char *dir, const char *name)
{
    char path[LIMIT_PATH + DEVICES_NAME];
    int fd, r = lock_path(dir, name, path, sizeof path);

    if (r < 0)
        return r;
    fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        fd = open(path, O_RDONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (fd >= 0)
            (void)fchmod(fd, 0644);
    }
    return fd < 0 ? -errno : fd;
}

int devices_lock(const char *dir, const char *name, struct err *err)
{
    const int fd = lock_open(dir, name);

    if (fd < 0)
        return err_set(err, fd, "the lock of device %s in %s: %s", name, dir, strerror(-fd));
    /* Lookers (devices_held) hold it for a moment. */
    for (int i = 0; i < LOCK_TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return fd;
        if (errno != EWOULDBLOCK && errno != EINTR)
            break;
        usleep(LOCK_WAIT_US);
    }
    close(fd);
    return err_set(err, -EBUSY, "device %s is in use by another program (lock in %s)", name, dir);
}

bool devices_held(const char *dir, const char *name)
{
    const int fd = lock_open(dir, name);
    bool held;

    if (fd < 0)
        return fd != -ENOENT && fd != -EINVAL;
    held = flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    close(fd);
    return held;
}
