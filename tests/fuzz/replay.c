/* replay.c - runs a fuzz target over the files of a corpus, without libFuzzer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static int replay(const char *dir, const char *name)
{
    char path[4096];
    long bytes;

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) < 0 || (bytes = ftell(f)) < 0) {
        perror(path);
        if (f)
            fclose(f);
        return -1;
    }
    rewind(f);
    uint8_t *data = malloc(bytes > 0 ? (size_t)bytes : 1); /* exact: a read past it shows */
    const size_t got = data ? fread(data, 1, (size_t)bytes, f) : 0;
    fclose(f);
    if (!data || got != (size_t)bytes) {
        free(data);
        return -1;
    }
    (void)LLVMFuzzerTestOneInput(data, got);
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    int files = 0;

    for (int i = 1; i < argc; i++) {
        DIR *d = opendir(argv[i]);
        if (!d) {
            perror(argv[i]);
            return 1;
        }
        for (struct dirent *e; (e = readdir(d));) {
            if (e->d_name[0] == '.')
                continue;
            if (replay(argv[i], e->d_name) < 0)
                return 1;
            files++;
        }
        closedir(d);
    }
    printf("%d files replayed\n", files);
    return files ? 0 : 1;
}
