/* fuzz_gang.c - any bytes as gang.json and as exit.json. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "worker/gang.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static char path[64];
static int folder = -1;

static void leave(void)
{
    (void)rmdir(path);
}

static void put(const char *name, const uint8_t *data, size_t bytes)
{
    const int fd = openat(folder, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes)
        __builtin_trap();
    close(fd);
}

static void forget(void)
{
    (void)unlinkat(folder, "gang.json", 0);
    (void)unlinkat(folder, "exit.json", 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct gang_exit e;
    struct gang *g = NULL;
    struct err err;
    char *text = NULL;

    if (folder < 0) {
        snprintf(path, sizeof path, "/tmp/alignd-fuzz-XXXXXX");
        if (!mkdtemp(path))
            __builtin_trap();
        folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (folder < 0 || atexit(leave) != 0)
            __builtin_trap();
    }
    put("gang.json", data, bytes);
    put("exit.json", data, bytes);
    if (gang_read(folder, &g, &err) == 0 &&
        (g->n_devices < 1 || g->attempt < 1 || g->output_dir[0] != '/' || g->silence_ms <= 0))
        __builtin_trap();
    gang_free(g);
    if (gang_read_exit(folder, &text, &e) == 0 && !text)
        __builtin_trap();
    free(text);
    forget();
    return 0;
}
