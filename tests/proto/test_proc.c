/* test_proc.c - a process is told apart from its remains, whatever it calls itself. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/test.h"

#include "proto/proc.h"

static void boot(void **state)
{
    char text[PROC_BOOT_TEXT], hex[2 * PROC_BOOT_BYTES + 1], plain[PROC_BOOT_TEXT];
    uint8_t bytes[PROC_BOOT_BYTES];
    size_t n = 0;

    (void)state;
    proc_boot_text(text);
    proc_boot_bytes(bytes);
    assert_int_equal(strlen(text), PROC_BOOT_TEXT - 1);
    for (int i = 0; i < PROC_BOOT_BYTES; i++)
        snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
    for (const char *p = text; *p; p++)
        if (*p != '-')
            plain[n++] = *p;
    plain[n] = '\0';
    assert_string_equal(hex, plain);
}

static void start(void **state)
{
    const uint64_t mine = proc_start(getpid());
    struct proc_memory memory;
    uint64_t child;
    int p[2];
    pid_t pid;

    (void)state;
    assert_true(mine > 0);
    assert_int_equal(proc_start(getpid()), mine);
    assert_int_equal(proc_start(0x7ffffff0), 0);
    assert_int_equal(pipe(p), 0);
    pid = fork();
    if (pid == 0) {
        char c;
        (void)prctl(PR_SET_NAME, ") Z 1 2 3 (x");
        _exit(write(p[1], "x", 1) == 1 && read(p[0], &c, 1) == 1 && pause() ? 0 : 1);
    }
    for (int i = 0; i < 500 && proc_start(pid) == 0; i++)
        usleep(10000);
    child = proc_start(pid);
    assert_true(child >= mine);
    usleep(50000); /* it has its name by now */
    assert_int_equal(proc_start(pid), child);
    struct proc_who who;
    assert_true(proc_look(pid, &who));
    assert_string_equal(who.name, ")_Z_1_2_3_(x");
    assert_int_equal(who.session, getsid(0));
    assert_int_equal(who.uid, geteuid());
    assert_false(proc_look(0, &who));
    assert_false(proc_look(0x7ffffff0, &who));
    assert_true(proc_memory(getpid(), &memory));
    assert_true(memory.rss_kb > 100 && memory.peak_kb >= memory.rss_kb);
    assert_true(proc_memory(pid, &memory));
    assert_false(proc_memory(0, &memory));
    assert_false(proc_memory(0x7ffffff0, &memory));
    kill(pid, SIGKILL);
    while (waitid(P_PID, (id_t)pid, &(siginfo_t){0}, WEXITED | WNOWAIT) < 0)
        ;
    assert_int_equal(proc_start(pid), 0); /* only its remains */
    assert_false(proc_memory(pid, &memory));
    waitpid(pid, NULL, 0);
    assert_int_equal(proc_start(pid), 0);
    close(p[0]);
    close(p[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(boot), cmocka_unit_test(start)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
