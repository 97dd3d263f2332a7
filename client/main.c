/* main.c - alignctl: finds the verb, runs it, says what went wrong. */
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli.h"

static const struct cli_verb *const tables[] = {verb_daemon, verb_local,  verb_submit, verb_queue,
                                                verb_follow, verb_output, verb_change};
enum { TABLES = sizeof tables / sizeof tables[0] };

static const struct cli_verb *find(const char *name)
{
    for (size_t t = 0; t < TABLES; t++)
        for (const struct cli_verb *v = tables[t]; v->name; v++)
            if (strcmp(v->name, name) == 0)
                return v;
    return NULL;
}

static void print_help(FILE *out)
{
    (void)fprintf(out, "usage: alignctl [--host URL] VERB [OPTIONS]\n\n");
    for (size_t t = 0; t < TABLES; t++)
        for (const struct cli_verb *v = tables[t]; v->name; v++)
            (void)fprintf(out, "  %-9s %s\n", v->name, v->what);
    (void)fprintf(out, "\nalignctl help VERB shows its options. --json is for programs.\n"
                       "Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 the job failed, "
                       "5 no daemon, 6 refused,\n7 protocol version.\n");
}

static int help(const char *name)
{
    const struct cli_verb *v = name ? find(name) : NULL;
    if (name && !v) {
        (void)fprintf(stderr, "alignctl: there is no verb %.60s\n", name);
        return CLI_USAGE;
    }
    if (v)
        (void)printf("alignctl %s %s\n  %s\n", v->name, v->usage, v->what);
    else
        print_help(stdout);
    return CLI_OK;
}

static void look_at_terminal(struct cli *cli)
{
    const char *codeset = setlocale(LC_CTYPE, "") ? nl_langinfo(CODESET) : "";
    const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");
    cli->utf8 = strcmp(codeset, "UTF-8") == 0;
    cli->live = isatty(STDOUT_FILENO);
    cli->colour = cli->live && !(no_colour && *no_colour) && !(term && strcmp(term, "dumb") == 0);
}

static bool asks_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

int main(int argc, char **argv)
{
    struct cli cli = {.out = stdout, .notes = stderr};
    int i = 1;

    (void)signal(SIGPIPE, SIG_IGN);
    look_at_terminal(&cli);
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--host") == 0 && i + 1 < argc)
            cli.host = argv[++i];
        else if (strncmp(argv[i], "--host=", 7) == 0)
            cli.host = argv[i] + 7;
        else if (strcmp(argv[i], "--json") == 0)
            cli.json = true;
        else if (strcmp(argv[i], "--version") == 0)
            return printf("alignctl " ALIGND_VERSION "\n") < 0;
        else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return help(NULL);
        else
            break;
    }
    if (i >= argc) {
        print_help(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[i], "help") == 0)
        return help(i + 1 < argc ? argv[i + 1] : NULL);
    const struct cli_verb *v = find(argv[i]);
    if (!v && argv[i][0] == '-') {
        (void)fprintf(stderr,
                      "alignctl: before the verb there is no option %.60s; alignctl help lists "
                      "verbs, alignctl help VERB its options\n",
                      argv[i]);
        return CLI_USAGE;
    }
    if (!v) {
        (void)fprintf(stderr, "alignctl: there is no verb %.60s; alignctl help lists them\n",
                      argv[i]);
        return CLI_USAGE;
    }
    if (asks_help(argc - i, argv + i))
        return help(v->name);
    int code = v->run(&cli, argc - i, argv + i);
    if (fflush(stdout) != 0 && code == CLI_OK)
        code = cli_out_failed(&cli);
    if (code != CLI_OK && cli.err.text[0])
        (void)fprintf(stderr, "alignctl: %s\n", cli.err.text);
    if (cli.usage)
        (void)fprintf(stderr, "usage: alignctl %s %s\n", v->name, v->usage);
    return code;
}
