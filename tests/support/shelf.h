/* shelf.h - a store for gloo's ranks when they are threads of one process. */
#ifndef TESTS_SUPPORT_SHELF_H
#define TESTS_SUPPORT_SHELF_H

#include "tests/support/test.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct shelf {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n;
    struct {
        char key[128];
        char value[1024];
        size_t bytes;
    } v[64];
};

static inline int shelf_put(void *arg, const char *key, const void *value, size_t bytes)
{
    struct shelf *s = arg;

    pthread_mutex_lock(&s->mutex);
    assert_true(s->n < 64 && bytes <= sizeof s->v[0].value);
    snprintf(s->v[s->n].key, sizeof s->v[0].key, "%s", key);
    memcpy(s->v[s->n].value, value, bytes);
    s->v[s->n++].bytes = bytes;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    return 0;
}

static inline int shelf_get(void *arg, const char *key, void *value, size_t cap, size_t *ret_bytes,
                            int64_t timeout_ms)
{
    struct shelf *s = arg;
    struct timespec t;
    int r = -ETIMEDOUT;

    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += timeout_ms / 1000;
    t.tv_nsec += timeout_ms % 1000 * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    pthread_mutex_lock(&s->mutex);
    do {
        for (int i = 0; i < s->n && r != 0; i++) {
            if (strcmp(s->v[i].key, key) == 0 && s->v[i].bytes <= cap) {
                memcpy(value, s->v[i].value, s->v[i].bytes);
                *ret_bytes = s->v[i].bytes;
                r = 0;
            }
        }
    } while (r != 0 && pthread_cond_timedwait(&s->changed, &s->mutex, &t) == 0);
    pthread_mutex_unlock(&s->mutex);
    return r;
}

#endif
