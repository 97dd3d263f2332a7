/* peak.c - the machine's float32 peak, measured: independent vector FMA chains on
 * every thread. Prints GFLOP/s of the best of several runs. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CHAINS = 12, ROUNDS = 4000000 };
typedef float vec __attribute__((vector_size(64)));

static float sink[64 * 64];

/* Built for several instruction sets, the best taken at run time. The vector type
 * is 64 bytes everywhere; narrower machines split it. */
__attribute__((target_clones("avx512f", "avx2,fma", "default"))) static void burn(float *out)
{
    vec a[CHAINS], m, b;

    for (int i = 0; i < 16; i++) {
        m[i] = 0.999f;
        b[i] = 0.001f * (float)(i + 1);
        for (int c = 0; c < CHAINS; c++)
            a[c][i] = (float)c;
    }
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++)
            a[c] = a[c] * m + b;
    }
    for (int c = 1; c < CHAINS; c++)
        a[0] += a[c];
    out[0] = a[0][0];
}

static void *thread(void *arg)
{
    burn(arg);
    return NULL;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 1;
    double best = 0.0;

    if (threads < 1 || threads > 64)
        return 2;
    for (int run = 0; run < 5; run++) {
        pthread_t id[64];
        const double start = now();
        for (int t = 0; t < threads; t++)
            if (pthread_create(&id[t], NULL, thread, &sink[t * 64]))
                return 1;
        for (int t = 0; t < threads; t++)
            pthread_join(id[t], NULL);
        const double flops = 2.0 * 16 * CHAINS * (double)ROUNDS * threads / (now() - start);
        best = flops > best ? flops : best;
    }
    printf("%.1f\n", best / 1e9);
    return 0;
}
