/* test_link.c - a rank and its supervisor talk over one pair; either may vanish. */
#include "tests/support/test.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "worker/link.h"

static struct link_packet *packet;

static void sleep_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* The next packet of this kind, waiting at most 3 s. */
static void expect(int fd, enum link_kind kind)
{
    for (int i = 0; i < 100; i++) {
        struct pollfd p = {fd, POLLIN, 0};
        assert_int_equal(poll(&p, 1, 3000), 1);
        assert_int_equal(link_recv(fd, packet), 1);
        if (packet->kind == kind)
            return;
    }
    fail();
}

static void wait_flags(struct link *l, unsigned flags)
{
    for (int i = 0; i < 300 && link_flags(l) != flags; i++)
        sleep_ms(10);
    assert_int_equal(link_flags(l), flags);
}

static void test_nobody(void **state)
{
    struct link *l;
    struct coll_store s;
    size_t n;
    char b[8];

    (void)state;
    assert_int_equal(link_open(-1, &l), 0);
    link_progress(l, LINK_TRAINING, 1, 10);
    link_error(l, "nothing");
    assert_int_equal(link_flags(l), 0);
    s = link_store(l);
    assert_int_equal(s.put(s.arg, "k", "v", 1), 0);
    assert_int_equal(s.get(s.arg, "k", b, sizeof b, &n, 10), -ECANCELED);
    link_close(l);
    link_close(NULL);
}

static void test_beats_and_flags(void **state)
{
    struct link *l;
    int fd[2];

    (void)state;
    assert_int_equal(link_pair(fd), 0);
    assert_int_equal(link_open(fd[1], &l), 0);
    expect(fd[0], LINK_BEAT);
    assert_int_equal(packet->phase, LINK_LOADING);
    link_progress(l, LINK_TRAINING, 0, 10);
    expect(fd[0], LINK_BEAT);
    assert_int_equal(packet->phase, LINK_TRAINING);
    assert_int_equal(packet->steps, 10);
    for (int i = 1; i <= 5; i++) {
        sleep_ms(30);
        link_progress(l, LINK_TRAINING, i, 10);
        expect(fd[0], LINK_BEAT); /* a step is news */
        assert_int_equal(packet->step, i);
    }
    link_progress(l, LINK_SAVING, 5, 10);
    expect(fd[0], LINK_BEAT);
    assert_int_equal(packet->step, 5);
    assert_in_range(packet->step_ms, 25, 300);

    assert_int_equal(link_send_flags(fd[0], LINK_CHECKPOINT), 0);
    wait_flags(l, LINK_CHECKPOINT);
    assert_int_equal(link_send_flags(fd[0], LINK_STOP), 0);
    wait_flags(l, LINK_CHECKPOINT | LINK_STOP);
    link_clear(l, LINK_CHECKPOINT);
    assert_int_equal(link_flags(l), LINK_STOP);

    link_error(l, "row 7 of data.jsonl: not an object");
    link_close(l); /* what was said last still goes out */
    expect(fd[0], LINK_ERROR);
    assert_string_equal(packet->data, "row 7 of data.jsonl: not an object");
    while (link_recv(fd[0], packet) == 1)
        ;
    assert_int_equal(link_recv(fd[0], packet), -EPIPE);
    assert_true(link_send_flags(fd[0], LINK_STOP) < 0);
    close(fd[0]);
}

static void test_signals(void **state)
{
    static const int numbers[] = {SIGTERM, SIGUSR1, SIGUSR2};
    struct link *l;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
        assert_int_equal(link_open(-1, &l), 0);
        link_signals(l);
        assert_int_equal(link_flags(l), 0);
        raise(numbers[i]);
        assert_int_equal(link_flags(l), LINK_STOP);
        link_close(l);
    }
}

struct asker {
    struct coll_store store;
    int64_t timeout_ms;
    int r;
    char value[LIMIT_RDV_BYTES];
    size_t bytes;
};

static void *ask_main(void *arg)
{
    struct asker *a = arg;

    a->r =
        a->store.get(a->store.arg, "gloo/0", a->value, sizeof a->value, &a->bytes, a->timeout_ms);
    return NULL;
}

static void *put_main(void *arg)
{
    struct asker *a = arg;

    a->r = a->store.put(a->store.arg, "gloo/1", a->value, a->bytes);
    return NULL;
}

static void test_rendezvous(void **state)
{
    struct link *l;
    struct asker *a = calloc(1, sizeof *a);
    char *big = malloc(LIMIT_RDV_BYTES);
    pthread_t thread;
    int fd[2];

    (void)state;
    memset(big, 'x', LIMIT_RDV_BYTES);
    assert_int_equal(link_pair(fd), 0);
    assert_int_equal(link_open(fd[1], &l), 0);
    a->store = link_store(l);

    memcpy(a->value, big, a->bytes = LIMIT_RDV_BYTES);
    pthread_create(&thread, NULL, put_main, a);
    expect(fd[0], LINK_PUT);
    assert_string_equal(packet->key, "gloo/1");
    assert_int_equal(packet->bytes, LIMIT_RDV_BYTES);
    assert_memory_equal(packet->data, big, LIMIT_RDV_BYTES);
    assert_int_equal(link_send_value(fd[0], "gloo/1", 0, NULL, 0), 0);
    pthread_join(thread, NULL);
    assert_int_equal(a->r, 0);

    a->timeout_ms = 20000;
    a->bytes = 0;
    pthread_create(&thread, NULL, ask_main, a);
    expect(fd[0], LINK_GET);
    assert_int_equal(link_send_value(fd[0], "other", 0, "no", 2), 0); /* not what was asked */
    assert_int_equal(link_send_value(fd[0], "gloo/0", 0, big, LIMIT_RDV_BYTES), 0);
    pthread_join(thread, NULL);
    assert_int_equal(a->r, 0);
    assert_int_equal(a->bytes, LIMIT_RDV_BYTES);
    assert_memory_equal(a->value, big, LIMIT_RDV_BYTES);

    assert_int_equal(a->store.put(a->store.arg, "k", big, LIMIT_RDV_BYTES + 1), -EMSGSIZE);
    link_close(l);
    close(fd[0]);
    free(big);
    free(a);
}

/* 100 ms without an answer, but the clock stood still for 400 of them. */
static void test_patience(void **state)
{
    struct link *l;
    struct asker *a = calloc(1, sizeof *a);
    pthread_t thread;
    int fd[2];

    (void)state;
    assert_int_equal(link_pair(fd), 0);
    assert_int_equal(link_open(fd[1], &l), 0);
    a->store = link_store(l);
    a->timeout_ms = 100;
    pthread_create(&thread, NULL, ask_main, a);
    pthread_join(thread, NULL);
    assert_int_equal(a->r, -ETIMEDOUT);

    a->timeout_ms = 200;
    pthread_create(&thread, NULL, ask_main, a);
    expect(fd[0], LINK_GET);
    expect(fd[0], LINK_GET);
    assert_int_equal(link_send_patience(fd[0], 2000), 0);
    sleep_ms(400);
    assert_int_equal(link_send_value(fd[0], "gloo/0", 0, "v", 1), 0);
    pthread_join(thread, NULL);
    assert_int_equal(a->r, 0);

    a->timeout_ms = 20000; /* a supervisor that vanishes ends the wait at once */
    pthread_create(&thread, NULL, ask_main, a);
    expect(fd[0], LINK_GET);
    close(fd[0]);
    pthread_join(thread, NULL);
    assert_int_equal(a->r, -ECANCELED);
    link_close(l);
    free(a);
}

/* Packets that are none: each is refused by itself, the next one is read. */
static void test_hostile(void **state)
{
    char junk[600];
    int fd[2];

    (void)state;
    assert_int_equal(link_pair(fd), 0);
    for (size_t n = 1; n < sizeof junk; n += 13) {
        memset(junk, (int)n, n);
        assert_int_equal(send(fd[1], junk, n, 0), n);
        assert_int_equal(link_recv(fd[0], packet), -EBADMSG);
    }
    assert_int_equal(link_recv(fd[0], packet), 0);
    struct link *l;
    assert_int_equal(link_open(fd[1], &l), 0);
    assert_int_equal(send(fd[0], junk, 5, 0), 5); /* and the other way */
    assert_int_equal(link_send_flags(fd[0], LINK_STOP), 0);
    wait_flags(l, LINK_STOP);
    link_close(l);
    close(fd[0]);
}

/* A rank that reads nothing never blocks the supervisor. */
static void test_full(void **state)
{
    int fd[2], r = 0;

    (void)state;
    assert_int_equal(link_pair(fd), 0);
    for (int i = 0; i < 100000 && r == 0; i++)
        r = link_send_flags(fd[0], LINK_STOP);
    assert_int_equal(r, -EAGAIN);
    close(fd[0]);
    close(fd[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody),   cmocka_unit_test(test_beats_and_flags),
        cmocka_unit_test(test_signals),  cmocka_unit_test(test_rendezvous),
        cmocka_unit_test(test_patience), cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_full),
    };

    packet = calloc(1, sizeof *packet);
    const int r = cmocka_run_group_tests(tests, NULL, NULL);
    free(packet);
    return r;
}
