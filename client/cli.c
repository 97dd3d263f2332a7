/* cli.c - see cli.h. */
#include "client/cli.h"

#include <poll.h>

int cli_out_failed(struct cli *cli)
{
    struct pollfd p = {.fd = fileno(cli->out)};

    if (p.fd >= 0 && poll(&p, 1, 0) == 1 && (p.revents & POLLERR))
        return CLI_ERROR;
    return err_set(&cli->err, CLI_ERROR, "cannot write to standard output");
}
