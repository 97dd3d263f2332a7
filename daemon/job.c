/* job.c - the job state table, its words, and the only code that moves a job. */
#include "daemon/job.h"

#include <stddef.h>

#define TO(s) (1u << JOB_##s)
#define ENDS                                                                    \
    (TO(COMPLETED) | TO(FAILED) | TO(CANCELLED) | TO(TIMEOUT) | TO(PREEMPTED) | \
     TO(OUT_OF_MEMORY) | TO(NODE_FAIL))

enum { WAITS, HAS_GANG, OVER };

/* A gang that is lost or could not be started goes straight back to PENDING;
 * one that stopped in good order goes there by way of PREEMPTED. */
/* clang-format off */
static const struct {
    const char *name, *brief;
    unsigned to; /* the states that may follow */
    int what;
} table[JOB_STATES] = {
    [JOB_PENDING]       = {"PENDING",       "PD", TO(CONFIGURING) | TO(CANCELLED),        WAITS},
    [JOB_CONFIGURING]   = {"CONFIGURING",   "CF", TO(RUNNING) | TO(COMPLETING) | TO(PENDING) | ENDS,
                                                                                          HAS_GANG},
    [JOB_RUNNING]       = {"RUNNING",       "R",  TO(COMPLETING) | TO(PENDING) | ENDS,    HAS_GANG},
    [JOB_COMPLETING]    = {"COMPLETING",    "CG", TO(PENDING) | ENDS,                     HAS_GANG},
    [JOB_COMPLETED]     = {"COMPLETED",     "CD", TO(PENDING),                            OVER},
    [JOB_FAILED]        = {"FAILED",        "F",  TO(PENDING),                            OVER},
    [JOB_CANCELLED]     = {"CANCELLED",     "CA", TO(PENDING),                            OVER},
    [JOB_TIMEOUT]       = {"TIMEOUT",       "TO", TO(PENDING),                            OVER},
    [JOB_PREEMPTED]     = {"PREEMPTED",     "PR", TO(PENDING),                            WAITS},
    [JOB_OUT_OF_MEMORY] = {"OUT_OF_MEMORY", "OOM", TO(PENDING),                           OVER},
    [JOB_NODE_FAIL]     = {"NODE_FAIL",     "NF", TO(PENDING),                            OVER},
};

static const char *const reasons[JOB_REASONS] = {
    [JOB_REASON_NONE]            = "None",
    [JOB_REASON_PRIORITY]        = "Priority",
    [JOB_REASON_RESOURCES]       = "Resources",
    [JOB_REASON_HELD]            = "JobHeldUser",
    [JOB_REASON_BEGIN_TIME]      = "BeginTime",
    [JOB_REASON_DEVICES_FOREIGN] = "DevicesForeign",
    [JOB_REASON_DEVICES_FENCED]  = "DevicesFenced",
    [JOB_REASON_DEVICES_DRAINED] = "DevicesDrained",
    [JOB_REASON_DEVICES_MISSING] = "DevicesMissing",
    [JOB_REASON_RECONCILING]     = "Reconciling",
    [JOB_REASON_STORE_FULL]      = "StoreFull",
    [JOB_REASON_STOPPING]        = "DaemonStopping",
    [JOB_REASON_LAUNCH_FAILURE]  = "JobLaunchFailure",
    [JOB_REASON_NON_ZERO_EXIT]   = "NonZeroExitCode",
    [JOB_REASON_RAISED_SIGNAL]   = "RaisedSignal",
    [JOB_REASON_TIME_LIMIT]      = "TimeLimit",
    [JOB_REASON_OUT_OF_MEMORY]   = "OutOfMemory",
    [JOB_REASON_GANG_LOST]       = "NodeDown",
    [JOB_REASON_PEER_VANISHED]   = "PeerVanished",
};

static const char *const phases[JOB_PHASES] = {
    [JOB_PHASE_LOADING]    = "loading",
    [JOB_PHASE_TRAINING]   = "training",
    [JOB_PHASE_EVALUATING] = "evaluating",
    [JOB_PHASE_SAVING]     = "saving",
    [JOB_PHASE_DONE]       = "done",
};
/* clang-format on */

bool job_state_valid(int s)
{
    return s >= JOB_PENDING && s < JOB_STATES;
}

const char *job_state_name(enum job_state s)
{
    return job_state_valid(s) ? table[s].name : "?";
}

const char *job_state_short(enum job_state s)
{
    return job_state_valid(s) ? table[s].brief : "?";
}

const char *job_reason_name(enum job_reason r)
{
    return (unsigned)r < JOB_REASONS ? reasons[r] : "?";
}

const char *job_phase_name(enum job_phase p)
{
    return (unsigned)p < JOB_PHASES ? phases[p] : "?";
}

bool job_may_move(enum job_state from, enum job_state to)
{
    return job_state_valid(from) && job_state_valid(to) && (table[from].to >> to & 1u);
}

bool job_has_gang(enum job_state s)
{
    return job_state_valid(s) && table[s].what == HAS_GANG;
}

bool job_is_over(enum job_state s)
{
    return job_state_valid(s) && table[s].what == OVER;
}

bool job_move(struct job *j, enum job_state to)
{
    if (!job_may_move(j->state, to))
        return false;
    j->state = (uint8_t)to;
    return true;
}
