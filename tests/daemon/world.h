/* world.h - a real alignd in a folder of its own, and requests to it that insist. */
#ifndef TESTS_DAEMON_WORLD_H
#define TESTS_DAEMON_WORLD_H

#include "tests/support/test.h"

#include <stdbool.h>
#include <sys/types.h>

#include <jansson.h>

#include "proto/codec.h"
#include "proto/wire.h"

enum { PATIENCE_MS = 30000 };

struct world {
    char dir[64], state[160], devices[96];
    pid_t pid;
    bool mounted;
    struct wire_client *control, *watch;
    char watch_url[256];
};

void world_connect_to(struct world *w);
pid_t world_spawn_daemon(struct world *w);
void world_start(struct world *w);
int world_finish(struct world *w, int sig);
int world_setup(void **state);
int world_teardown(void **state);
struct msg *world_ask_on(struct wire_client *c, const struct msg *m);
struct msg *world_ask(struct world *w, const struct msg *m);
void world_expect_error(struct world *w, const struct msg *m, enum msg_code code);
struct msg_key world_key(uint8_t n);
struct msg world_submission(uint8_t k, const char *name, const char *resolved);
uint64_t world_submit(struct world *w, uint8_t k, const char *name, const char *resolved);
json_t *world_show(struct world *w, uint64_t job);
const char *world_text_of(const json_t *o, const char *k);
json_int_t world_int_of(const json_t *o, const char *k);
void world_wait_for(struct world *w, uint64_t job, const char *state, json_int_t step);
struct msg *world_metrics(struct world *w, uint64_t job, bool all);
void world_expect_rows(struct world *w, uint64_t job, size_t n);
void world_expect_log(struct world *w, uint64_t job, const char *want);
void world_wait_until_gone(struct world *w, uint64_t job);

#endif
