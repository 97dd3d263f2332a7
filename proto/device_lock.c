/* device_lock.c - see device_lock.h. */
#include "proto/device_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "proto/limit.h"
#include "proto/proc.h"

enum { TRIES = 20, WAIT_US = 5000 };

const char *device_lock_folder(void)
{
    const char *told = getenv("ALIGND_DEVICES_DIR");

    return told && *told ? told : "/tmp/alignd-devices";
}

int device_lock_prepare(const char *dir, struct err *err)
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
        return err_set(err, -EACCES,
                       "%s, the folder of device locks, belongs to user %u and is not sticky; "
                       "remove it or name another with ALIGND_DEVICES_DIR (alignd: --devices-dir)",
                       dir, st.st_uid);
    return 0;
}

static int lock_path(const char *dir, const char *name, char *path, size_t size)
{
    if (!*name || strlen(name) >= DEVICE_LOCK_NAME || name[0] == '.' || strchr(name, '/'))
        return -EINVAL;
    return snprintf(path, size, "%s/%s.lock", dir, name) < (int)size ? 0 : -ENAMETOOLONG;
}

/* Others' files are opened as they are: creating in a sticky folder is refused for
 * files of others (fs.protected_regular). */
static int lock_open(const char *dir, const char *name)
{
    char path[LIMIT_PATH + DEVICE_LOCK_NAME];
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

static void describe(pid_t pid, char *ret, size_t size)
{
    struct passwd pw, *found = NULL;
    struct proc_who who;
    char room[4096], number[16];

    if (!proc_look(pid, &who))
        return;
    (void)snprintf(number, sizeof number, "%u", (unsigned)who.uid);
    if (getpwuid_r(who.uid, &pw, room, sizeof room, &found) != 0)
        found = NULL;
    (void)snprintf(ret, size, "%s of user %.32s, process %d", who.name,
                   found ? found->pw_name : number, (int)pid);
}

/* proc(5), /proc/locks: "1: FLOCK  ADVISORY  WRITE 4711 fe:00:10953272 0 EOF". */
static void who_has(int fd, char *ret, size_t size)
{
    FILE *f = fopen("/proc/locks", "re");
    struct stat st;
    char line[256];

    (void)snprintf(ret, size, "another program");
    if (f && fstat(fd, &st) == 0) {
        while (fgets(line, sizeof line, f)) {
            unsigned a, b;
            unsigned long inode;
            int pid;
            if (sscanf(line, "%*s FLOCK %*s WRITE %d %x:%x:%lu", &pid, &a, &b, &inode) == 4 &&
                inode == st.st_ino && a == major(st.st_dev) && b == minor(st.st_dev))
                describe(pid, ret, size);
        }
    }
    if (f)
        fclose(f);
}

int device_lock_take(const char *dir, const char *name, struct err *err)
{
    const int fd = lock_open(dir, name);
    char who[DEVICE_LOCK_WHO];

    if (fd < 0)
        return err_set(err, fd, "the lock of device %s in %s: %s", name, dir, strerror(-fd));
    /* Lookers (device_lock_held) hold it for a moment. */
    for (int i = 0; i < TRIES; i++) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return fd;
        if (errno != EWOULDBLOCK && errno != EINTR)
            break;
        usleep(WAIT_US);
    }
    who_has(fd, who, sizeof who);
    close(fd);
    return err_set(err, -EBUSY, "device %s is in use by %s (lock in %s)", name, who, dir);
}

bool device_lock_held(const char *dir, const char *name)
{
    const int fd = lock_open(dir, name);
    bool held;

    if (fd < 0)
        return fd != -ENOENT && fd != -EINVAL;
    held = flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    close(fd);
    return held;
}

void device_lock_who(const char *dir, const char *name, char *ret, size_t size)
{
    const int fd = lock_open(dir, name);

    (void)snprintf(ret, size, "another program");
    if (fd < 0)
        return;
    who_has(fd, ret, size);
    close(fd);
}
